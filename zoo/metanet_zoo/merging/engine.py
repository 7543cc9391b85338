"""Running a plan: every tensor streamed from its sources through its method to its place in the output."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from metanet.merging.floats import FLOAT_DTYPES, Bytes, Floats, decode, encode
from metanet.merging.stretch import STRETCH
from metanet.merging.tensor import Mapper, NonFiniteError, Span, merge_tensor
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.job import Job
from metanet_zoo.merging.shards import Place
from metanet_zoo.merging.workspace import Workspace

T = TypeVar("T")
COPY_BYTES = 1 << 20
Progress = Callable[[str, int], None]
"""Called with a tensor's name and its bytes when it is done."""


class _Raw(threading.local):
    """Buffers for stored bytes, one set per thread."""

    def __init__(self) -> None:
        self.reading = np.empty(0, np.uint8)
        self.writing = np.empty(0, np.uint8)

    def read_buffer(self, size: int) -> Bytes:
        if self.reading.size < size:
            self.reading = np.empty(max(size, 8 * STRETCH), np.uint8)
        return self.reading[:size]

    def write_buffer(self, size: int) -> Bytes:
        if self.writing.size < size:
            self.writing = np.empty(max(size, 8 * STRETCH), np.uint8)
        return self.writing[:size]


_RAW = _Raw()


class JobIO:
    """Reads a job's inputs as working floats and writes its output where the layout says."""

    def __init__(self, job: Job, place: Place, workspace: Workspace, cast: str | None) -> None:
        self.job, self.place, self.workspace, self.cast = job, place, workspace, cast
        self.finite = True

    def read(self, model: int, start: int, stop: int, out: Floats) -> None:
        """Fill ``out`` with values ``start:stop`` of an input."""
        found = self.job.inputs[model]
        raw = _RAW.read_buffer((stop - start) * found.entry.item_size)
        found.source.read(found.name, start, stop, raw)
        decode(raw, found.entry.dtype, out)
        if self.cast is not None and self.cast != found.entry.dtype:
            # Rounding to a narrower dtype first is what `dtype` means in other tools.
            narrow = _RAW.write_buffer(out.size * 8)[: out.size * FLOAT_DTYPES[self.cast]]
            encode(out, self.cast, narrow)
            decode(narrow, self.cast, out)

    def write(self, start: int, stop: int, values: Floats) -> None:
        """Store the output's values ``start:stop``."""
        entry = self.place.entry
        raw = _RAW.write_buffer((stop - start) * entry.item_size)
        if not encode(values, entry.dtype, raw):
            self.finite = False
        self.workspace.write(self.place.file, raw.data, self.place.offset + start * entry.item_size)


def run_job(
    job: Job, place: Place, workspace: Workspace, mapper: Mapper, *, allow_nonfinite: bool, cast: str | None
) -> bool:
    """Compute one tensor of the output.

    Args:
        job: what to do.
        place: where to write it.
        workspace: the output's files.
        mapper: how to run over the stretches.
        allow_nonfinite: let NaN and infinities pass.
        cast: dtype to which inputs are rounded first.

    Returns:
        whether all values written are finite.

    Raises:
        CheckpointError: an input or the output has NaN or infinities; tensors that must be equal differ.
    """
    if job.task is None:
        _copy(job, place, workspace)
        return True
    io = JobIO(job, place, workspace, cast)
    try:
        merge_tensor(job.task, io, mapper)
    except NonFiniteError as error:
        found = job.inputs[error.model]
        raise CheckpointError(
            f"{found.model}: tensor {found.name!r} holds NaN or infinite values (the first at index "
            f"{error.first}); mend the model, or let them pass with --allow-nonfinite"
        ) from None
    except ValueError as error:
        raise type(error)(f"tensor {job.name!r}: {error}") from None
    if not io.finite and not allow_nonfinite:
        raise CheckpointError(
            f"tensor {job.name!r} overflows {job.entry.dtype} though its inputs are finite; choose a wider "
            "out_dtype or other weights, or let it pass with --allow-nonfinite"
        )
    return io.finite


def _copy(job: Job, place: Place, workspace: Workspace) -> None:
    """Copy the first input; a counter takes the largest, other integers must agree in all inputs."""
    first, *others = job.inputs
    size = first.entry.item_size
    step = COPY_BYTES // size
    for start in range(0, first.entry.size, step):
        stop = min(start + step, first.entry.size)
        raw = np.empty((stop - start) * size, np.uint8)
        first.source.read(first.name, start, stop, raw)
        for other in others:
            theirs = np.empty_like(raw)
            other.source.read(other.name, start, stop, theirs)
            if job.counter:
                counts = raw.view(np.int64 if size == 8 else np.int32)
                np.maximum(counts, theirs.view(counts.dtype), out=counts)
            elif not np.array_equal(raw, theirs):
                raise CheckpointError(
                    f"tensor {job.name!r} is of {first.entry.dtype} and differs between {first.model} and "
                    f"{other.model}; integers cannot be averaged: make them equal or drop the tensor"
                )
        workspace.write(place.file, raw.data, place.offset + start * size)


def run_jobs(
    jobs: Iterable[Job],
    places: Mapping[str, Place],
    workspace: Workspace,
    *,
    threads: int,
    allow_nonfinite: bool = False,
    cast: str | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Compute the output, leaving out what an earlier run has finished.

    Args:
        jobs: one per tensor.
        places: where each goes.
        workspace: the output's files; its journal tells what is done.
        threads: number of threads that read, compute and write.
        allow_nonfinite: let NaN and infinities pass.
        cast: dtype to which inputs are rounded first.
        progress: told of every tensor done.

    Returns:
        the tensors that hold NaN or infinities.
    """
    strange: list[str] = []
    with _mapper(threads) as mapper:
        for job in jobs:
            size = job.entry.size * job.entry.item_size
            if job.name not in workspace.done:
                finite = run_job(
                    job, places[job.name], workspace, mapper, allow_nonfinite=allow_nonfinite, cast=cast
                )
                if not finite:
                    strange.append(job.name)
                workspace.finish_tensor(job.name, size)
            if progress is not None:
                progress(job.name, size)
    return strange


@contextmanager
def _mapper(threads: int) -> Iterator[Mapper]:
    if threads <= 1:
        yield lambda function, spans: map(function, spans)
        return
    with ThreadPoolExecutor(threads, "merge") as pool:

        def ordered(function: Callable[[Span], T], spans: Iterable[Span]) -> Iterator[T]:
            waiting: deque[Future[T]] = deque()
            try:
                for span in spans:
                    waiting.append(pool.submit(function, span))
                    if len(waiting) > 4 * threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

        yield ordered
