"""Merging one tensor, stretch by stretch: read, measure as often as the method asks, map, write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np

from metanet.merging.floats import Floats, stays_finite
from metanet.merging.method import Method, Pass, run_statistics
from metanet.merging.stretch import LONG_STRETCH, STRETCH, Settings, Stretch, row_length, stretches

T = TypeVar("T")

SPAN = 16
"""Stretches that one thread works off in a row; of no influence on the results."""

Span = tuple[tuple[int, int, int], ...]
"""``index, start, stop`` of consecutive stretches."""


class Mapper(Protocol):
    """Applies a function to spans, perhaps in several threads, and gives the results in their order."""

    def __call__(self, function: Callable[[Span], T], spans: Iterable[Span]) -> Iterable[T]:
        """Return the results."""
        ...


class TensorIO(Protocol):
    """Where a tensor's values come from and go to; called by several threads at once."""

    def read(self, model: int, start: int, stop: int, out: Floats) -> None:
        """Fill ``out`` with values ``start:stop`` of a model; then base, importances or Gram matrices."""
        ...

    def write(self, start: int, stop: int, values: Floats) -> None:
        """Store the output's values ``start:stop``; may overwrite the array."""
        ...


class NonFiniteError(ValueError):
    """An input that holds NaN or infinities.

    Attributes:
        model: which one; the base comes behind the models.
        first: index of the first such value in the tensor.
        count: how many its stretch holds.
    """

    def __init__(self, model: int, first: int, count: int) -> None:
        super().__init__(f"input {model} holds {count} NaN or infinite values from index {first} on")
        self.model, self.first, self.count = model, first, count


@dataclass(frozen=True, slots=True)
class TensorTask:
    """What to compute for one tensor.

    Args:
        tensor: its name in the output.
        shape: of the inputs and the output.
        method: the method.
        settings: its parameters here.
        models: number of models beside the base.
        has_base: whether a base comes behind them.
        seed: of random masks.
        dtype: working dtype, float32 or float64.
        difference_dtype: see `Stretch`.
        allow_nonfinite: whether NaN and infinities in the inputs are let through.
        grams: whether a Gram matrix per model comes behind models and base, for ``method.prepare``.
    """

    tensor: str
    shape: tuple[int, ...]
    method: Method
    settings: Settings
    models: int
    has_base: bool = False
    seed: int = 0
    dtype: type[np.float32] | type[np.float64] = np.float32
    difference_dtype: str | None = None
    allow_nonfinite: bool = False
    grams: bool = False


def merge_tensor(
    task: TensorTask, io: TensorIO, mapper: Mapper | None = None, *, output_tells: bool = False
) -> None:
    """Merge one tensor; every input is read once more than the method has passes.

    Args:
        task: what to compute.
        io: where values come from and go to.
        mapper: how to run over the spans; None runs one after the other.
        output_tells: leave inputs of arithmetic unchecked, since their NaN and infinities reach the output:
            the caller looks there, and `find_nonfinite` says which input it was.

    Raises:
        NonFiniteError: an input holds NaN or infinities, and they are not allowed.
        ValueError: the method refuses its parameters.
    """
    run = mapper or _one_by_one
    checked = task.allow_nonfinite or (output_tells and task.method.arithmetic)

    def read_pass(wanted: Pass) -> list[Any]:
        nonlocal checked
        check = not checked

        def measure(span: Span) -> list[Any]:
            return [wanted.partial(stretch) for stretch in _read(task, io, span, check, wanted.share)]

        partials = [partial for found in run(measure, cut_spans(task)) for partial in found]
        checked = checked or wanted.share == 1
        return partials

    statistics = run_statistics(task.method, task.settings, task.shape, task.has_base, read_pass)
    if task.grams:
        statistics = (*statistics, _prepared(task, io))
    check = not checked

    def write(span: Span) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            for stretch in _read(task, io, span, check):
                values = task.method.combine(stretch, *statistics)
                io.write(stretch.start, stretch.start + values.size, values.reshape(-1))

    for _ in run(write, cut_spans(task)):
        pass


def find_nonfinite(task: TensorTask, io: TensorIO) -> None:
    """Read all inputs.

    Raises:
        NonFiniteError: one of them holds NaN or infinities.
    """
    for span in cut_spans(task):
        for _ in _read(task, io, span, check=True):
            pass


def _prepared(task: TensorTask, io: TensorIO) -> Any:
    """Read the Gram matrices and let the method make of them what it needs."""
    assert task.method.prepare is not None
    size = row_length(task.shape)
    grams = []
    for number in range(task.models):
        values = np.empty(size * size, np.float64)
        io.read(task.models + task.has_base + number, 0, size * size, values)
        if not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values))
            raise NonFiniteError(task.models + task.has_base + number, int(bad[0]), int(bad.size))
        grams.append(values.reshape(size, size))
    return task.method.prepare(task.settings, grams)


def cut_spans(task: TensorTask) -> Iterator[Span]:
    """Yield the tensor's stretches, in groups that one thread works off."""
    length = LONG_STRETCH if task.method.arithmetic else STRETCH
    ends = stretches(task.shape, rows=task.method.rows, length=length)
    numbered = ((i, *both) for i, both in enumerate(ends))
    while span := tuple(islice(numbered, SPAN * STRETCH // length)):
        yield span


def _one_by_one(function: Callable[[Span], T], spans: Iterable[Span]) -> Iterable[T]:
    return map(function, spans)


class _Buffers(threading.local):
    """One array per input and thread, reused from stretch to stretch: fresh pages cost more than sums."""

    def __init__(self) -> None:
        self.arrays: list[Floats] = []

    def take(self, count: int, size: int, dtype: type[np.float32] | type[np.float64]) -> list[Floats]:
        if len(self.arrays) < count or self.arrays[0].size < size or self.arrays[0].dtype != dtype:
            self.arrays = [np.empty(max(size, STRETCH), dtype) for _ in range(count)]
        return [array[:size] for array in self.arrays[:count]]


_BUFFERS = _Buffers()


def _read(task: TensorTask, io: TensorIO, span: Span, check: bool, share: float = 1.0) -> Iterator[Stretch]:
    """Yield a span's stretches, or the first part of each; one's arrays are overwritten by the next."""
    for index, start, end in span:
        stop = end if share == 1 else start + _part(end - start, share, task)
        weighed = task.models if task.method.importances else 0
        behind = task.models + task.has_base
        arrays = _BUFFERS.take(behind + weighed, stop - start, task.dtype)
        for model, array in enumerate(arrays):
            io.read(model, start, stop, array)
            if check and not stays_finite(array):
                bad = np.flatnonzero(~np.isfinite(array))
                raise NonFiniteError(model, start + int(bad[0]), int(bad.size))
        yield Stretch(
            values=tuple(arrays[: task.models]),
            base=arrays[task.models] if task.has_base else None,
            settings=task.settings,
            tensor=task.tensor,
            shape=task.shape,
            start=start,
            index=index,
            seed=task.seed,
            difference_dtype=task.difference_dtype,
            importances=tuple(arrays[behind:]),
        )


def _part(size: int, share: float, task: TensorTask) -> int:
    if not task.method.rows:
        return max(1, int(size * share))
    columns = row_length(task.shape)
    return columns * max(1, int(size * share) // columns)


class ArrayIO:
    """Arrays in memory as inputs and output: for one's own tensors and for tests.

    Args:
        inputs: ``[n]`` per model, the base last.
        out: ``[n]``.
    """

    def __init__(self, inputs: Sequence[Floats], out: Floats) -> None:
        self.inputs, self.out = inputs, out

    def read(self, model: int, start: int, stop: int, out: Floats) -> None:
        """Fill ``out`` with values ``start:stop`` of a model."""
        np.copyto(out, self.inputs[model][start:stop], casting="same_kind")

    def write(self, start: int, stop: int, values: Floats) -> None:
        """Store the output's values ``start:stop``."""
        self.out[start:stop] = values
