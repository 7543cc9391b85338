"""Exact order statistics of magnitudes by radix selection: histograms over bit patterns, no sort.

The bit pattern of a non-negative float grows with its value, so the k-th largest magnitude is found digit by
digit: a histogram of the leading 16 bits says in which bin it lies, one of the next 16 bits within that bin
where in it. Two passes settle float32, four float64, with memory for 65,536 counts and not for the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import Floats
from metanet.merging.method import Pass
from metanet.merging.stretch import Stretch

DIGIT = 16
Magnitudes = Callable[[Stretch], Sequence[Floats]]
"""Stretch -> the non-negative numbers to rank, one array for each ranking."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The largest ``count`` of a tensor's magnitudes: those above ``threshold``, and some that equal it.

    Args:
        threshold: the smallest magnitude that belongs to them; infinite if none does.
        ties: how many elements equal to the threshold belong to them, per stretch: the first ones in the
            tensor's order, so that exactly ``count`` elements belong.
        tied: how many elements equal the threshold in the whole tensor.
    """

    threshold: float
    ties: NDArray[np.int64]
    tied: int

    def mask(self, magnitudes: Floats, stretch: int) -> NDArray[np.bool_]:
        """Tell which of a stretch's magnitudes belong to the largest."""
        quota = int(self.ties[stretch])
        # As many ties as there are elements in the stretch can only mean all of them.
        chosen: NDArray[np.bool_] = magnitudes >= self.threshold if quota else magnitudes > self.threshold
        if quota:
            equal = np.flatnonzero(magnitudes == self.threshold)
            chosen[equal[quota:]] = False
        return chosen


def largest(
    magnitudes: Magnitudes, counts: Sequence[int], size: int
) -> Generator[Pass, list[Any], list[Cut]]:
    """Find where the ``counts[i]`` largest numbers of ranking ``i`` begin.

    Args:
        magnitudes: what to rank; the same arrays' order as ``counts``.
        counts: how many to take, between 0 and ``size``.
        size: number of elements of the tensor.

    Yields:
        passes over the tensor.

    Returns:
        a `Cut` for each ranking.

    References:
        D. E. Knuth, *The Art of Computer Programming* 3, 5.2.5 (radix methods).
    """
    states = [_Selection(count) for count in counts]

    def digits(stretch: Stretch) -> list[tuple[Any, ...]]:
        arrays = magnitudes(stretch)
        return [state.partial(array) for state, array in zip(states, arrays, strict=True)]

    while True:
        partials = yield Pass(digits)
        done = [state.narrow([partial[i] for partial in partials], size) for i, state in enumerate(states)]
        if all(done):
            return [state.cut for state in states]


class _Selection:
    """The search for one order statistic: the digits settled so far."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.rank = count
        self.prefix = 0
        self.level = 0
        self.width = 0
        self.cut = Cut(np.inf, np.zeros(0, np.int64), 0)

    def partial(self, values: Floats) -> tuple[Any, ...]:
        width = 8 * values.itemsize
        bits = values.view(np.uint32 if width == 32 else np.uint64)
        shift = width - DIGIT * (self.level + 1)
        if shift < 0:
            return width, np.zeros(0, np.uint16), np.zeros(0, np.int64)
        if self.level == 0:
            counts = np.bincount(np.right_shift(bits, shift).astype(np.intp), minlength=0)
            digits = np.flatnonzero(counts)
            return width, digits.astype(np.uint16), counts[digits]
        inside = np.right_shift(bits, shift + DIGIT) == self.prefix
        low = np.bitwise_and(np.right_shift(bits[inside], shift), 0xFFFF)
        digits, counts = np.unique(low, return_counts=True)
        return width, digits.astype(np.uint16), counts

    def narrow(self, partials: Sequence[tuple[Any, ...]], size: int) -> bool:
        """Settle one more digit; tell whether all are."""
        if not partials or self.count <= 0:
            self.cut = Cut(np.inf, np.zeros(max(1, len(partials)), np.int64), 0)
            return True
        width = partials[0][0]
        if DIGIT * self.level >= width:
            return True
        total = np.zeros(1 << DIGIT, np.int64)
        for _, digits, counts in partials:
            total[digits] += counts
        above = np.cumsum(total[::-1])[::-1]
        # The last digit at which at least `rank` elements lie at or above it.
        digit = int(np.flatnonzero(above >= min(self.rank, int(above[0])))[-1])
        self.rank -= int(above[digit] - total[digit])
        self.prefix = (self.prefix << DIGIT) | digit
        self.level += 1
        if DIGIT * self.level < width:
            return False
        here = np.array(
            [int(counts[digits == digit].sum()) for _, digits, counts in partials], dtype=np.int64
        )
        before = np.concatenate([[0], np.cumsum(here)[:-1]])
        pattern = np.array([self.prefix], np.uint32 if width == 32 else np.uint64)
        threshold = float(pattern.view(np.float32 if width == 32 else np.float64)[0])
        self.cut = Cut(threshold, np.clip(self.rank - before, 0, here), int(here.sum()))
        return True
