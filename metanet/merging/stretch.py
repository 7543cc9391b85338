"""What a merge method sees: one stretch of one tensor, of every model at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from metanet.merging.floats import Floats, round_to
from metanet.merging.masks import draw_key

STRETCH = 1 << 16
"""Values of a stretch; float32, a few of them fit the second-level cache together. Part of the results:
sums are formed stretch by stretch."""

LONG_STRETCH = 1 << 18
"""The same for methods of arithmetic alone, which sum nothing over a tensor: fewer calls weigh more there."""

Value = float | int | bool
"""What a parameter is set to for one tensor."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A method's parameters for one tensor.

    Args:
        shared: name -> value, for the whole merge.
        models: name -> value for every model, in the recipe's order (the base left out).
    """

    shared: Mapping[str, Value]
    models: tuple[Mapping[str, Value], ...]

    def number(self, name: str) -> float:
        """Return a parameter of the whole merge."""
        return float(self.shared[name])

    def flag(self, name: str) -> bool:
        """Return a switch of the whole merge."""
        return bool(self.shared[name])

    def each(self, name: str) -> tuple[float, ...]:
        """Return a parameter of every model."""
        return tuple(float(model[name]) for model in self.models)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive values of one tensor in every model.

    Args:
        values: ``[n]`` working floats per model, in the recipe's order (the base left out). A method may
            overwrite them.
        base: ``[n]`` working floats of the base, or None without one; likewise.
        settings: the method's parameters for this tensor.
        tensor: the tensor's name.
        shape: of the whole tensor.
        start: index of the first value in the flattened tensor.
        index: number of the stretch within the tensor.
        seed: of the merge.
        difference_dtype: dtype to which differences from the base are rounded, None to leave them exact.
        importances: ``[n]`` importances per model, for a method that asks for them.
    """

    values: tuple[Floats, ...]
    base: Floats | None
    settings: Settings
    tensor: str
    shape: tuple[int, ...]
    start: int
    index: int
    seed: int = 0
    difference_dtype: str | None = None
    importances: tuple[Floats, ...] = ()

    @property
    def size(self) -> int:
        """Number of values."""
        return self.values[0].size if self.values else self.reference.size

    @property
    def columns(self) -> int:
        """Length of a row: all dimensions but the first (a vector is one row)."""
        return row_length(self.shape)

    @property
    def reference(self) -> Floats:
        """The base's values; a method that needs a base may rely on them."""
        assert self.base is not None
        return self.base

    def differences(self) -> tuple[Floats, ...]:
        """Return ``values - base`` of every model in place of the values; the values alone without a base."""
        if self.base is None:
            return self.values
        for values in self.values:
            values -= self.base
        if self.difference_dtype is None:
            return self.values
        return tuple(round_to(values, self.difference_dtype) for values in self.values)

    def key(self, model: int) -> int:
        """Return the key of this tensor's random draws for a model."""
        return draw_key(self.seed, self.tensor, model)


def row_length(shape: tuple[int, ...]) -> int:
    """Return the length of a row of a tensor: all dimensions but the first; a vector is one row.

    Example:
        >>> row_length((5, 3, 2)), row_length((7,)), row_length(())
        (6, 7, 1)
    """
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


def last_axis(shape: tuple[int, ...]) -> int:
    """Return the length of a tensor's last dimension, 1 for a scalar."""
    return shape[-1] if shape else 1


def stretches(shape: tuple[int, ...], *, rows: bool, length: int = STRETCH) -> Iterator[tuple[int, int]]:
    """Cut a tensor into stretches.

    Args:
        shape: of the tensor.
        rows: whether stretches hold whole rows (at least one, however long).
        length: values of a stretch.

    Yields:
        ``start, stop`` in the flattened tensor.

    Example:
        >>> list(stretches((3, 40000), rows=True))
        [(0, 40000), (40000, 80000), (80000, 120000)]
    """
    size = math.prod(shape)
    step = length
    if rows and size:
        columns = row_length(shape)
        step = columns * max(1, length // columns)
    for start in range(0, size, step):
        yield start, min(start + step, size)
