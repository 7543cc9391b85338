"""Writing a zoo: whole shards, and the manifest last."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save
from torch import Tensor

from metanet_zoo.atomic import atomic_path
from metanet_zoo.manifest import MANIFEST, UNFINISHED, Entry, Manifest, Shard, ZooError

Columns = Mapping[str, Sequence[Any] | Tensor]
"""Metadata of some models: column -> one value per model."""

SPEC = "spec.json"


class ZooWriter:
    """Writes models of one architecture to a folder, in shards that are whole or absent.

    As a context manager it closes the zoo at the end of the block; if the block raises, the files it wrote
    are removed and an older zoo in the folder stays as it was.

    Args:
        path: the folder; its parent must exist.
        architecture: settings for `build_architecture`; empty if no code for the networks is known.
        label_names: what the integers of the column `label` mean.
        settings: how the networks were made; plain JSON.
        shard_size: models per shard.
        spec: the networks' symmetry as JSON text, stored as `spec.json`.
        append: add to the finished zoo in the folder; otherwise the folder must be new or empty.

    Raises:
        ZooError: the folder is not as `append` expects, or the zoo in it is of another architecture.

    Example:
        >>> import tempfile
        >>> from metanet_zoo.store import Zoo
        >>> folder = Path(tempfile.mkdtemp()) / "zoo"
        >>> with ZooWriter(folder, architecture={}) as writer:
        ...     writer.append({"weight": torch.zeros(5, 3, 2)}, {"label": torch.arange(5)})
        >>> len(Zoo.open(folder))
        5
    """

    def __init__(
        self,
        path: str | Path,
        *,
        architecture: Mapping[str, Any],
        label_names: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        shard_size: int = 512,
        spec: str | None = None,
        append: bool = False,
    ) -> None:
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, found {shard_size}")
        self.path = Path(path)
        self.shard_size = shard_size
        self._written: list[Path] = []
        self._pending: list[tuple[dict[str, Tensor], pa.Table]] = []
        self._made_folder = not self.path.exists()
        if append:
            self.manifest = self._appendable(architecture, label_names)
        else:
            require_empty(self.path)
            self.path.mkdir(exist_ok=True)
            self.manifest = Manifest(
                dict(architecture), label_names=tuple(label_names), settings=dict(settings or {})
            )
        if spec is not None:
            with atomic_path(self.path / SPEC) as file:
                file.write_text(spec, encoding="utf-8")
            self._written.append(self.path / SPEC)

    def _appendable(self, architecture: Mapping[str, Any], label_names: Sequence[str]) -> Manifest:
        if not (self.path / MANIFEST).is_file():
            raise ZooError(f"cannot append: {self.path} holds no finished zoo ({MANIFEST} is missing)")
        manifest = Manifest.read(self.path / MANIFEST)
        for what, found, expected in (
            ("architecture", dict(architecture), dict(manifest.architecture)),
            ("label names", tuple(label_names), manifest.label_names),
        ):
            if found != expected:
                raise ZooError(
                    f"cannot append to {self.path}: its {what} are {expected}, the new models' {found}"
                )
        return manifest

    def append(self, tensors: Mapping[str, Tensor], columns: Columns) -> None:
        """Add models at the end.

        Args:
            tensors: state-dict name -> `[models, …]`.
            columns: metadata, one value per model; the same columns every time.

        Raises:
            ZooError: names, shapes, dtypes, numbers of models or columns do not agree with each other or
                with what is stored.
        """
        table = self._checked(tensors, columns)
        self._pending.append(({name: tensor.detach().cpu() for name, tensor in tensors.items()}, table))
        while sum(len(rows) for _, rows in self._pending) >= self.shard_size:
            self._flush(self.shard_size)

    def close(self) -> None:
        """Write what is pending and, as the last act, the manifest.

        Raises:
            ZooError: no model was added.
        """
        if self._pending:
            self._flush(sum(len(rows) for _, rows in self._pending))
        if not self.manifest.shards:
            raise ZooError(f"no models were added to {self.path}; a zoo needs at least one")
        self.manifest.write(self.path / MANIFEST)
        self._written.clear()

    def discard(self) -> None:
        """Remove every file that this writer wrote, and the folder if it made it."""
        for file in self._written:
            file.unlink(missing_ok=True)
        if self._made_folder and self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def __enter__(self) -> ZooWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        except BaseException:
            self.discard()
            raise
        if kind is not None:
            self.discard()

    def _checked(self, tensors: Mapping[str, Tensor], columns: Columns) -> pa.Table:
        table = columns_table(columns)
        self.manifest = check_models(self.manifest, tensors, table, str(self.path))
        return table

    def _flush(self, count: int) -> None:
        names = self.manifest.entries
        rows = pa.concat_tables([table for _, table in self._pending])
        stacked = {name: torch.cat([tensors[name] for tensors, _ in self._pending]) for name in names}
        index = len(self.manifest.shards)
        self._written += [self.path / name for name in shard_files(index)]
        shard = write_shard(
            self.path, index, {name: tensor[:count] for name, tensor in stacked.items()}, rows.slice(0, count)
        )
        self.manifest = replace(self.manifest, shards=(*self.manifest.shards, shard))
        rest = ({name: tensor[count:] for name, tensor in stacked.items()}, rows.slice(count))
        self._pending = [rest] if len(rest[1]) else []


def columns_table(columns: Columns) -> pa.Table:
    """Arrow table of metadata columns; tensors become integers, floats or booleans."""
    arrays = {
        name: pa.array(values.detach().cpu().numpy() if isinstance(values, Tensor) else values)
        for name, values in columns.items()
    }
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ZooError(f"metadata columns have different lengths: {lengths}")
    return pa.table(arrays)


def check_models(manifest: Manifest, tensors: Mapping[str, Tensor], table: pa.Table, origin: str) -> Manifest:
    """Hold new models against a manifest; the first models decide its entries and columns.

    Args:
        manifest: of the zoo that is being written.
        tensors: state-dict name -> `[models, …]`.
        table: one row per model.
        origin: names the zoo in messages.

    Returns:
        the manifest, with entries and columns.

    Raises:
        ZooError: they do not agree.
    """
    if not tensors:
        raise ZooError(f"{origin}: models without a single tensor; expected stacked state-dict entries")
    counts = {name: tensor.shape[0] if tensor.ndim else None for name, tensor in tensors.items()}
    if set(counts.values()) != {len(table)} or len(table) == 0:
        raise ZooError(
            f"{origin}: {len(table)} rows of metadata for tensors with leading axes {counts}; expected "
            "[models, …] and one row per model, at least one"
        )
    entries = {
        name: Entry(tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    }
    columns = {field.name: str(field.type) for field in table.schema}
    if not manifest.entries:
        return replace(manifest, entries=entries, columns=columns)
    if entries != manifest.entries:
        differing = sorted(
            name
            for name in entries.keys() | manifest.entries.keys()
            if entries.get(name) != manifest.entries.get(name)
        )
        name = differing[0]
        raise ZooError(
            f"{origin}: entry {name!r} is {entries.get(name, 'absent')} in the new models and "
            f"{manifest.entries.get(name, 'absent')} in the zoo ({len(differing)} entries differ)"
        )
    if columns != manifest.columns:
        raise ZooError(f"{origin}: found metadata columns {columns}, expected {dict(manifest.columns)}")
    return manifest


def shard_files(index: int) -> tuple[str, str]:
    """File names of a shard's weights and of its metadata."""
    return f"weights-{index:05d}.safetensors", f"models-{index:05d}.parquet"


def write_shard(folder: Path, index: int, tensors: Mapping[str, Tensor], table: pa.Table) -> Shard:
    """Write one shard, each of its files whole or not at all.

    Args:
        folder: of the zoo.
        index: of the shard.
        tensors: state-dict name -> `[models, …]`.
        table: one row per model.

    Returns:
        the manifest's record of it.
    """
    weights = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    models = buffer.getvalue()
    names = shard_files(index)
    for name, content in zip(names, (weights, models), strict=True):
        with atomic_path(folder / name) as path:
            path.write_bytes(content)
    return Shard(
        *names,
        count=len(table),
        weights_bytes=len(weights),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        models_sha256=hashlib.sha256(models).hexdigest(),
    )


def require_empty(folder: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        ZooError: says what is there and what to do.
    """
    if not folder.exists():
        if not folder.parent.is_dir():
            raise ZooError(
                f"cannot make the zoo {folder}: there is no folder {folder.parent}; create it first"
            )
        return
    if not folder.is_dir():
        raise ZooError(f"cannot make the zoo {folder}: it is a file")
    found = sorted(file.name for file in folder.iterdir())
    if not found:
        return
    if MANIFEST in found:
        raise ZooError(
            f"{folder} already holds a zoo; append to it (append=True), remove it or choose another name"
        )
    if UNFINISHED in found:
        raise ZooError(f"{folder} holds an unfinished zoo; run the command that began it again to finish it")
    raise ZooError(
        f"{folder} is not empty (it holds {', '.join(found[:5])}); a new zoo needs an empty folder"
    )
