"""Gains of a move: what every pairing of units would add to the inner product of two networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from math import pi

import torch
from torch import Tensor

from metanet.axis import Perm
from metanet.blocks import Block
from metanet.matching.moves import Move, Place
from metanet.spec import WeightSpec

Features = Callable[[int, Tensor, Place], Tensor]
"""Changes a block ``[outer, units, rest…]`` before it is compared (`metanet.matching.starts`)."""


@dataclass(slots=True)
class Gains:
    """Inner products of units of the first network (rows) with units of the second (columns).

    Args:
        rows: from rows and biases, ``[outer, n₁, n₁', n₂, n₂', …]`` along the chain of groups.
        readers: the same from columns that read the units; kept apart where a freedom tells them apart.
        biases: ``([n, f], [n, f])`` biases that a phase would shift.
        sign: number of an action that flips units; the readers are then all places where it does.
    """

    rows: Tensor | None = None
    readers: Tensor | None = None
    biases: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    sign: int | None = None

    @property
    def plain(self) -> Tensor | None:
        """Gains of permutations alone."""
        if self.rows is None or self.readers is None:
            return self.rows if self.readers is None else self.readers
        return self.rows + self.readers


def gains_of(
    spec: WeightSpec,
    move: Move,
    blocks: Sequence[Block],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    *,
    skip: Collection[int] = (),
    features: Features | None = None,
) -> dict[tuple[str, ...], Gains]:
    """Return the gains of a move by chain of groups.

    Args:
        spec: the spec.
        move: the groups that move.
        blocks: the blocks.
        a: values of the first network, one tensor per block.
        b: of the second, as permuted so far.
        skip: blocks that are not compared.
        features: compare these instead of the values.
    """
    found: dict[tuple[str, ...], Gains] = {}
    for place in move.places:
        if place.block in skip:
            continue
        gains = found.setdefault(place.chain, Gains())
        group = spec.group[place.chain[-1]]
        atom = blocks[place.block].atoms[place.inner[-1]]
        assert isinstance(atom, Perm)
        left, right = unfold(a[place.block], place), unfold(b[place.block], place)
        if features is not None:
            left, right = features(place.block, left, place), features(place.block, right, place)
        left, right = left.reshape(*left.shape[:2], -1), right.reshape(*right.shape[:2], -1)
        if place.sign is not None:
            gains.sign = place.sign
            gains.readers = _add_products(gains.readers, left, right)
        elif atom.role == "in" and group.freedoms:
            gains.readers = _add_products(gains.readers, left, right)
        else:
            gains.rows = _add_products(gains.rows, left, right)
        if atom.role == "bias" and group.freedom("phase") and features is None and len(place.chain) == 1:
            gains.biases.append((left[0], right[0]))
    for chain, gains in found.items():
        if len(chain) > 1:
            sizes = [spec.sizes[name] for name in chain]
            gains.rows = None if gains.rows is None else _paired(gains.rows, sizes)
            gains.readers = None if gains.readers is None else _paired(gains.readers, sizes)
    return found


def _add_products(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Add the inner products of ``[outer, n, r]`` with ``[outer, n', r]`` to a sum, in place."""
    if total is None:
        return torch.mm(left[0], right[0].T)[None] if len(left) == 1 else torch.bmm(left, right.mT)
    if len(left) == 1:
        total[0].addmm_(left[0], right[0].T)
    else:
        total.baddbmm_(left, right.mT)
    return total


def _paired(total: Tensor, sizes: Sequence[int]) -> Tensor:
    """Bring ``[outer, n₁·n₂·…, n₁'·n₂'·…]`` into the order ``[outer, n₁, n₁', n₂, n₂', …]``."""
    depth = len(sizes)
    order = [0, *(1 + i + half * depth for i in range(depth) for half in (0, 1))]
    return total.reshape(len(total), *sizes, *sizes).permute(order).contiguous()


def unfold(tensor: Tensor, place: Place) -> Tensor:
    """Return a block as ``[outer copies, units of the chain, *rest]``."""
    moved = tensor.permute(*place.outer, *place.inner, *place.rest)
    outer = [tensor.shape[dim] for dim in place.outer]
    units = [tensor.shape[dim] for dim in place.inner]
    rest = [tensor.shape[dim] for dim in place.rest]
    copies, count = 1, 1
    for size in outer:
        copies *= size
    for size in units:
        count *= size
    return moved.reshape(copies, count, *rest)


@dataclass(frozen=True, slots=True)
class Flips:
    """What the best signs, even flips and phases of every pair of units gain.

    Args:
        gains: ``[outer, n, n']`` with the best choice for every pair.
        values: kind of freedom -> the choice, ``[outer, n, n']``.
    """

    gains: Tensor
    values: dict[str, Tensor]


def with_flips(spec: WeightSpec, name: str, gains: Gains) -> Flips:
    r"""Choose for every pair of units what its isometries beside permutation gain most.

    With inner products R of rows, I of readers, and β of biases, sign s, even flip e and phase k gain

        s e R + s (-1)^k I - ½ ‖b_a - s e b_b - kπ/ω‖² + ½ ‖b_a‖² + ½ ‖b_b‖² - (s e) β .

    Args:
        spec: the spec.
        name: the group.
        gains: of the group alone.
    """
    group = spec.group[name]
    reference = gains.rows if gains.rows is not None else gains.readers
    assert reference is not None
    zero = torch.zeros_like(reference)
    rows = zero if gains.rows is None else gains.rows
    readers = zero if gains.readers is None else gains.readers
    signs = (1, -1) if group.freedom("sign") else (1,)
    evens = (1, -1) if group.freedom("even") else (1,)
    phase = group.freedom("phase")
    best = torch.full_like(reference, -torch.inf)
    chosen = {kind: torch.zeros_like(reference) for kind in ("sign", "even", "phase") if group.freedom(kind)}
    for sign in signs:
        for even in evens:
            for parity in (0, 1) if phase is not None and gains.biases else (0,):
                value = sign * even * rows + sign * (-1) ** parity * readers
                count = zero
                if phase is not None and gains.biases:
                    assert phase.parameter is not None
                    shift, count = _phases(gains.biases, sign * even, parity, pi / phase.parameter)
                    value = value + shift
                better = value > best
                best = torch.where(better, value, best)
                for kind, choice in (("sign", sign), ("even", even), ("phase", count)):
                    if kind in chosen:
                        chosen[kind] = torch.where(
                            better, choice if isinstance(choice, Tensor) else float(choice), chosen[kind]
                        )
    return Flips(best, chosen)


def with_sign(gains: Gains) -> Flips:
    """Choose for every pair of units the sign of the places that an action flips: R + |I| is gained.

    Args:
        gains: of the group alone.
    """
    assert gains.readers is not None
    best = gains.readers.abs()
    return Flips(
        best if gains.rows is None else best.add_(gains.rows),
        {"sign": torch.where(gains.readers < 0, -1.0, 1.0).to(gains.readers)},
    )


def _phases(
    biases: Sequence[tuple[Tensor, Tensor]], flip: int, parity: int, step: float
) -> tuple[Tensor, Tensor]:
    """Return what the best phase count of a parity gains beside the rows, and the count, ``[1, n, n']``."""
    total, number = torch.zeros(()), 0
    for left, right in biases:
        total = total + left.sum(1)[:, None] - flip * right.sum(1)[None, :]
        number += left.shape[1]
    count = 2 * ((total / number / step - parity) / 2).round() + parity
    gain = count * step * total - 0.5 * number * (count * step).square()
    return gain[None], count[None]
