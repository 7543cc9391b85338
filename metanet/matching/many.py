"""Matching many networks at once, cycle-consistently: every one is taken to a common universe.

With g_i taking network i to the universe, g_i⁻¹ ∘ g_j takes j to i, and around any cycle these compose to the
identity: matching pairs one by one does not give that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metanet.group import GroupElement
from metanet.matching.frank_wolfe import frank_wolfe
from metanet.matching.pair import STATISTICS
from metanet.matching.weights import weight_matching
from metanet.spec import WeightSpec

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Universe:
    """Elements that take networks to a common order of units.

    Args:
        elements: one per network.
        before: sum of squared distances to the mean of the networks as they are.
        after: the same of the networks in the universe.
        rounds: passes over the networks.
    """

    elements: tuple[GroupElement, ...]
    before: float
    after: float
    rounds: int

    def between(self, i: int, j: int) -> GroupElement:
        """Return the element that takes network j to network i."""
        return self.elements[i].inverse() @ self.elements[j]


def merge_many_matching(
    spec: WeightSpec,
    states: Sequence[State],
    *,
    elements: Sequence[GroupElement] | None = None,
    max_rounds: int = 50,
    seed: int = 0,
) -> Universe:
    """Align every network to the mean of the others, in turn, until none moves (MergeMany).

    The sum of squared distances to the mean never rises.

    Args:
        spec: of all networks.
        states: two or more state dicts.
        elements: where to begin; None aligns every network to the first one.
        max_rounds: passes over the networks.
        seed: of the order of networks and groups.

    Raises:
        ValueError: fewer than two networks.

    References:
        Ainsworth, Hayase and Srinivasa 2023, Git Re-Basin, https://arxiv.org/abs/2209.04836, algorithm 3.
    """
    _check(states)
    if elements is None:
        identity = GroupElement.identity(spec)
        elements = [
            identity,
            *(weight_matching(spec, states[0], state, seed=seed).element for state in states[1:]),
        ]
    found = list(elements)
    moved = [element @ state for element, state in zip(found, states, strict=True)]
    before, now = _spread(states), _spread(moved)
    generator = torch.Generator().manual_seed(seed)
    rounds, improved = 0, True
    while improved and rounds < max_rounds:
        rounds, improved = rounds + 1, False
        for i in torch.randperm(len(states), generator=generator).tolist():
            others = _mean([state for j, state in enumerate(moved) if j != i])
            step = weight_matching(spec, others, moved[i], starts=["identity"], seed=seed)
            if step.gain <= 1e-9:
                continue
            candidate = step.element @ moved[i]
            spread = _spread([candidate if j == i else state for j, state in enumerate(moved)])
            if spread < now * (1 - 1e-9):
                found[i], moved[i], now, improved = step.element @ found[i], candidate, spread, True
    return Universe(tuple(found), before, now, rounds)


def cycle_consistent_matching(
    spec: WeightSpec, states: Sequence[State], *, max_steps: int = 50, polish: bool = True, seed: int = 0
) -> Universe:
    """Match all groups of all networks jointly by Frank–Wolfe, into a universe (C2M3).

    Args:
        spec: of all networks.
        states: two or more state dicts.
        max_steps: of Frank–Wolfe.
        polish: let MergeMany start where Frank–Wolfe ends; it moves nested groups, which Frank–Wolfe leaves.
        seed: of MergeMany.

    Raises:
        ValueError: fewer than two networks.

    References:
        Crisostomi et al. 2024, C²M³: Cycle-Consistent Multi-Model Merging, https://arxiv.org/abs/2405.17897.
        Departs from it in the exact line search, and in the polish.
    """
    _check(states)
    elements = frank_wolfe(spec, states, max_steps=max_steps)
    if polish:
        return merge_many_matching(spec, states, elements=elements, seed=seed)
    moved = [element @ state for element, state in zip(elements, states, strict=True)]
    return Universe(tuple(elements), _spread(states), _spread(moved), 0)


def _check(states: Sequence[State]) -> None:
    if len(states) < 2:
        raise ValueError(f"matching takes at least two networks, found {len(states)}")


def _mean(states: Sequence[State]) -> dict[str, Tensor]:
    return {
        name: torch.stack([state[name].to(tensor) for state in states]).mean(0)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }


def _spread(states: Sequence[State]) -> float:
    """Return the sum of squared distances to the mean, statistics of norms left out."""
    total = 0.0
    for name, tensor in states[0].items():
        if tensor.is_floating_point() and not name.endswith(STATISTICS):
            stacked = torch.stack([state[name].double() for state in states])
            total += float((stacked - stacked.mean(0)).square().sum())
    return total
