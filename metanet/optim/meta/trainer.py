"""The meta-training loop: groups of particles, stretches of their trainings, and a gradient from each.

A *group* is a number of antithetic pairs that train networks of one shape over one horizon. Every meta-step
runs one stretch of every group; a group whose horizon ends draws a new task and begins anew. Everything that
decides what comes next is in `MetaTrainer.state_dict`, so a run continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import exp, log
from typing import Any

import torch
from torch import Tensor

from metanet.optim.buffers import laid, padded
from metanet.optim.meta.evolution import PersistentES
from metanet.optim.meta.tasks import MLPTask
from metanet.optim.rule import Item, UpdateRule

TaskDraw = Callable[[torch.Generator], MLPTask]
"""Draws a task of a distribution."""


@dataclass(frozen=True)
class MetaSettings:
    """Settings of a meta-training.

    Args:
        groups: groups of particles.
        pairs: antithetic pairs per group.
        stretch: inner steps per meta-step.
        horizons: bounds of the log-uniform number of inner steps of a training.
        sigma: standard deviation of perturbations, in units of the meta-parameters' scales.
        late: exponent k of the weight (k + 1) (t/T)ᵏ of the loss at inner step t.
        ceiling: losses are clipped here, and non-finite ones set to it.
        persistent: persistent evolution strategies; False for truncated ones.
    """

    groups: int = 4
    pairs: int = 12
    stretch: int = 50
    horizons: tuple[int, int] = (200, 2000)
    sigma: float = 0.1
    late: float = 3.0
    ceiling: float = 3.0
    persistent: bool = True


@dataclass
class Group:
    """One group of particles in training."""

    task: MLPTask
    horizon: int
    step: int
    parameters: list[Tensor]
    states: list[dict[str, Tensor]]
    estimator: PersistentES = field(repr=False)

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


class MetaTrainer:
    """Estimates meta-gradients of a rule over a distribution of tasks.

    Args:
        rule: what is meta-trained.
        draw: the distribution of inner tasks.
        settings: see `MetaSettings`.
        seed: of everything.
    """

    def __init__(self, rule: UpdateRule, draw: TaskDraw, settings: MetaSettings, seed: int = 0) -> None:
        self.rule = rule
        self.draw = draw
        self.settings = settings
        self.generator = torch.Generator().manual_seed(seed)
        self.inner_steps = 0
        self.groups = [self._new_group(first=True) for _ in range(settings.groups)]

    def gradient(self, theta: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Run one stretch of every group from ``[size]`` meta-parameters.

        Returns:
            The ``[size]`` estimate of the gradient of the weighted training loss, and figures of the stretch.
        """
        total = torch.zeros_like(theta)
        losses, ended = [], []
        for group in self.groups:
            perturbed = group.estimator.perturb(theta)
            weighted, last = self._stretch(group, self.rule.unpack(perturbed))
            total += group.estimator.gradient(weighted)
            losses.append(float(weighted.mean()))
            if group.step >= group.horizon:
                ended.append(float(last.mean()))
                self._begin(group)
        figures = {"loss": sum(losses) / len(losses)}
        if ended:
            figures["final"] = sum(ended) / len(ended)
        return total / len(self.groups), figures

    def _stretch(self, group: Group, metas: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Train all particles of a group on; return ``[2 pairs]`` weighted and last losses."""
        settings, task = self.settings, group.task
        particles = 2 * settings.pairs
        weighted = torch.zeros(particles)
        last = torch.zeros(particles)
        for _ in range(min(settings.stretch, group.horizon - group.step)):
            indices = torch.randint(
                len(task.data.labels), (settings.pairs, task.batch_size), generator=self.generator
            )
            last, gradients = task.gradients(group.parameters, torch.cat([indices, indices]))
            last = last.nan_to_num(settings.ceiling).clamp(max=settings.ceiling)
            share = ((group.step + 1) / group.horizon) ** settings.late * (settings.late + 1)
            weighted += last * share / group.horizon
            apply(self.rule, metas, task.roles, group, gradients)
            group.step += 1
            self.inner_steps += particles
        return weighted, last

    def _new_group(self, *, first: bool = False) -> Group:
        estimator = PersistentES(
            self.rule.size,
            self.settings.pairs,
            self.settings.sigma,
            self.generator,
            persistent=self.settings.persistent,
        )
        group = Group(self.draw(self.generator), 1, 0, [], [], estimator)
        self._begin(group)
        if first:  # stagger the groups: a shorter first training
            part = float(torch.rand((), generator=self.generator))
            group.horizon = max(int(group.horizon * max(part, 0.1)), 1)
        return group

    def _begin(self, group: Group) -> None:
        low, high = self.settings.horizons
        group.task = self.draw(self.generator)
        share = float(torch.rand((), generator=self.generator))
        group.horizon = round(exp(log(low) + share * (log(high) - log(low))))
        group.step = 0
        half = group.task.initialize(self.settings.pairs, self.generator)
        group.lay([torch.cat([p, p]) for p in half], self.rule)
        group.estimator.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides what comes next."""
        return {
            "generator": self.generator.get_state(),
            "inner_steps": self.inner_steps,
            "groups": [
                {
                    "task": {
                        "widths": group.task.widths,
                        "activation": group.task.activation,
                        "batch_size": group.task.batch_size,
                        "scale": group.task.scale,
                    },
                    "horizon": group.horizon,
                    "step": group.step,
                    "parameters": group.parameters,
                    "states": group.states,
                    "estimator": group.estimator.state_dict(),
                }
                for group in self.groups
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        if len(state["groups"]) != len(self.groups):
            raise ValueError(
                f"the saved run has {len(state['groups'])} groups, the settings say {len(self.groups)}: "
                "continue with the settings it was begun with"
            )
        self.generator.set_state(state["generator"])
        self.inner_steps = int(state["inner_steps"])
        for group, saved in zip(self.groups, state["groups"], strict=True):
            described = saved["task"]
            group.task = MLPTask(
                group.task.data,
                tuple(described["widths"]),
                described["activation"],
                described["batch_size"],
                described["scale"],
            )
            group.horizon, group.step = int(saved["horizon"]), int(saved["step"])
            group.parameters, group.states = saved["parameters"], saved["states"]
            group.estimator.load_state_dict(saved["estimator"])


def _side_by_side(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies ``[K, …]`` of tensors that lie side by side."""
    flat = tensors[0].new_zeros(len(tensors[0]), padded(tensors))
    views = laid(flat, tensors)
    for view, tensor in zip(views, tensors, strict=True):
        view.copy_(tensor)
    return views


@torch.no_grad()
def apply(
    rule: UpdateRule,
    metas: Mapping[str, Tensor],
    roles: tuple[str, ...],
    group: Group,
    gradients: list[Tensor],
) -> None:
    """Take one step of a rule on every particle of a group, in place."""
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


def train_once(
    rule: UpdateRule,
    metas: Mapping[str, Tensor],
    task: MLPTask,
    horizon: int,
    *,
    particles: int,
    seed: int,
) -> Tensor:
    """Train networks of one task with one set of meta-parameters; return ``[horizon, particles]`` losses."""
    generator = torch.Generator().manual_seed(seed)
    parameters = task.initialize(particles, generator)
    group = Group(task, horizon, 0, [], [], PersistentES(1, 1, 1.0, generator))
    group.lay(parameters, rule)
    losses = []
    for _ in range(horizon):
        indices = torch.randint(len(task.data.labels), (particles, task.batch_size), generator=generator)
        found, gradients = task.gradients(group.parameters, indices)
        losses.append(found)
        apply(rule, metas, task.roles, group, gradients)
        group.step += 1
    return torch.stack(losses)
