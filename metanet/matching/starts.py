"""Where coordinate descent starts: residual networks fall into local optima from a bad one.

sorted    units are compared by what no permutation of the other groups changes: their weights in sorted
          order. A permuted copy, or one that was fine-tuned a little, is found at once.
greedy    groups are solved one after the other, from fixed inputs and outputs inwards, each by those
          blocks alone whose other groups are solved.
identity  as the networks are.
random    a random element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from metanet.axis import Perm
from metanet.group import GroupElement
from metanet.matching.gains import gains_of
from metanet.matching.moves import Place
from metanet.matching.pair import Pair
from metanet.matching.step import best_element

Start = Literal["sorted", "greedy", "identity", "random"]
STARTS: tuple[Start, ...] = get_args(Start)


def check_starts(starts: Sequence[str]) -> None:
    """Raise unless there is a start and all are known."""
    if not starts or set(starts) - set(STARTS):
        unknown = ", ".join(repr(start) for start in starts if start not in STARTS) or "none"
        raise ValueError(f"unknown start: found {unknown}; expected one or more of {', '.join(STARTS)}")


def start_element(pair: Pair, start: Start, generator: torch.Generator, *, flips: bool) -> GroupElement:
    """Return the element that a start begins with; the pair is left as it was begun."""
    makers: dict[Start, Callable[[], GroupElement]] = {
        "sorted": lambda: _sorted(pair),
        "greedy": lambda: _greedy(pair, flips),
        "identity": lambda: GroupElement.identity(pair.spec),
        "random": lambda: _random(pair, generator),
    }
    pair.restart(GroupElement.identity(pair.spec))
    return makers[start]()


def _random(pair: Pair, generator: torch.Generator) -> GroupElement:
    moving = {name for move in pair.moves for name in move.groups}
    drawn = GroupElement.random(pair.spec, generator)
    return drawn.without(*(group.name for group in pair.spec.groups if group.name not in moving))


def _sorted(pair: Pair) -> GroupElement:
    """Match every group by its units' weights in sorted order."""
    spec = pair.spec
    moving = {name for move in pair.moves for name in move.groups}
    flipping = {group.name for group in spec.groups if group.freedoms}
    flipping |= {spec.actions[n].groups[0] for places in pair.signs for n in places.values()}

    def features(number: int, values: Tensor, place: Place) -> Tensor:
        atoms = [pair.blocks[number].atoms[dim] for dim in place.rest]
        free = [i for i, atom in enumerate(atoms) if isinstance(atom, Perm) and atom.group in moving]
        held = [i for i in range(len(atoms)) if i not in free]
        # Signs that are not known yet must not decide: where units may be flipped, magnitudes are compared.
        if any(name in flipping for name in pair.blocks[number].groups):
            values = values.abs()
        if not free:
            return values
        values = values.permute(0, 1, *(i + 2 for i in held), *(i + 2 for i in free))
        return values.flatten(2 + len(held)).sort(-1).values

    permutations: dict[str, Tensor] = {}
    for move in pair.moves:
        gains = gains_of(spec, move, pair.blocks, pair.a, pair.b, features=features)
        found = best_element(spec, move, gains, flips=False)
        permutations.update({k: v for k, v in found.permutations.items() if k not in permutations})
    return GroupElement(spec, permutations, {})


def _greedy(pair: Pair, flips: bool) -> GroupElement:
    """Match the groups one after the other, by blocks whose other groups are matched."""
    spec = pair.spec
    left = list(pair.moves)
    open_groups = {name for move in left for name in move.groups}
    while left:
        weights = []
        for move in left:
            known = [p.block for p in move.places if _known(pair, p, move.groups, open_groups)]
            total = sum(pair.a[p.block].numel() for p in move.places)
            weights.append(sum(pair.a[i].numel() for i in known) / total)
        chosen = max(range(len(left)), key=weights.__getitem__)
        move = left.pop(chosen)
        skip = {p.block for p in move.places if not _known(pair, p, move.groups, open_groups)}
        if len(skip) == len(move.blocks):
            skip = set()
        gains = gains_of(spec, move, pair.blocks, pair.a, pair.b, skip=skip)
        element = best_element(spec, move, gains, flips=flips)
        pair.advance(element, pair.moved(element, move.blocks))
        open_groups -= set(move.groups)
    found = pair.element
    pair.restart(GroupElement.identity(spec))
    return found


def _known(pair: Pair, place: Place, own: tuple[str, ...], open_groups: set[str]) -> bool:
    """Whether all groups of a block but the move's own are matched, and it carries no group twice."""
    groups = pair.blocks[place.block].groups
    return len(set(groups)) == len(groups) and not (set(groups) - set(own)) & open_groups
