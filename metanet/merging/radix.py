"""Exact order statistics of magnitudes without a sort: a bracket from a sample, or radix selection.

The bit pattern of a non-negative float grows with its value. A sample says between which leading 16 bits
(the *digit*) the k-th largest magnitude must lie; one pass counts what lies above this bracket and collects
the few values inside, among which it is found exactly. Where the bracket misses, or would hold too much, and
for small tensors, it is found digit by digit: a histogram of the leading 16 bits, then one of the next within
that bin. Memory is for the values in a bracket and not for the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import Floats
from metanet.merging.method import Pass
from metanet.merging.stretch import STRETCH, Stretch

DIGIT = 16
SAMPLE = 1 / 16
SAMPLED_FROM = 16 * STRETCH
"""Size of a tensor from which on a sample pays."""
MARGIN = 5.0
"""Standard errors, between stretches, by which a bracket reaches beyond the sample's estimate."""
WIDEST = 0.1
"""Fraction of a tensor beyond which a bracket is not used."""

Magnitudes = Callable[[Stretch], Sequence[Floats]]
"""Stretch -> the non-negative numbers to rank, one array for each ranking."""
Counted = tuple[NDArray[Any], NDArray[np.int64]]
"""Distinct bit patterns or digits in ascending order, and how often each occurs."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The largest ``count`` of a tensor's magnitudes: those above ``threshold``, and some that equal it.

    Args:
        threshold: the smallest magnitude that belongs to them; infinite if none does.
        ties: how many elements equal to the threshold belong to them, per stretch: the first ones in the
            tensor's order, so that exactly ``count`` elements belong.
        present: how many elements of each stretch equal the threshold.
    """

    threshold: float
    ties: NDArray[np.int64]
    present: NDArray[np.int64]

    def mask(self, magnitudes: Floats, stretch: int) -> NDArray[np.bool_]:
        """Tell which of a stretch's magnitudes belong to the largest."""
        quota, present = int(self.ties[stretch]), int(self.present[stretch])
        chosen: NDArray[np.bool_] = magnitudes >= self.threshold if quota else magnitudes > self.threshold
        if 0 < quota < present:
            chosen[np.flatnonzero(magnitudes == self.threshold)[quota:]] = False
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
        R. W. Floyd, R. L. Rivest, Expected time bounds for selection, CACM 1975 (the sample's bracket).
        https://doi.org/10.1145/360680.360691
        D. E. Knuth, *The Art of Computer Programming* 3, 5.2.5 (radix methods).
    """
    cuts: list[Cut | None] = [None] * len(counts)
    if size >= SAMPLED_FROM:
        cuts = yield from _bracketed(magnitudes, counts, size)
    open_ = [i for i, cut in enumerate(cuts) if cut is None]
    if open_:

        def remaining(stretch: Stretch) -> list[Floats]:
            arrays = magnitudes(stretch)
            return [arrays[i] for i in open_]

        found = yield from _digit_by_digit(remaining, [counts[i] for i in open_])
        for i, cut in zip(open_, found, strict=True):
            cuts[i] = cut
    return [cut for cut in cuts if cut is not None]


def _bracketed(
    magnitudes: Magnitudes, counts: Sequence[int], size: int
) -> Generator[Pass, list[Any], list[Cut | None]]:
    """Find cuts by brackets from a sample; None where that did not work out."""
    sampled = yield Pass(lambda stretch: [_digits(array) for array in magnitudes(stretch)], SAMPLE)
    brackets = [
        _bracket([partial[i] for partial in sampled], count / size) if 0 < count < size else None
        for i, count in enumerate(counts)
    ]
    if not any(brackets):
        return [None] * len(counts)

    def collect(stretch: Stretch) -> list[tuple[int, Counted] | None]:
        return [
            None if bracket is None else _inside(array, bracket)
            for array, bracket in zip(magnitudes(stretch), brackets, strict=True)
        ]

    partials = yield Pass(collect)
    return [
        None if bracket is None else _cut_inside([partial[i] for partial in partials], count)
        for i, (bracket, count) in enumerate(zip(brackets, counts, strict=True))
    ]


def _bracket(samples: Sequence[Counted], share: float) -> tuple[int, int] | None:
    """Return the first and the last digit between which a fraction's threshold surely lies."""
    total = np.zeros(1 << DIGIT, np.int64)
    for digits, counted in samples:
        total[digits] += counted
    above = np.cumsum(total[::-1])[::-1] / total.sum()
    centre = int(np.flatnonzero(above >= min(share, above[0]))[-1])
    fractions = np.array([c[d >= centre].sum() / max(1, c.sum()) for d, c in samples])
    error = MARGIN * (float(fractions.std()) / np.sqrt(len(fractions)) + 1 / np.sqrt(total.sum()) / 2)
    inside = np.flatnonzero((above >= share - error) & (above - total / total.sum() <= share + error))
    first, last = min(int(inside[0]), centre), max(int(inside[-1]), centre)
    return (first, last) if total[first : last + 1].sum() <= WIDEST * total.sum() else None


def _inside(values: Floats, bracket: tuple[int, int]) -> tuple[int, Counted]:
    bits = _bits(values)
    shift = 8 * values.itemsize - DIGIT
    low, high = bracket[0] << shift, ((bracket[1] + 1) << shift) - 1
    reaches = bits >= low
    beyond = bits > high
    above = int(np.count_nonzero(beyond))
    reaches ^= beyond
    patterns, counts = np.unique(bits[reaches], return_counts=True)
    return above, (patterns, counts)


def _cut_inside(partials: Sequence[tuple[int, Counted]], count: int) -> Cut | None:
    rank = count - sum(above for above, _ in partials)
    patterns = np.concatenate([found for _, (found, _) in partials])
    counts = np.concatenate([found for _, (_, found) in partials])
    if not 0 < rank <= counts.sum():
        return None
    distinct, place = np.unique(patterns, return_inverse=True)
    total = np.bincount(place, weights=counts).astype(np.int64)
    at = int(np.flatnonzero(np.cumsum(total[::-1])[::-1] >= rank)[-1])
    ties = rank - int(total[at + 1 :].sum())
    return _make_cut(distinct[at : at + 1], [found for _, found in partials], distinct[at], ties)


def _make_cut(pattern: NDArray[Any], partials: Sequence[Counted], key: Any, ties: int) -> Cut:
    here = np.zeros(len(partials), np.int64)
    for i, (found, counts) in enumerate(partials):
        at = int(np.searchsorted(found, key))
        if at < len(found) and found[at] == key:
            here[i] = counts[at]
    before = np.concatenate([[0], np.cumsum(here)[:-1]])
    threshold = float(pattern.view(np.float32 if pattern.itemsize == 4 else np.float64)[0])
    return Cut(threshold, np.clip(ties - before, 0, here), here)


def _digit_by_digit(magnitudes: Magnitudes, counts: Sequence[int]) -> Generator[Pass, list[Any], list[Cut]]:
    states = [_Selection(count) for count in counts]

    def digits(stretch: Stretch) -> list[tuple[int, Counted]]:
        return [state.partial(array) for state, array in zip(states, magnitudes(stretch), strict=True)]

    while True:
        partials = yield Pass(digits)
        done = [state.narrow([partial[i] for partial in partials]) for i, state in enumerate(states)]
        if all(done):
            return [state.cut for state in states if state.cut is not None]


class _Selection:
    """The search for one order statistic digit by digit."""

    def __init__(self, count: int) -> None:
        self.count = self.rank = count
        self.prefix = 0
        self.level = 0
        self.cut: Cut | None = None

    def partial(self, values: Floats) -> tuple[int, Counted]:
        width = 8 * values.itemsize
        if self.level == 0 or self.cut is not None:
            return width, _digits(values)
        bits = _bits(values)
        shift = width - DIGIT * (self.level + 1)
        inside = bits[np.right_shift(bits, shift + DIGIT) == self.prefix]
        low = np.bitwise_and(np.right_shift(inside, shift), 0xFFFF).astype(np.uint16)
        digits, counts = np.unique(low, return_counts=True)
        return width, (digits, counts)

    def narrow(self, partials: Sequence[tuple[int, Counted]]) -> bool:
        """Settle one more digit; tell whether all are."""
        if self.cut is not None:
            return True
        if not partials or self.count <= 0:
            none = np.zeros(max(1, len(partials)), np.int64)
            self.cut = Cut(np.inf, none, none)
            return True
        width = partials[0][0]
        total = np.zeros(1 << DIGIT, np.int64)
        for _, (digits, counts) in partials:
            total[digits] += counts
        above = np.cumsum(total[::-1])[::-1]
        # The last digit at which at least `rank` elements lie at or above it.
        digit = int(np.flatnonzero(above >= min(self.rank, int(above[0])))[-1])
        self.rank -= int(above[digit] - total[digit])
        self.prefix = (self.prefix << DIGIT) | digit
        self.level += 1
        if DIGIT * self.level == width:
            pattern = np.array([self.prefix], np.uint32 if width == 32 else np.uint64)
            self.cut = _make_cut(pattern, [found for _, found in partials], digit, self.rank)
        return self.cut is not None


def _bits(values: Floats) -> NDArray[Any]:
    bits: NDArray[Any] = values.view(np.uint32 if values.itemsize == 4 else np.uint64)
    return bits


def _digits(values: Floats) -> Counted:
    """Count the leading digits of magnitudes."""
    shifted = np.right_shift(_bits(values), 8 * values.itemsize - DIGIT)
    counts = np.bincount(shifted.astype(np.intp))
    digits = np.flatnonzero(counts)
    return digits.astype(np.uint16), counts[digits]
