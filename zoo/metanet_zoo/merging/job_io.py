"""Reading a job's inputs as working floats and writing its output, several stretches to a system call."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from metanet.merging.floats import FLOAT_DTYPES, Bytes, Floats, decode, encode
from metanet.merging.pairs import decode_pairs, encode_pairs
from metanet.merging.stretch import STRETCH
from metanet.merging.tensor import SPAN
from metanet_zoo.merging.job import Job
from metanet_zoo.merging.shards import Place
from metanet_zoo.merging.workspace import Workspace

WINDOW = 4 * STRETCH
"""Values that are read or written at once: half a megabyte of bf16."""


@dataclass(slots=True)
class _Window:
    """Consecutive values of one tensor as they are stored: ``start:stop`` of them are in the buffer."""

    owner: JobIO | None = None
    start: int = 0
    stop: int = 0
    room: int = 0
    buffer: Bytes = field(default_factory=lambda: np.empty(0, np.uint8))

    def begin(self, owner: JobIO, start: int, room: int, item_size: int) -> None:
        self.owner, self.start, self.stop, self.room = owner, start, start, room
        if self.buffer.size < room * item_size:
            self.buffer = np.empty(room * item_size, np.uint8)


class _Windows(threading.local):
    """The windows of one thread: one per input, and one for the output."""

    def __init__(self) -> None:
        self.inputs: list[_Window] = []
        self.output = _Window()

    def input(self, number: int) -> _Window:
        while len(self.inputs) <= number:
            self.inputs.append(_Window())
        return self.inputs[number]


_WINDOWS = _Windows()


class JobIO:
    """Reads a job's inputs as working floats and writes its output where the layout says.

    Where arithmetic alone is done to bf16, values come in the order of `decode_pairs`.

    Args:
        job: the job.
        place: where its output goes.
        workspace: the output's files.
        cast: dtype to which inputs are rounded first.
    """

    def __init__(self, job: Job, place: Place, workspace: Workspace, cast: str | None) -> None:
        self.job, self.place, self.workspace, self.cast = job, place, workspace, cast
        self.finite = True
        dtypes = {found.entry.dtype for found in job.inputs} | {place.entry.dtype}
        plain = job.task is not None and job.task.method.arithmetic and job.task.dtype is np.float32
        self.pairs = plain and dtypes == {"BF16"} and cast is None

    def read(self, model: int, start: int, stop: int, out: Floats) -> None:
        """Fill ``out`` with values ``start:stop`` of an input."""
        found = self.job.inputs[model]
        size = found.entry.item_size
        window = _WINDOWS.input(model)
        if window.owner is not self or start < window.start or stop > window.stop:
            window.begin(self, start, _room(stop - start), size)
            window.stop = min(start + window.room, found.entry.size)
            part = window.buffer[: (window.stop - start) * size]
            found.source.read(found.name, start, window.stop, part)
        raw = window.buffer[(start - window.start) * size : (stop - window.start) * size]
        if self.pairs and not out.size & 1:
            decode_pairs(raw, out)
            return
        decode(raw, found.entry.dtype, out)
        if self.cast is not None and self.cast != found.entry.dtype:
            # Rounding to a narrower dtype first is what `dtype` means in other tools.
            narrow = np.empty(out.size * FLOAT_DTYPES[self.cast], np.uint8)
            encode(out, self.cast, narrow)
            decode(narrow, self.cast, out)

    def write(self, start: int, stop: int, values: Floats) -> None:
        """Store the output's values ``start:stop``; they go to the file when their window is full."""
        entry = self.place.entry
        size = entry.item_size
        window = _WINDOWS.output
        if window.owner is not self or start != window.stop:
            window.begin(self, start, _room(stop - start), size)
        raw = window.buffer[(start - window.start) * size : (stop - window.start) * size]
        paired = self.pairs and not values.size & 1
        if not (encode_pairs(values, raw) if paired else encode(values, entry.dtype, raw)):
            self.finite = False
        window.stop = stop
        if stop - window.start >= window.room or stop == entry.size:
            whole = window.buffer[: (stop - window.start) * size]
            self.workspace.write(self.place.file, whole.data, self.place.offset + window.start * size)
            window.owner = None


def _room(length: int) -> int:
    """Return the values of a window of stretches of one length; a thread works off whole windows."""
    count = max(1, SPAN * STRETCH // length)
    while count > 1 and count * length > WINDOW:
        count //= 2
    return count * length
