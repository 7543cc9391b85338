"""The folder in which an output grows until it is complete: locked, journaled, renamed at the end.

It lies beside the output, is hidden and ends in ``.merging``, so that what a killed merge leaves is never
taken for a result. Its journal lists the tensors that are on the disk; a merge of the same fingerprint goes
on from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from metanet_zoo.atomic import replace_folder
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.shards import Layout

JOURNAL = "journal.jsonl"
LOCK = "lock"
SYNC_BYTES = 256 << 20
"""Written bytes after which files are flushed to the disk and the journal names the tensors done."""


class Workspace:
    """An output under way.

    Args:
        target: the folder, or the ``.safetensors`` file, that is to appear.
        fingerprint: of everything that the output's bytes depend on.
        resume: go on with what an interrupted merge of the same fingerprint left.

    Raises:
        CheckpointError: another process is writing there, or what was left belongs to another merge.
        OSError: the folder cannot be written.
    """

    def __init__(self, target: Path, fingerprint: str, *, resume: bool) -> None:
        self.target = target
        self.folder = work_folder(target)
        self.fingerprint = fingerprint
        self.done: set[str] = set()
        self._descriptors: dict[str, int] = {}
        self._finished: list[str] = []
        self._unsynced = 0
        self._mutex = threading.Lock()
        if not target.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write {target}: there is no folder {target.parent}; create it first"
            )
        self.folder.mkdir(exist_ok=True)
        self._lock = _lock(self.folder / LOCK, target)
        try:
            self._take_up(resume)
        except BaseException:
            os.close(self._lock)
            raise

    def _take_up(self, resume: bool) -> None:
        journal = self.folder / JOURNAL
        if resume and journal.exists():
            lines = journal.read_text(encoding="utf-8").splitlines()
            found = json.loads(lines[0]).get("fingerprint") if lines else None
            if found != self.fingerprint:
                raise CheckpointError(
                    f"{self.folder}: left by a merge of other inputs, recipe or version; run without "
                    "--resume to start over"
                )
            for line in lines[1:]:
                # The last line may be torn; the tensors it would have named are computed again.
                with contextlib.suppress(ValueError):
                    self.done.update(json.loads(line)["done"])
            return
        for inner in self.folder.iterdir():
            if inner.name != LOCK:
                shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
        journal.write_text(json.dumps({"fingerprint": self.fingerprint}) + "\n", encoding="utf-8")

    def create(self, layout: Layout) -> None:
        """Make the output's files at their full size, headers written.

        Raises:
            OSError: the disk has no room for them.
        """
        present = sum(_allocated(self.folder / file) for file in layout.sizes)
        free = shutil.disk_usage(self.folder).free
        if layout.total - present > free:
            raise OSError(
                28, f"no room: the output takes {layout.total:,} bytes, {free:,} are free", str(self.target)
            )
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        for file, size in layout.sizes.items():
            descriptor = os.open(self.folder / file, flags, 0o666)
            self._descriptors[file] = descriptor
            os.ftruncate(descriptor, size)
            write_at(descriptor, layout.headers[file], 0)

    def write(self, file: str, data: memoryview | bytes, offset: int) -> None:
        """Write bytes at their place; called by several threads at once."""
        write_at(self._descriptors[file], data, offset)

    def finish_tensor(self, name: str, size: int) -> None:
        """Note that a tensor is written, and flush and journal from time to time."""
        with self._mutex:
            self._finished.append(name)
            self._unsynced += size
            if self._unsynced >= SYNC_BYTES:
                self.flush()

    def flush(self) -> None:
        """Flush all files to the disk, then name the tensors in the journal."""
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)
        if self._finished:
            with (self.folder / JOURNAL).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"done": self._finished}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._finished, self._unsynced = [], 0

    def publish(self, extra: Mapping[str, str | bytes], *, overwrite: bool) -> None:
        """Make the output appear, whole.

        Args:
            extra: other files of the output by name; none for a single file.
            overwrite: put it in the place of an older output.
        """
        for name, content in extra.items():
            path = self.folder / name
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            _sync(path)
        self.flush()
        self._close_files()
        if self.target.suffix == ".safetensors":
            [file] = [path for path in self.folder.iterdir() if path.suffix == ".safetensors"]
            os.replace(file, self.target)
        else:
            self._publish_folder(overwrite)
        _sync(self.target.parent)

    def _publish_folder(self, overwrite: bool) -> None:
        (self.folder / JOURNAL).unlink()
        (self.folder / LOCK).unlink()
        _sync(self.folder)
        if self.target.exists() and not overwrite:
            os.replace(self.folder, self.target)  # an empty folder gives way, another one raises
        else:
            replace_folder(self.folder, self.target)

    def discard(self) -> None:
        """Remove everything that was written."""
        self._close_files()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def close(self) -> None:
        """Release files and the lock; what was written stays for ``--resume``."""
        self._close_files()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None and self.target.suffix == ".safetensors" and self.folder.exists():
            shutil.rmtree(self.folder)

    def _close_files(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def work_folder(target: Path) -> Path:
    """Return the folder in which an output grows."""
    return target.parent / f".{target.name[:200]}.merging"


def write_at(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    """Write all bytes at an offset."""
    view = memoryview(data)
    while len(view):
        if hasattr(os, "pwrite"):
            count = os.pwrite(descriptor, view, offset)
        else:
            with _SEEKING:
                os.lseek(descriptor, offset, os.SEEK_SET)
                count = os.write(descriptor, view)
        view, offset = view[count:], offset + count


_SEEKING = threading.Lock()


def _lock(path: Path, target: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        import fcntl
    except ImportError:
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise CheckpointError(
            f"{target}: another merge is writing it; wait for that one or choose another output"
        ) from None
    return descriptor


def _allocated(path: Path) -> int:
    if not path.exists():
        return 0
    found = path.stat()
    return getattr(found, "st_blocks", 0) * 512


def _sync(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
