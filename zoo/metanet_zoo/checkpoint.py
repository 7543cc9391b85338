"""Checkpoints as lazy mappings from names to tensors, whatever they are stored in."""

import difflib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metanet_zoo.errors import CheckpointError
from metanet_zoo.hub import fetch, repository_of
from metanet_zoo.layout import choose_file
from metanet_zoo.readers import MemoryReader, Opened, TensorReader, open_file
from metanet_zoo.unwrap import common_prefix, unwrap


class Checkpoint(Mapping[str, Tensor]):
    """Named tensors of a network; shapes and dtypes are known at once, tensors read when asked for.

    Obtained from `open_checkpoint`. Tensors of safetensors files and of zipped torch files are
    memory-mapped: writing to one changes this process's copy and never the file.

    Attributes:
        source: where it comes from, as text.
        files: the files that hold it, an index first; empty for objects in memory.
        metadata: what is stored beside the tensors: a safetensors header's texts, plain values of a
            torch file.
        notes: what was done to get from the source to these names, one sentence each.
    """

    def __init__(
        self,
        readers: Mapping[str, tuple[TensorReader, str]],
        *,
        source: str,
        files: tuple[Path, ...] = (),
        metadata: Mapping[str, object] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._readers = dict(readers)
        self.source = source
        self.files = files
        self.metadata = dict(metadata or {})
        self.notes = notes

    def __getitem__(self, name: str) -> Tensor:
        reader, stored = self._find(name)
        return reader.read(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        reader, stored = self._find(name)
        return reader.shape(stored)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor, without reading it."""
        reader, stored = self._find(name)
        return reader.dtype(stored)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, read now, for `module.load_state_dict`."""
        return {name: self[name] for name in self}

    def close(self) -> None:
        """Release the files; tensors already read stay valid, and reading another opens its file again."""
        for reader in {id(reader): reader for reader, _ in self._readers.values()}.values():
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        values = sum(math.prod(self.shape(name)) for name in self)
        dtypes = sorted({str(self.dtype(name)).removeprefix("torch.") for name in self})
        notes = f" | {'; '.join(self.notes)}" if self.notes else ""
        size = f"{len(self)} tensors, {values:,} values of {', '.join(dtypes) or 'no dtype'}"
        return f"Checkpoint({self.source} | {size}{notes})"

    def _find(self, name: str) -> tuple[TensorReader, str]:
        try:
            return self._readers[name]
        except KeyError:
            near = difflib.get_close_matches(str(name), self._readers, n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(map(repr, near))}" if near else "no name comes near it"
            raise KeyError(f"{self.source} has no tensor {name!r} among {len(self)}; {hint}") from None


def open_checkpoint(
    source: str | os.PathLike[str] | nn.Module | Mapping[str, object],
    *,
    key: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool | None = None,
) -> Checkpoint:
    """Open a checkpoint as a lazy mapping from names to tensors, running no code that it carries.

    Dicts around the weights (`state_dict`, `model`, …) and prefixes that all names carry (`module.`,
    `_orig_mod.`) are taken off, and the result's `notes` say so.

    Args:
        source: one of

            - a safetensors file, or a file of `torch.save`, told apart by content;
            - an index of shards (`*.index.json`), or a folder that holds any of these;
            - a Hugging Face repository, `"org/name"` or `"org/name@revision"`; an existing path goes first;
            - a module, whose state dict is taken as it is, or a mapping of tensors; both share memory
            with the result;
            - a `Checkpoint`, returned as it is.
        key: the dict to take from a torch file or mapping that holds several, such as `"ema"`.
        revision: branch, tag or commit of a repository.
        cache_dir: the hub client's cache, if not its default.
        local_files_only: for a repository, True asks the local cache alone, False the hub, None the hub
            and then, if it cannot be reached, the cache.

    Returns:
        the checkpoint; every file's header has been checked, no tensor has been read.

    Raises:
        CheckpointError: there is no such source, it is damaged or lies about itself, it needs code to be
            read, or it holds no tensors; the message says which, and what to do.

    Example:
        >>> checkpoint = open_checkpoint(nn.Linear(3, 2))
        >>> checkpoint.shape("weight"), checkpoint["bias"].shape
        ((2, 3), torch.Size([2]))
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, nn.Module):
        if key is not None:
            raise CheckpointError(f"key={key!r} was given for a module, which holds no dicts; leave it out")
        return _of_module(source)
    if isinstance(source, Mapping):
        origin = f"{type(source).__name__} in memory"
        unwrapped = unwrap(source, origin, key)
        reader = MemoryReader(unwrapped.tensors)
        opened = Opened(dict.fromkeys(reader.names(), reader), unwrapped.metadata, (), unwrapped.notes)
        return _checkpoint(opened, origin)
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text and path.exists():
        if revision is not None:
            raise CheckpointError(
                f"{path}: revision={revision!r} was given, but this is a local path; leave it out"
            )
        file = (
            path / choose_file([inner.name for inner in path.iterdir()], str(path)) if path.is_dir() else path
        )
        return _checkpoint(open_file(file, key), text)
    repo, revision = repository_of(text, revision)
    file, notes = fetch(repo, revision, Path(cache_dir) if cache_dir else None, local_files_only)
    opened = open_file(file, key)
    origin = repo if revision is None else f"{repo}@{revision}"
    return _checkpoint(opened, origin, notes)


def _of_module(module: nn.Module) -> Checkpoint:
    state = module.state_dict()
    unbuilt = [name for name, value in state.items() if is_lazy(value)]
    if unbuilt:
        raise CheckpointError(
            f"{type(module).__name__}: {', '.join(unbuilt[:3])} without a shape; run the module once first"
        )
    tensors = {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    other = [name for name in state if name not in tensors]
    notes = (f"left out what is no tensor: {', '.join(other)}",) if other else ()
    reader = MemoryReader(tensors)
    return Checkpoint({name: (reader, name) for name in tensors}, source=type(module).__name__, notes=notes)


def _checkpoint(opened: Opened, source: str, notes: tuple[str, ...] = ()) -> Checkpoint:
    prefix = common_prefix(opened.readers)
    if prefix:
        notes = (*notes, *opened.notes, f"removed the prefix {prefix!r} from all names")
    else:
        notes = (*notes, *opened.notes)
    return Checkpoint(
        {name.removeprefix(prefix): (reader, name) for name, reader in opened.readers.items()},
        source=source,
        files=opened.files,
        metadata=opened.metadata,
        notes=notes,
    )
