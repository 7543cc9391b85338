r"""Forecasts of weights from where they were: what a nowcasting optimizer jumps to.

From the last c states θ_1 … θ_c of a tensor, taken at equal distances, the state k distances ahead is

    s = rms(θ_c - θ_1),  d_i = (θ_i - θ_c) / s
    θ̂ = θ_c + s (Σ_i a_i(k, τ) d_i + f)

The linear form has f = 0: coefficients a, polynomials in k and the progress τ for each role of tensor,
average noise away and follow the drift. The graph form adds the network of
`metanet.optim.rules.unit_network`, which passes messages over the units of the spec; both commute with its
permutations.

References:
    Knyazev et al. 2025, Accelerating training with neuron interaction and nowcasting networks (NiNo),
    https://arxiv.org/abs/2409.04434. Jang et al. 2023, Learning to boost training by periodic nowcasting near
    future weights, ICML. Departures: a linear part, message passing without the layout of an architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path

import torch
from torch import Tensor

from metanet.optim.chunks import Part
from metanet.optim.metas_file import read_metas, save_metas
from metanet.optim.rule import ROLES, Meta
from metanet.optim.rules.links import Links
from metanet.optim.rules.mixing import rms
from metanet.optim.rules.unit_network import Edges, UnitNetwork

STATES = 5
"""c: states that a forecast is made from."""
POWERS = 4
"""Terms of a coefficient: 1, k/10, τ, τ k/10."""
NETWORK = UnitNetwork(STATES, context=3)
TINY = 1e-12
FORMS = ("linear", "graph")


@dataclass(frozen=True, slots=True)
class History:
    """The states of K tensors of one shape.

    Args:
        states: ``[STATES, K, rows, columns]`` or ``[STATES, K, n]``, the present one last.
        role: see `metanet.optim.rule.ROLES`.
        entry: name in the spec.
        stacked: the K tensors are the slices of that entry.
    """

    states: Tensor
    role: str
    entry: str | None = None
    stacked: bool = False


@dataclass(frozen=True, eq=False)
class Forecaster:
    """What a forecast was learned to be.

    Args:
        form: ``linear`` or ``graph``.
        metas: learned tensors, ``[1, n]`` float32 each.
        card: how they were made.
    """

    form: str
    metas: dict[str, Tensor]
    card: dict[str, object] = field(default_factory=dict)

    @classmethod
    def initial(cls, form: str) -> Forecaster:
        """Return a forecaster that predicts no change.

        Raises:
            ValueError: an unknown form.
        """
        if form not in FORMS:
            raise ValueError(f"the forms of forecasts are {', '.join(FORMS)}, found {form!r}")
        return cls(form, {name: torch.tensor([meta.initial]) for name, meta in _metas(form).items()})

    @property
    def needs_spec(self) -> bool:
        """Whether it passes messages between units."""
        return self.form == "graph"

    def __call__(
        self, histories: Sequence[History], ahead: float, progress: float, links: Links | None
    ) -> list[Tensor]:
        """Return the states ``[K, …]`` of all tensors of a network some distances ahead.

        Args:
            histories: of all tensors.
            ahead: k, in distances between the states.
            progress: τ in [0, 1], how much of the training is over.
            links: the units that tensors share; the linear form needs none.

        Raises:
            ValueError: the graph form without links.
        """
        if links is None and self.needs_spec:
            raise ValueError("forecasts of the form 'graph' need the spec of the network: pass example_args")
        moved, changes, sizes = [], [], []
        for history in histories:
            flat = history.states.flatten(2)
            now = flat[-1]
            size = rms(now - flat[0]) + TINY
            change = (flat[:-1] - now) / size[None, :, None]
            by = self._coefficients(history.role, ahead, progress).to(change)
            moved.append(torch.einsum("i,ikn->kn", by, change))
            changes.append(change)
            sizes.append(size)
        if links is not None and self.needs_spec:
            edges = [_edges(*pair) for pair in zip(histories, changes, strict=True)]
            context = (log(max(ahead, 1.0)) / 3, ahead / 10, progress)
            found = NETWORK(self.metas, context, edges, links)
            moved = [linear + output for linear, output in zip(moved, found, strict=True)]
        return [
            torch.addcmul(history.states[-1].flatten(1), change, size[:, None]).view_as(history.states[-1])
            for history, change, size in zip(histories, moved, sizes, strict=True)
        ]

    def _coefficients(self, role: str, ahead: float, progress: float) -> Tensor:
        table = self.metas["linear"].view(len(ROLES), STATES - 1, POWERS)[ROLES.index(role)]
        far = ahead / 10
        return table @ table.new_tensor([1.0, far, progress, progress * far])

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all; form and card stand in its metadata."""
        save_metas(path, self.metas, {"forecaster": self.form}, self.card)

    @classmethod
    def load(cls, path: Path | str) -> Forecaster:
        """Read what `save` wrote.

        Raises:
            ValueError: no such file, a damaged one or one of something else.
        """
        if not Path(path).is_file():
            raise ValueError(f"no file {str(path)!r}; scripts/nowcast_train.py makes forecasters")
        metas, metadata, card = read_metas(path, "a forecaster", "make it again")
        form = metadata.get("forecaster")
        wanted = {k: (1, len(m.initial)) for k, m in _metas(form).items()} if form in FORMS else None
        found = {key: tuple(tensor.shape) for key, tensor in metas.items()}
        if form is None or wanted != found:
            raise ValueError(f"{path} holds no forecaster: its metadata says {form!r}, with tensors {found}")
        return cls(form, metas, card)


def _metas(form: str | None) -> Mapping[str, Meta]:
    linear = {"linear": Meta((0.0,) * (len(ROLES) * (STATES - 1) * POWERS), 0.1)}
    return linear if form == "linear" else {**linear, **NETWORK.metas()}


def _edges(history: History, change: Tensor) -> Edges:
    """Return the edges of a tensor: its changes, and its value over its root mean square."""
    values = history.states[-1]
    now = values.flatten(1)

    def inputs(at: Part) -> Tensor:
        return torch.cat([change[:, *at].transpose(0, 1), now[at][:, None]], 1)

    divisors = torch.cat([now.new_ones(len(now), STATES - 1), rms(now)[:, None] + TINY], 1)
    named = {} if history.entry is None else {history.entry: slice(0, len(values))}
    return Edges(values, inputs, divisors, history.role, named, history.stacked)
