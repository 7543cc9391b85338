"""Where a merge reads from: named tensors as raw bytes, any stretch at any time, in no particular order."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from metanet_zoo.errors import CheckpointError
from metanet_zoo.hub import fetch, repository_of
from metanet_zoo.layout import INDEX_SUFFIX, choose_file, read_index, require_shards
from metanet_zoo.safetensors_header import ITEM_SIZES, Header, read_header

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor as it is stored: safetensors name of its dtype, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def item_size(self) -> int:
        """Bytes of a value."""
        return ITEM_SIZES[self.dtype]


class TensorSource(Protocol):
    """Named tensors of one model, read stretch by stretch.

    `AlignedSource` is one too: a model whose units have been brought into another's order while it is read.
    """

    def entries(self) -> Mapping[str, Entry]:
        """Every tensor, in the stored order."""
        ...

    def read(self, name: str, start: int, stop: int, out: Bytes) -> None:
        """Fill ``out`` with the bytes of values ``start:stop``; called by several threads at once."""
        ...

    def close(self) -> None:
        """Release open files."""
        ...


class SafetensorsSource:
    """Tensors of safetensors files, read with ``preadv`` into the caller's buffer: no mapping, no copies.

    Args:
        files: header-checked files that hold the tensors.
        names: tensor -> file, for the tensors to offer; None offers all.

    Raises:
        CheckpointError: a file is damaged, or two files hold a tensor of one name.
    """

    def __init__(self, files: Iterable[Path], names: Mapping[str, Path] | None = None) -> None:
        self._places: dict[str, tuple[Path, int]] = {}
        self._entries: dict[str, Entry] = {}
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()
        for path in files:
            self._add(path, read_header(path), names)
        for name, path in (names or {}).items():
            if name not in self._entries:
                raise CheckpointError(
                    f"{path}: no tensor {name!r}, which the index says is there; index and shards do not "
                    "belong together, fetch them again"
                )

    def _add(self, path: Path, header: Header, names: Mapping[str, Path] | None) -> None:
        ordered = sorted(header.entries.items(), key=lambda item: item[1].start)
        for name, entry in ordered:
            if names is not None and names.get(name) != path:
                continue
            if name in self._entries:
                raise CheckpointError(
                    f"{path}: tensor {name!r} is also in {self._places[name][0]}; expected every name once"
                )
            self._entries[name] = Entry(entry.dtype, entry.shape)
            self._places[name] = (path, header.buffer_start + entry.start)

    def entries(self) -> Mapping[str, Entry]:
        """Every tensor, in the stored order."""
        return self._entries

    def read(self, name: str, start: int, stop: int, out: Bytes) -> None:
        """Fill ``out`` with the bytes of values ``start:stop``."""
        path, offset = self._places[name]
        size = self._entries[name].item_size
        _read_exactly(self._descriptor(path), out, offset + start * size, path, self._lock)

    def close(self) -> None:
        """Release open files; the next read opens its file again."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _descriptor(self, path: Path) -> int:
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            with self._lock:
                descriptor = self._descriptors.get(path)
                if descriptor is None:
                    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                    self._descriptors[path] = descriptor
        return descriptor


def _read_exactly(descriptor: int, out: Bytes, offset: int, path: Path, lock: threading.Lock) -> None:
    view = out.data
    while len(view):
        if hasattr(os, "preadv"):
            count = os.preadv(descriptor, [view], offset)
        else:
            with lock:
                os.lseek(descriptor, offset, os.SEEK_SET)
                part = os.read(descriptor, len(view))
            count = len(part)
            view[:count] = part
        if count == 0:
            raise CheckpointError(f"{path}: ended at byte {offset}; it was cut short while it was read")
        view, offset = view[count:], offset + count


class TorchSource:
    """Tensors of files that torch must read (``.pt``, ``.bin``), mapped where they can be."""

    def __init__(self, path: Path) -> None:
        import torch

        from metanet_zoo.checkpoint import open_checkpoint
        from metanet_zoo.safetensors_file import DTYPES

        names = {dtype: name for name, dtype in DTYPES.items()}
        self._torch = torch
        self._checkpoint = open_checkpoint(path)
        self._entries: dict[str, Entry] = {}
        self._flat: dict[str, Bytes] = {}
        for name in self._checkpoint:
            dtype = self._checkpoint.dtype(name)
            if dtype not in names:
                raise CheckpointError(f"{path}: tensor {name!r} has {dtype}, which a merge cannot write")
            self._entries[name] = Entry(names[dtype], self._checkpoint.shape(name))

    def entries(self) -> Mapping[str, Entry]:
        """Every tensor, in the stored order."""
        return self._entries

    def read(self, name: str, start: int, stop: int, out: Bytes) -> None:
        """Fill ``out`` with the bytes of values ``start:stop``."""
        flat = self._flat.get(name)
        if flat is None:
            tensor = self._checkpoint[name].detach().contiguous().reshape(-1)
            flat = tensor.view(self._torch.uint8).numpy()
            self._flat[name] = flat
        size = self._entries[name].item_size
        np.copyto(out, flat[start * size : stop * size])

    def close(self) -> None:
        """Release open files."""
        self._flat.clear()
        self._checkpoint.close()


@dataclass(frozen=True, slots=True)
class Model:
    """A model to merge.

    Args:
        label: as the recipe names it.
        source: its tensors.
        folder: where its configuration and tokenizer lie; None for a single file.
        files: the files of its tensors, an index first.
        revision: commit of a hub repository.
        notes: how it was found, one sentence each.
    """

    label: str
    source: TensorSource
    folder: Path | None
    files: tuple[Path, ...]
    revision: str | None = None
    notes: tuple[str, ...] = ()


def open_model(
    path: str, revision: str | None = None, *, cache_dir: Path | None = None, offline: bool | None = None
) -> Model:
    """Open a model to be merged; headers are checked, no tensor is read.

    Args:
        path: a folder with a checkpoint, a checkpoint file, an index of shards, or a hub repository.
        revision: of a repository.
        cache_dir: the hub client's cache, if not its default.
        offline: True asks the hub's cache alone.

    Raises:
        CheckpointError: no such model, or a damaged one.
    """
    local = Path(path).expanduser()
    label = path if revision is None else f"{path}@{revision}"
    notes: tuple[str, ...] = ()
    commit = None
    if local.exists():
        if revision is not None:
            raise CheckpointError(f"{path}: a local path has no revision {revision!r}; leave it out")
        folder = local if local.is_dir() else None
        file = local / choose_file([inner.name for inner in local.iterdir()], path) if folder else local
    else:
        repo, named = repository_of(path, revision)
        file, notes = fetch(repo, named, cache_dir, offline)
        folder, commit = file.parent, file.parent.name
    if file.name.endswith(INDEX_SUFFIX):
        weight_map, _ = read_index(file)
        require_shards(file, weight_map.values())
        folder = file.parent
        shards = [file.parent / name for name in dict.fromkeys(sorted(weight_map.values()))]
        if all(_is_safetensors(shard) for shard in shards):
            places = {name: file.parent / shard for name, shard in weight_map.items()}
            return Model(label, SafetensorsSource(shards, places), folder, (file, *shards), commit, notes)
        return Model(label, TorchSource(file), folder, (file, *shards), commit, notes)
    source = SafetensorsSource([file]) if _is_safetensors(file) else TorchSource(file)
    return Model(label, source, folder, (file,), commit, notes)


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:9] == b"{" and not head.startswith(b"PK")
