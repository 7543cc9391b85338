"""A model with a low-rank adapter added while it is read: ``W + s·B A`` row by row."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import FLOAT_DTYPES, Bytes, Floats, decode, encode
from metanet.merging.recipe import nearest
from metanet.merging.reference import Location
from metanet.merging.stretch import row_length
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.model import EMBEDDINGS, HEADS
from metanet_zoo.merging.sources import Entry, Model, TensorSource, open_model

PREFIXES = ("base_model.model.", "base_model.")
_PART = re.compile(
    r"^(?P<module>.*)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?:default|weight))*$"
)
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is added to one tensor.

    Args:
        left: ``[rows, r]``, scaled.
        right: ``[r, columns]``.
        magnitude: ``[rows]`` lengths to which the rows are brought afterwards (DoRA), None to leave them.
    """

    left: Matrix
    right: Matrix
    magnitude: Matrix | None = None


class LoraSource:
    """The tensors of a model with an adapter added.

    Args:
        source: the model's tensors.
        adapters: tensor -> what is added to it.
        replaced: tensor -> the source that has it whole, and its name there; adapters are added to that.

    References:
        E. J. Hu et al., LoRA: low-rank adaptation of large language models, 2021.
        https://arxiv.org/abs/2106.09685
        S.-Y. Liu et al., DoRA: weight-decomposed low-rank adaptation, 2024. https://arxiv.org/abs/2402.09353
    """

    def __init__(
        self,
        source: TensorSource,
        adapters: Mapping[str, Adapter],
        replaced: Mapping[str, tuple[TensorSource, str]],
    ) -> None:
        self._source, self._adapters, self._replaced = source, adapters, replaced
        self._entries = dict(source.entries())
        for name, (other, own) in replaced.items():
            self._entries[name] = other.entries()[own]

    def entries(self) -> Mapping[str, Entry]:
        """Every tensor, in the stored order."""
        return self._entries

    def read(self, name: str, start: int, stop: int, out: Bytes) -> None:
        """Fill ``out`` with the bytes of values ``start:stop``."""
        if name in self._adapters:
            self._read_adapted(name, start, stop, out)
        else:
            self._read_whole(name, start, stop, out)

    def close(self) -> None:
        """Release open files."""
        self._source.close()
        for source, _ in self._replaced.values():
            source.close()

    def _read_whole(self, name: str, start: int, stop: int, out: Bytes) -> None:
        source, own = self._replaced.get(name, (self._source, name))
        source.read(own, start, stop, out)

    def _read_adapted(self, name: str, start: int, stop: int, out: Bytes) -> None:
        entry, adapter = self._entries[name], self._adapters[name]
        columns = row_length(entry.shape)
        first, last = start // columns, -(-stop // columns)
        raw = np.empty((last - first) * columns * entry.item_size, np.uint8)
        self._read_whole(name, first * columns, last * columns, raw)
        values: Floats = np.empty(
            (last - first) * columns, np.float64 if entry.dtype == "F64" else np.float32
        )
        decode(raw, entry.dtype, values)
        rows = values.reshape(last - first, columns)
        rows += adapter.left[first:last] @ adapter.right
        if adapter.magnitude is not None:
            lengths = np.linalg.norm(rows, axis=1)
            rows *= (adapter.magnitude[first:last] / np.where(lengths > 0, lengths, 1))[:, None]
        encode(values, entry.dtype, raw)
        size = entry.item_size
        np.copyto(out, raw[(start - first * columns) * size : (stop - first * columns) * size])


def add_adapter(
    model: Model, location: Location, *, cache_dir: Path | None = None, offline: bool | None = None
) -> Model:
    """Add an adapter to a model.

    Args:
        model: the model.
        location: folder or hub repository of the adapter: ``adapter_config.json`` and its weights.
        cache_dir: the hub client's cache, if not its default.
        offline: True asks the hub's cache alone.

    Returns:
        the model with the adapter's files among its own.

    Raises:
        CheckpointError: no adapter, one of another kind, or one of another model.
    """
    opened = open_model(location.path, location.revision, cache_dir=cache_dir, offline=offline)
    config, file = _config(opened, location, cache_dir, offline)
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        raise CheckpointError(
            f"{location}: an adapter of type {kind}, expected LORA; merge it with its own tool"
        )
    source = model.source
    parts, replaced = _sort_out(opened, source, location)
    adapters = {
        module + ".weight": _adapter(module, found, source, config, location)
        for module, found in parts.items()
    }
    return Model(
        f"{model.label}+{location}",
        LoraSource(source, adapters, replaced),
        model.folder,
        (*model.files, *opened.files, file),
        model.revision,
        (*model.notes, f"added {location} to {len(adapters)} tensors of {model.label}"),
    )


def _config(
    opened: Model, location: Location, cache_dir: Path | None, offline: bool | None
) -> tuple[dict[str, Any], Path]:
    folder = opened.folder or opened.files[0].parent
    file = folder / "adapter_config.json"
    if not file.is_file() and opened.revision is not None:
        from huggingface_hub import hf_hub_download

        file = Path(
            hf_hub_download(
                location.path,
                file.name,
                revision=opened.revision,
                cache_dir=cache_dir,
                local_files_only=bool(offline),
            )
        )
    if not file.is_file():
        raise CheckpointError(f"{location}: no adapter_config.json beside its weights; is this an adapter?")
    config = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: a JSON {type(config).__name__}, expected an object")
    return config, file


def _sort_out(
    opened: Model, source: TensorSource, location: Location
) -> tuple[dict[str, dict[str, Matrix]], dict[str, tuple[TensorSource, str]]]:
    """Group an adapter's tensors by the module they belong to; whole tensors replace the model's."""
    parts: dict[str, dict[str, Matrix]] = {}
    replaced: dict[str, tuple[TensorSource, str]] = {}
    heads: dict[str, str] = {}
    known = source.entries()
    for stored, entry in opened.source.entries().items():
        name = stored
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        match = _PART.match(name)
        if match is not None:
            module = match["module"]
            if module + ".weight" not in known:
                raise CheckpointError(
                    f"{location}: it adapts {module + '.weight'!r}, which the model has not; "
                    f"{nearest(module + '.weight', known)}"
                )
            parts.setdefault(module, {})[match["part"]] = _load(opened.source, stored, entry)
            continue
        name = name.replace(".modules_to_save.default", "").replace(".base_layer", "")
        if name in HEADS and name not in known:
            heads[name] = stored
            continue
        if name not in known or known[name].shape != entry.shape:
            raise CheckpointError(
                f"{location}: tensor {stored!r} of shape {list(entry.shape)} is no part of an adapter, nor "
                "is there one like it in the model to be replaced"
            )
        replaced[name] = opened.source, stored
    for name, stored in heads.items():
        if not _repeats_embedding(opened.source, stored, replaced.values()):
            replaced[name] = opened.source, stored
    return parts, replaced


def _repeats_embedding(source: TensorSource, head: str, others: Iterable[tuple[TensorSource, str]]) -> bool:
    """Return whether an output head that the model ties to its embedding is that embedding here too."""
    mine = source.entries()[head]
    embeddings = [stored for _, stored in others if stored.endswith(EMBEDDINGS)]
    return any(
        source.entries()[stored] == mine
        and np.array_equal(_load(source, stored, mine), _load(source, head, mine))
        for stored in embeddings
    )


def _load(source: TensorSource, name: str, entry: Entry) -> Matrix:
    if entry.dtype not in FLOAT_DTYPES:
        raise CheckpointError(f"tensor {name!r} of an adapter is {entry.dtype}, expected floats")
    raw = np.empty(entry.size * entry.item_size, np.uint8)
    source.read(name, 0, entry.size, raw)
    values = np.empty(entry.size, np.float64)
    decode(raw, entry.dtype, values)
    return values.astype(np.float32).reshape(entry.shape)


def _adapter(
    module: str,
    parts: Mapping[str, Matrix],
    source: TensorSource,
    config: Mapping[str, Any],
    location: Location,
) -> Adapter:
    embedding = "lora_embedding_A" in parts
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    if any(name not in parts for name in names):
        raise CheckpointError(f"{location}: {module} has {sorted(parts)}, expected {' and '.join(names)}")
    a, b = (parts[name] for name in names)
    rank = a.shape[0]
    a, b = a.reshape(rank, -1), b.reshape(-1, rank)
    alpha = float(config.get("lora_alpha", rank))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    scale = np.float32(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    left, right = b * scale, a
    if embedding or config.get("fan_in_fan_out"):
        left, right = np.ascontiguousarray(right.T) * scale, np.ascontiguousarray(b.T)
    entry = source.entries()[module + ".weight"]
    if (left.shape[0], right.shape[1]) != (entry.shape[0], row_length(entry.shape)):
        raise CheckpointError(
            f"{location}: the adapter of {module} makes {left.shape[0]} × {right.shape[1]}, the model's "
            f"tensor is {list(entry.shape)}; the adapter belongs to another model"
        )
    magnitude = parts.get("lora_magnitude_vector")
    if magnitude is not None and (embedding or config.get("fan_in_fan_out") or len(entry.shape) != 2):
        raise CheckpointError(
            f"{location}: DoRA on {module}, which is no plain linear layer; merge it with peft"
        )
    return Adapter(left, right, None if magnitude is None else magnitude.reshape(-1))
