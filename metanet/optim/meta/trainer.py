"""The meta-training loop: groups of particles, stretches of their trainings, and a gradient from each.

A *group* is a number of antithetic pairs that train networks of one shape over one horizon. Every meta-step
runs one stretch of every group; a group whose horizon ends draws a new task and begins anew. Everything that
decides what comes next is in `MetaTrainer.state_dict`, so a run continues bit for bit.

The gradient of a stretch comes from one of `ESTIMATORS`:

- ``pes``: persistent evolution strategies, without bias;
- ``es``: truncated evolution strategies, biased to short horizons;
- ``full-es``: evolution strategies over whole trainings: the stretch is the horizon;
- ``backprop``: truncated backpropagation (`metanet.optim.meta.backprop`), biased as well, without noise;
- ``backprop-first-order``: the same with inner gradients as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, log
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metanet.optim.meta.backprop import Moment, backpropagate
from metanet.optim.meta.evolution import PersistentES
from metanet.optim.meta.group import Group, apply
from metanet.optim.meta.tasks import MLPTask
from metanet.optim.rule import UpdateRule

TaskDraw = Callable[[torch.Generator], MLPTask]
"""Draws a task of a distribution."""
Estimator = Literal["pes", "es", "full-es", "backprop", "backprop-first-order"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
"""Estimators of the meta-gradient by name; see the module's docstring."""


@dataclass(frozen=True)
class MetaSettings:
    """Settings of a meta-training.

    Args:
        groups: groups of particles.
        pairs: antithetic pairs per group; backpropagation has no pairs and trains twice as many networks,
            each from a start of its own.
        stretch: inner steps per meta-step; full evolution strategies take the whole horizon.
        horizons: bounds of the log-uniform number of inner steps of a training.
        sigma: standard deviation of perturbations, in units of the meta-parameters' scales.
        late: exponent k of the weight (k + 1) (t/T)ᵏ of the loss at inner step t.
        ceiling: losses are clipped here, and non-finite ones set to it.
        estimator: one of `ESTIMATORS`.

    Raises:
        ValueError: no such estimator.
    """

    groups: int = 4
    pairs: int = 12
    stretch: int = 50
    horizons: tuple[int, int] = (200, 2000)
    sigma: float = 0.1
    late: float = 3.0
    ceiling: float = 3.0
    estimator: Estimator = "pes"

    def __post_init__(self) -> None:
        """Refuse an unknown estimator."""
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"expected an estimator among {', '.join(ESTIMATORS)}, found {self.estimator!r}")


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
            found, weighted, last = self._estimate(group, theta)
            total += found
            losses.append(float(weighted.mean()))
            if group.step >= group.horizon:
                ended.append(float(last.mean()))
                self._begin(group)
        figures = {"loss": sum(losses) / len(losses)}
        if ended:
            figures["final"] = sum(ended) / len(ended)
        return total / len(self.groups), figures

    def _estimate(self, group: Group, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run a stretch; return the gradient and the ``[2 pairs]`` weighted and last losses."""
        if group.estimator is not None:
            weighted, last = self._stretch(group, self.rule.unpack(group.estimator.perturb(theta)))
            return group.estimator.gradient(weighted), weighted, last
        moments: list[Moment] = []
        weighted, last = self._stretch(group, self.rule.unpack(theta[None]), moments)
        second_order = self.settings.estimator == "backprop"
        found = backpropagate(self.rule, theta, moments, second_order=second_order)
        return found.mean(0), weighted, last

    def _stretch(
        self, group: Group, metas: Mapping[str, Tensor], moments: list[Moment] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Train all particles of a group on; return ``[2 pairs]`` weighted and last losses."""
        settings, task = self.settings, group.task
        particles = 2 * settings.pairs
        weighted = last = group.parameters[0].new_zeros(particles)
        length = group.horizon if settings.estimator == "full-es" else settings.stretch
        for _ in range(min(length, group.horizon - group.step)):
            drawn = particles if group.estimator is None else settings.pairs
            indices = torch.randint(len(task.data.labels), (drawn, task.batch_size), generator=self.generator)
            indices = torch.cat([indices] * (particles // drawn))
            found, gradients = task.gradients(group.parameters, indices)
            last = found.nan_to_num(settings.ceiling).clamp(max=settings.ceiling)
            share = ((group.step + 1) / group.horizon) ** settings.late * (settings.late + 1)
            weighted = weighted + last * share / group.horizon
            if moments is not None:
                counted = (found < settings.ceiling).to(found) * (share / group.horizon)
                moments.append(Moment(group.copy(), indices, counted))
            apply(self.rule, metas, task.roles, group, gradients)
            group.step += 1
            self.inner_steps += particles
        return weighted, last

    def _new_group(self, *, first: bool = False) -> Group:
        settings = self.settings
        estimator = None
        if not settings.estimator.startswith("backprop"):
            estimator = PersistentES(
                self.rule.size,
                settings.pairs,
                settings.sigma,
                self.generator,
                persistent=settings.estimator == "pes",
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
        copies = 1 if group.estimator is None else 2
        start = group.task.initialize(2 * self.settings.pairs // copies, self.generator)
        group.lay([torch.cat([p] * copies) for p in start], self.rule)
        if group.estimator is not None:
            group.estimator.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides what comes next."""
        return {
            "generator": self.generator.get_state(),
            "inner_steps": self.inner_steps,
            "estimator": self.settings.estimator,
            "groups": [
                {
                    "task": {
                        "widths": group.task.widths,
                        "activation": group.task.activation,
                        "batch_size": group.task.batch_size,
                        "scale": group.task.scale,
                        "widening": group.task.widening,
                    },
                    "horizon": group.horizon,
                    "step": group.step,
                    "parameters": group.parameters,
                    "states": group.states,
                    "estimator": {} if group.estimator is None else group.estimator.state_dict(),
                }
                for group in self.groups
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: it was taken from a run of other groups, pairs or another estimator.
        """
        said = {
            "groups": (len(state["groups"]), len(self.groups)),
            "pairs": (len(state["groups"][0]["parameters"][0]) // 2, self.settings.pairs),
            "estimator": (state.get("estimator", self.settings.estimator), self.settings.estimator),
        }
        for name, (there, here) in said.items():
            if there != here:
                raise ValueError(
                    f"the saved run has {name} = {there}, the settings say {here}: continue with the "
                    "settings it was begun with"
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
                described.get("widening", 1.0),
            )
            group.horizon, group.step = int(saved["horizon"]), int(saved["step"])
            group.parameters, group.states = saved["parameters"], saved["states"]
            if group.estimator is not None:
                group.estimator.load_state_dict(saved["estimator"])


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
    group = Group(task, horizon, 0, [], [])
    group.lay(parameters, rule)
    losses = []
    for _ in range(horizon):
        indices = torch.randint(len(task.data.labels), (particles, task.batch_size), generator=generator)
        found, gradients = task.gradients(group.parameters, indices)
        losses.append(found)
        apply(rule, metas, task.roles, group, gradients)
        group.step += 1
    return torch.stack(losses)
