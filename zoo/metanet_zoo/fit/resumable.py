"""A zoo that is written in whole shards in any order, and finished by a later run if this one is killed."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from metanet_zoo.manifest import MANIFEST, UNFINISHED, Manifest, Shard, ZooError
from metanet_zoo.writer import Columns, check_models, columns_table, require_empty, shard_files, write_shard


class ResumableZoo:
    """Shards of a zoo under construction; every one is on disk as a whole before the manifest names it.

    Args:
        path: the folder; its parent must exist.
        architecture: settings for `build_architecture`.
        label_names: what the labels mean.
        settings: all that decides the models; a later run must have the same.
        shard_size: models per shard.
        total: models in the finished zoo.
        resume: continue what a killed run left; otherwise the folder must be new or empty.

    Raises:
        ZooError: the folder holds something else, or was begun with other settings.
    """

    def __init__(
        self,
        path: Path,
        *,
        architecture: Mapping[str, Any],
        label_names: Sequence[str],
        settings: Mapping[str, Any],
        shard_size: int,
        total: int,
        resume: bool = True,
    ) -> None:
        self.path = path
        self.shard_size = shard_size
        self.total = total
        existing = [path / name for name in (MANIFEST, UNFINISHED) if (path / name).is_file()]
        self.complete = resume and existing[:1] == [path / MANIFEST]
        self._shards: dict[int, Shard] = {}
        if resume and existing:
            self.manifest = Manifest.read(existing[0])
            _require_same(self.manifest.settings, settings, path)
        else:
            require_empty(path)
            path.mkdir(exist_ok=True)
            self.manifest = Manifest(
                dict(architecture), label_names=tuple(label_names), settings=dict(settings)
            )
            self.manifest.write(path / UNFINISHED)

    def recover(self) -> None:
        """Take over the whole shards of an earlier run and remove what its end left half-written."""
        for file in self.path.glob(".*.tmp"):
            file.unlink(missing_ok=True)
        numbers = {shard_files(i)[0]: i for i in range(self.num_shards)}
        self._shards = {
            numbers[shard.weights]: shard
            for shard in self.manifest.shards
            if shard.weights in numbers and _is_whole(self.path, shard)
        }

    @property
    def num_shards(self) -> int:
        """Shards of the finished zoo."""
        return -(-self.total // self.shard_size)

    def members(self, shard: int) -> range:
        """Numbers of the models of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.total))

    @property
    def missing(self) -> list[int]:
        """Shards that are yet to be written, ascending."""
        return [shard for shard in range(self.num_shards) if shard not in self._shards]

    def write(self, shard: int, tensors: Mapping[str, Tensor], columns: Columns) -> None:
        """Write one shard and name it in the manifest.

        Raises:
            OSError: it cannot be written, e.g. since the disk is full; what is whole stays.
        """
        table = columns_table(columns)
        try:
            self.manifest = check_models(self.manifest, tensors, table, str(self.path))
            self._shards[shard] = write_shard(self.path, shard, tensors, table)
            self._write_manifest(UNFINISHED)
        except OSError as error:
            self._shards.pop(shard, None)
            reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
            raise OSError(
                error.errno,
                f"cannot write shard {shard} of {self.path}: {reason}. {len(self._shards)} of "
                f"{self.num_shards} shards are whole; make room and run the same command again to continue",
            ) from error

    def finish(self) -> None:
        """Write the manifest of the finished zoo in place of the unfinished one's."""
        if self.missing:
            raise RuntimeError(f"shards {self.missing} are not written")
        self._write_manifest(MANIFEST)
        (self.path / UNFINISHED).unlink(missing_ok=True)

    def _write_manifest(self, name: str) -> None:
        shards = tuple(self._shards[number] for number in sorted(self._shards))
        self.manifest = replace(self.manifest, shards=shards)
        self.manifest.write(self.path / name)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that ask for the same; the system frees it if this one is killed.

    Raises:
        ZooError: another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ZooError(
                f"another process is writing to {folder}; wait for it or choose another folder"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _is_whole(folder: Path, shard: Shard) -> bool:
    files = ((shard.weights, shard.weights_sha256), (shard.models, shard.models_sha256))
    return all(
        (folder / name).is_file() and hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected
        for name, expected in files
    )


def _require_same(found: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> None:
    differing = [name for name in {**found, **asked} if found.get(name) != asked.get(name)]
    if differing:
        details = "; ".join(f"{name} was {found.get(name)!r}, now {asked.get(name)!r}" for name in differing)
        raise ZooError(
            f"{path} was begun with other settings: {details}. Use the same ones to continue, or another "
            "folder"
        )
