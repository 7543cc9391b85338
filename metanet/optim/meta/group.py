"""A group of particles in training: networks of one shape, each with an optimizer of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from metanet.optim.buffers import laid, padded
from metanet.optim.meta.evolution import PersistentES
from metanet.optim.meta.tasks import MLPTask
from metanet.optim.rule import Item, UpdateRule


@dataclass
class Group:
    """One group of particles in training.

    Args:
        task: what they learn.
        horizon: inner steps of the training.
        step: inner steps that are done.
        parameters: ``[K, …]`` each, of K networks.
        states: of the rule, one per parameter.
        estimator: the evolution strategy that perturbs the particles, if one does.
    """

    task: MLPTask
    horizon: int
    step: int
    parameters: list[Tensor]
    states: list[dict[str, Tensor]]
    estimator: PersistentES | None = field(default=None, repr=False)

    def lay(self, parameters: list[Tensor], rule: UpdateRule) -> None:
        """Begin with parameters ``[K, …]``: theirs and every kind of state lie side by side in memory."""
        self.parameters = _side_by_side(parameters)
        self.states = [rule.state(p.shape, p) for p in parameters]
        for name in dict.fromkeys(name for state in self.states for name in state):
            holders = [state for state in self.states if name in state]
            slots = {len(state[name]) for state in holders}
            assert len(slots) == 1
            flat = holders[0][name].new_zeros(
                *slots, len(parameters[0]), padded([s[name][0] for s in holders])
            )
            for state, view in zip(holders, laid(flat, [s[name][0] for s in holders]), strict=True):
                state[name] = view

    def copy(self) -> Group:
        """Return networks and states as they are now, in memory of their own."""
        states = [{name: value.clone() for name, value in state.items()} for state in self.states]
        return replace(self, parameters=[p.clone() for p in self.parameters], states=states)


def _side_by_side(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies ``[K, …]`` of tensors that lie side by side."""
    flat = tensors[0].new_zeros(len(tensors[0]), padded(tensors))
    views = laid(flat, tensors)
    for view, tensor in zip(views, tensors, strict=True):
        view.copy_(tensor)
    return views


def advance(
    rule: UpdateRule,
    metas: Mapping[str, Tensor],
    roles: tuple[str, ...],
    group: Group,
    gradients: Sequence[Tensor],
) -> None:
    """Take one step of a rule on every particle of a group, in place; automatic differentiation may be on."""
    progress = min((group.step + 0.5) / group.horizon, 1.0)
    items = [
        Item(role, values, gradient, state, group.step + 1, entry)
        for role, values, gradient, state, entry in zip(
            roles, group.parameters, gradients, group.states, group.task.entries, strict=True
        )
    ]
    for item, moved in zip(items, rule.directions(metas, items, progress, group.task.links), strict=True):
        eta = rule.rate(metas, item.role, group.step, group.horizon)
        item.values.addcmul_(moved, eta.reshape(-1, *(1,) * (moved.ndim - 1)), value=-1)


apply = torch.no_grad()(advance)
"""Takes a step without it."""
