"""A fine-tuned model as a low-rank adapter of its base: what `metanet_zoo.merging.lora` reads, written.

Every matrix that differs, ``Δ = W - W₀``, becomes ``B A`` of rank r with the least squared error
(Eckart–Young): ``B = U √S`` and ``A = √S Vᵀ`` of its r largest singular values. Biases, gains of norms and
embeddings that differ are stored whole, as peft stores them.

References:
    E. J. Hu et al., LoRA: low-rank adaptation of large language models, 2021. https://arxiv.org/abs/2106.09685
    N. Halko, P.-G. Martinsson, J. Tropp, Finding structure with randomness, 2011, algorithm 4.4.
    https://arxiv.org/abs/0909.4061
"""

from __future__ import annotations

import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanet.merging.floats import FLOAT_DTYPES, Floats, decode
from metanet.merging.recipe import nearest
from metanet.merging.reference import ModelReference
from metanet_zoo.atomic import replace_folder, write_json_atomic
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.lora import PREFIXES, add_adapter
from metanet_zoo.merging.model import HEADS, MergeModel
from metanet_zoo.merging.sources import TensorSource, open_model
from metanet_zoo.saving import save_checkpoint

TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt")
"""Model types whose linear layers store ``[in, out]``."""
OVERSAMPLING = 16
POWER_STEPS = 4
EMBEDDING = re.compile(r"(^|[._])(wte|wpe|emb|embed\w*|\w*embeddings?)$")
"""Modules that peft adapts by other factors; they are stored whole."""
EXACT = 512
"""Matrices with a side up to this long are decomposed exactly."""

Progress = Callable[[str, int, int], None]
"""Told of every tensor: its name, its number and how many there are."""


@dataclass(frozen=True, slots=True)
class ExtractionReport:
    """What an extraction found.

    Args:
        out: the adapter.
        rank: the largest of its ranks.
        adapted: tensor -> fraction of ``‖W - W₀‖²`` that its factors carry.
        whole: tensors that are stored as they are.
        same: number of tensors that do not differ.
        left_out: tensors that differ and were excluded.
        carried: fraction of the squared difference of all tensors that the adapter carries.
        parameters: numbers in the adapter.
    """

    out: str
    rank: int
    adapted: Mapping[str, float]
    whole: tuple[str, ...]
    same: int
    left_out: tuple[str, ...]
    carried: float
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "whole": list(self.whole), "left_out": list(self.left_out)}


def extract_lora(
    model: str,
    base: str,
    out: Path | str,
    *,
    rank: int = 16,
    exclude: Sequence[str] = (),
    overwrite: bool = False,
    cache_dir: Path | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> ExtractionReport:
    """Write what turns a base model into another one as an adapter that peft and `metanet merge` read.

    One tensor of each model is in memory at a time.

    Args:
        model: the fine-tuned or merged model, named as in recipes (``path@revision+adapter``).
        base: the model that the adapter is to be added to.
        out: folder that is to appear.
        rank: of the factors; smaller matrices take what they have.
        exclude: regular expressions of tensors that are left as the base has them.
        overwrite: replace an older adapter.
        cache_dir: the hub client's cache, if not its default.
        offline: True asks the hub's cache alone.
        progress: told of every tensor.

    Raises:
        CheckpointError: models of other names or shapes; a difference that no adapter can hold.
        FileExistsError: the output exists.
        ValueError: a rank below one, or no regular expression.
    """
    if rank < 1:
        raise ValueError(f"found rank {rank}, expected 1 or more")
    left_out = tuple(_pattern(text) for text in exclude)
    target = Path(out).expanduser()
    _check_target(target, overwrite)
    tuned, start = (_open(name, cache_dir, offline) for name in (model, base))
    try:
        _check_alike(tuned, start)
        found = _Extraction(tuned, start, rank, left_out)
        names = list(start.source.entries())
        for number, name in enumerate(names, 1):
            found.take(name)
            if progress is not None:
                progress(name, number, len(names))
        _publish(target, found, base)
    finally:
        tuned.source.close()
        start.source.close()
    return found.report(str(target))


class _Extraction:
    """The adapter, tensor by tensor."""

    def __init__(
        self, tuned: MergeModel, base: MergeModel, rank: int, exclude: Sequence[re.Pattern[str]]
    ) -> None:
        self.tuned, self.base, self.rank, self.exclude = tuned, base, rank, exclude
        self.transposed = (base.config or {}).get("model_type") in TRANSPOSED
        self.tensors: dict[str, Tensor] = {}
        self.ranks: dict[str, int] = {}
        self.adapted: dict[str, float] = {}
        self.whole: list[str] = []
        self.left_out: list[str] = []
        self.same = 0
        self.energy = self.kept = 0.0

    def take(self, name: str) -> None:
        """Compare one tensor and add what differs."""
        entry = self.base.source.entries()[name]
        if entry.dtype not in FLOAT_DTYPES:
            self._take_exactly(name)
            return
        before, after = _load(self.base.source, name), _load(self.tuned.source, name)
        change = after - before
        energy = float(change.double().square().sum())
        if not np.isfinite(energy):
            raise CheckpointError(f"tensor {name!r} holds NaN or infinities, or its difference does")
        if energy == 0:
            self.same += 1
            return
        self.energy += energy
        if any(pattern.search(name) for pattern in self.exclude):
            self.left_out.append(name)
            return
        if _is_matrix(name, entry.shape):
            kept = self._factor(name, change)
            self.adapted[name] = kept / energy
            self.kept += kept
            return
        if not name.endswith((".weight", ".bias")):
            raise CheckpointError(
                f"tensor {name!r} of shape {list(entry.shape)} differs, and an adapter has no place for it: "
                "it is no weight or bias of a module; --exclude it, or keep the whole model"
            )
        if self._tied() and name == self.base.tied(HEADS[0]) and not name.endswith("embed_tokens.weight"):
            raise CheckpointError(
                f"tensor {name!r} differs and is the output head too; peft ties only embeddings called "
                "embed_tokens to their head. --exclude it, or keep the whole model"
            )
        self.whole.append(name)
        self.kept += energy

    def _take_exactly(self, name: str) -> None:
        if not np.array_equal(_raw(self.base.source, name), _raw(self.tuned.source, name)):
            kind = self.base.source.entries()[name].dtype
            raise CheckpointError(f"tensor {name!r} of {kind} differs; an adapter holds floats alone")
        self.same += 1

    def _factor(self, name: str, change: Tensor) -> float:
        """Add the factors of one matrix; return the squared size of their product."""
        module, shape = name.removesuffix(".weight"), change.shape
        matrix = change.flatten(1)
        if self.transposed and len(shape) == 2:
            matrix = matrix.T
        rank = min(self.rank, *matrix.shape)
        left, right, kept = best_factors(matrix, rank, seed=zlib.crc32(name.encode()))
        if len(shape) > 2:
            left = left.reshape(*left.shape, *(1,) * (len(shape) - 2))
            right = right.reshape(rank, *shape[1:])
        self.tensors[f"{PREFIXES[0]}{module}.lora_A.weight"] = right
        self.tensors[f"{PREFIXES[0]}{module}.lora_B.weight"] = left
        self.ranks[module] = rank
        return kept

    def finish(self) -> dict[str, Any]:
        """Add the tensors that are stored whole; return peft's configuration of the adapter."""
        adapted = {name.removesuffix(".weight") for name in self.adapted}
        modules: dict[str, None] = {}
        biases = False
        for name in self.whole:
            module, _, part = name.rpartition(".")
            if part == "bias" and (module in adapted or module + ".weight" not in self.whole):
                biases = True
                inner = ".base_layer" if module in adapted else ""
                self.tensors[f"{PREFIXES[0]}{module}{inner}.bias"] = _load(self.tuned.source, name)
                continue
            modules[module] = None
        for module in modules:
            for name in (f"{module}.weight", f"{module}.bias"):
                if name in self.tuned.source.entries():
                    self.tensors[PREFIXES[0] + name] = _load(self.tuned.source, name)
        embedding = self.base.tied(HEADS[0]) if self._tied() else None
        if embedding in self.whole:  # peft looks for the tied head under its own name too
            self.tensors[PREFIXES[0] + HEADS[0]] = _load(self.tuned.source, embedding)
        other = {module: rank for module, rank in self.ranks.items() if rank != self.rank}
        architectures = (self.base.config or {}).get("architectures") or [""]
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM" if str(architectures[0]).endswith("ForCausalLM") else None,
            "r": self.rank,
            "lora_alpha": self.rank,
            "lora_dropout": 0.0,
            "rank_pattern": other,
            "alpha_pattern": other,
            "target_modules": sorted(self.ranks),
            "modules_to_save": sorted(modules) or None,
            "bias": "all" if biases else "none",
            "fan_in_fan_out": self.transposed,
            "ensure_weight_tying": self._tied(),
            "inference_mode": True,
        }

    def _tied(self) -> bool:
        """Return whether the output head is the embedding, and changes with it."""
        entries = self.base.source.entries()
        return not any(head in entries for head in HEADS) and self.base.tied(HEADS[0]) is not None

    def report(self, out: str) -> ExtractionReport:
        """Return what was found."""
        return ExtractionReport(
            out,
            max(self.ranks.values(), default=0),
            self.adapted,
            tuple(self.whole),
            self.same,
            tuple(self.left_out),
            self.kept / self.energy if self.energy else 1.0,
            sum(tensor.numel() for tensor in self.tensors.values()),
        )


def best_factors(matrix: Tensor, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor, float]:
    """Return the product of given rank that is nearest to a matrix.

    Args:
        matrix: ``[rows, columns]``.
        rank: at most the shorter side.
        seed: of the random start for large matrices.

    Returns:
        B ``[rows, rank]``, A ``[rank, columns]``, and ``‖B A‖²``.
    """
    if min(matrix.shape) <= EXACT or rank + OVERSAMPLING >= min(matrix.shape):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(matrix.shape[1], rank + OVERSAMPLING, generator=generator, dtype=matrix.dtype)
        basis = torch.linalg.qr(matrix @ start).Q
        for _ in range(POWER_STEPS):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
        u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ u
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank], float(s[:rank].double().square().sum())


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is adapted by factors: a linear layer or convolution, no embedding or head."""
    module, _, part = name.rpartition(".")
    return len(shape) >= 2 and part == "weight" and not name.endswith(HEADS) and not EMBEDDING.search(module)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"found {text!r}, expected a regular expression ({error})") from None


def _open(name: str, cache: Path | None, offline: bool | None) -> MergeModel:
    reference = ModelReference.parse(name)
    opened = open_model(reference.model.path, reference.model.revision, cache_dir=cache, offline=offline)
    if reference.lora is not None:
        opened = add_adapter(opened, reference.lora, cache_dir=cache, offline=offline)
    return MergeModel(opened, opened.source)


def _check_alike(tuned: MergeModel, base: MergeModel) -> None:
    mine, other = tuned.source.entries(), base.source.entries()
    for name in (*other, *mine):
        if name not in mine or name not in other:
            where, known = ("the model", mine) if name not in mine else ("the base", other)
            raise CheckpointError(
                f"{where} has no tensor {name!r}; {nearest(name, known)}. Expected a model and the base that "
                "it was trained from"
            )
        if mine[name].shape != other[name].shape:
            raise CheckpointError(
                f"tensor {name!r} is {list(mine[name].shape)} in the model and {list(other[name].shape)} in "
                "the base"
            )


def _raw(source: TensorSource, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    entry = source.entries()[name]
    raw = np.empty(entry.size * entry.item_size, np.uint8)
    source.read(name, 0, entry.size, raw)
    return raw


def _load(source: TensorSource, name: str) -> Tensor:
    entry = source.entries()[name]
    if entry.dtype not in FLOAT_DTYPES:
        raise CheckpointError(f"tensor {name!r} is {entry.dtype} in one of the models, expected floats")
    values: Floats = np.empty(entry.size, np.float64 if entry.dtype == "F64" else np.float32)
    decode(_raw(source, name), entry.dtype, values)
    return torch.from_numpy(values).reshape(entry.shape)


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; --overwrite replaces an older adapter")
    if target.exists() and not (target / "adapter_config.json").is_file():
        raise FileExistsError(f"{target} is no adapter, so it is not replaced; remove it yourself")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: there is no folder {target.parent}; create it first")


def _publish(target: Path, found: _Extraction, base: str) -> None:
    """Write the adapter beside its place, then rename it."""
    config = {**found.finish(), "base_model_name_or_path": base}
    folder = target.parent / f".{target.name[:200]}.{secrets.token_hex(6)}.tmp"
    folder.mkdir()
    try:
        save_checkpoint(folder / "adapter_model.safetensors", found.tensors, {"format": "pt"})
        write_json_atomic(folder / "adapter_config.json", config)
        replace_folder(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
