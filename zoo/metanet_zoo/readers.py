"""What a checkpoint reads its tensors from: files and objects behind one small interface."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from metanet_zoo.errors import CheckpointError
from metanet_zoo.layout import INDEX_SUFFIX, read_index, require_shards
from metanet_zoo.safetensors_file import SafetensorsFile
from metanet_zoo.torch_file import ZIP_MAGIC, load_torch_file
from metanet_zoo.unwrap import unwrap


class TensorReader(Protocol):
    """Named tensors whose shape and dtype are known without reading them."""

    def names(self) -> Iterable[str]:
        """Names in their stored order."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor."""
        ...

    def read(self, name: str) -> Tensor:
        """Give a tensor."""
        ...

    def close(self) -> None:
        """Release open files."""
        ...


class MemoryReader:
    """Tensors that are in memory, or mapped by torch, already."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def names(self) -> Iterable[str]:
        """Names in their stored order."""
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self._tensors[name].dtype

    def read(self, name: str) -> Tensor:
        """Give a tensor; it shares memory with its source."""
        return self._tensors[name]

    def close(self) -> None:
        """Keep nothing open."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A reader for every name, with what the files say beside the tensors."""

    readers: Mapping[str, TensorReader]
    metadata: Mapping[str, object]
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def open_file(path: Path, key: str | None = None) -> Opened:
    """Open one file by its content: safetensors, `torch.save`, or the index of shards of either.

    Args:
        path: an existing file.
        key: which dict of a torch file to take, see `unwrap`; the other kinds have none.

    Raises:
        CheckpointError: none of these, or damaged, or in need of code.
    """
    if path.name.endswith(INDEX_SUFFIX) or path.suffix == ".json":
        return _open_shards(path, key)
    if _is_safetensors(path):
        if key is not None:
            raise CheckpointError(
                f"{path}: key={key!r} was given, but safetensors files hold no dicts; leave it out"
            )
        file = SafetensorsFile(path)
        return Opened(dict.fromkeys(file.names(), file), file.header.metadata, (path,), ())
    unwrapped = unwrap(load_torch_file(path), str(path), key)
    reader = MemoryReader(unwrapped.tensors)
    return Opened(dict.fromkeys(reader.names(), reader), unwrapped.metadata, (path,), unwrapped.notes)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: a git-lfs pointer, not the file it stands for; run `git lfs pull` there"
        )
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(
            f"{path}: a web page or XML, expected a checkpoint; the download went wrong, fetch it again"
        )
    if path.suffix == ".safetensors":
        return True
    return not head.startswith(ZIP_MAGIC) and head[8:9] == b"{"


def _open_shards(index: Path, key: str | None) -> Opened:
    weight_map, metadata = read_index(index)
    require_shards(index, weight_map.values())
    shards = {file: open_file(index.parent / file, key) for file in sorted(set(weight_map.values()))}
    readers: dict[str, TensorReader] = {}
    for name, file in weight_map.items():
        if name not in shards[file].readers:
            raise CheckpointError(
                f"{index}: tensor {name!r} is said to be in {file}, which holds {len(shards[file].readers)} "
                "tensors and not this one; index and shards do not belong together, fetch them again"
            )
        readers[name] = shards[file].readers[name]
    notes: list[str] = []
    unlisted = sum(weight_map.get(name) != file for file, shard in shards.items() for name in shard.readers)
    if unlisted:
        notes.append(f"left out {unlisted} tensors of the shards that the index does not list")
    merged: dict[str, object] = dict(metadata)
    for file, shard in shards.items():
        merged = {**shard.metadata, **merged}
        notes.extend(f"{file}: {note}" for note in shard.notes)
    files = (index, *(index.parent / file for file in shards))
    return Opened(readers, merged, files, tuple(notes))
