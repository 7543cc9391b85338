"""What a merge will take: memory from the plan, time from a sample of the work itself."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass

from metanet.merging.floats import Floats, decode, encode
from metanet.merging.stretch import LONG_STRETCH, STRETCH, row_length
from metanet.merging.tensor import NonFiniteError, TensorTask, merge_tensor
from metanet_zoo.merging.job import Job
from metanet_zoo.merging.plan import Plan

FIXED_BYTES = 96 << 20
"""Interpreter, NumPy, headers and plans."""
TEMPORARIES = 10
"""Arrays of a stretch's size that a method may hold at once beside its inputs."""
MOST_THREADS = 4
COPY_RATE = 1e9
"""Bytes per second of a merge that only copies."""
SAMPLE = 4
"""Stretches that are worked off for the estimate of time."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Time in seconds, peak of anonymous memory in bytes, and the threads that these are for."""

    seconds: float
    memory: int
    threads: int


def memory_per_thread(plan: Plan) -> int:
    """Return the bytes that each thread works in."""
    most = 0
    for job in plan.jobs:
        if job.task is not None:
            length = LONG_STRETCH if job.task.method.arithmetic else STRETCH
            if job.task.method.rows:
                length = max(length, row_length(job.task.shape))
            size = 4 if job.task.dtype.__name__ == "float32" else 8
            most = max(most, length * size * (len(job.inputs) + TEMPORARIES))
    return most


def gram_memory(plan: Plan) -> int:
    """Return the bytes that the Gram matrices of a layer's inputs take: as read, as maps, while solved."""
    solved = [job for job in plan.jobs if job.task is not None and job.task.grams]
    return max((8 * row_length(job.entry.shape) ** 2 * (len(job.inputs) + 4) for job in solved), default=0)


def fitting_threads(plan: Plan, threads: int | None, max_memory: int | None) -> int:
    """Return how many threads to take.

    Raises:
        ValueError: not even one stays below ``max_memory``.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"found {threads} threads, expected at least 1")
    count = threads or min(os.cpu_count() or 1, MOST_THREADS)
    if max_memory is None:
        return count
    each = memory_per_thread(plan)
    fixed = FIXED_BYTES + gram_memory(plan)
    fitting = (max_memory - fixed) // max(1, each)
    if fitting < 1:
        raise ValueError(
            f"this merge takes {fixed + each:,} bytes of memory with one thread, and at most "
            f"{max_memory:,} are allowed; allow more"
        )
    return min(count, fitting)


def estimate_merge(plan: Plan, threads: int, *, sample: bool) -> Estimate:
    """Estimate a merge; its time (zero without ``sample``) by doing a little of it."""
    memory = FIXED_BYTES + gram_memory(plan) + threads * memory_per_thread(plan)
    jobs = [job for job in plan.jobs if job.task is not None]
    if not sample:
        return Estimate(0.0, memory, threads)
    if not jobs:
        copied = sum(job.entry.size * job.entry.item_size for job in plan.jobs)
        return Estimate(copied / COPY_RATE, memory, threads)
    largest = max(jobs, key=lambda job: job.entry.size)
    values = sum(job.entry.size for job in plan.jobs)
    return Estimate(values * _seconds_per_value(largest) / min(threads, os.cpu_count() or 1), memory, threads)


class _SampleIO:
    def __init__(self, job: Job) -> None:
        self.job = job

    def read(self, model: int, start: int, stop: int, out: Floats) -> None:
        import numpy as np

        found = self.job.inputs[model]
        raw = np.empty((stop - start) * found.entry.item_size, np.uint8)
        found.source.read(found.name, start, stop, raw)
        decode(raw, found.entry.dtype, out)

    def write(self, start: int, stop: int, values: Floats) -> None:
        import numpy as np

        encode(values, self.job.entry.dtype, np.empty(values.size * self.job.entry.item_size, np.uint8))


def _seconds_per_value(job: Job) -> float:
    assert job.task is not None
    columns = row_length(job.entry.shape)
    rows = job.entry.size // columns
    taken = max(1, min(rows, SAMPLE * STRETCH // columns))
    shape = (taken, *job.entry.shape[1:]) if len(job.entry.shape) > 1 else job.entry.shape
    task: TensorTask = dataclasses.replace(job.task, shape=shape)
    began = time.perf_counter()
    try:
        merge_tensor(task, _SampleIO(job))
    except NonFiniteError:
        return 0.0
    return (time.perf_counter() - began) / (taken * columns)
