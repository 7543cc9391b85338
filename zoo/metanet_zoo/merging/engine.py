"""Running a plan: every tensor streamed from its sources through its method to its place in the output."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from metanet.merging.tensor import Mapper, NonFiniteError, Span, find_nonfinite, merge_tensor
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.job import Job
from metanet_zoo.merging.job_io import JobIO
from metanet_zoo.merging.shards import Place
from metanet_zoo.merging.workspace import Workspace

T = TypeVar("T")
COPY_BYTES = 1 << 20
Progress = Callable[[str, int], None]
"""Called with a tensor's name and its bytes when it is done."""


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
        merge_tensor(job.task, io, mapper, output_tells=True)
        if job.task.method.arithmetic and not io.finite and not allow_nonfinite:
            io.pairs = False
            find_nonfinite(job.task, io)
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
