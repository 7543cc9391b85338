r"""Message passing on the graph of a network's parameters: units of a spec as nodes, weights as edges.

Every weight w between a unit i (its row) and a unit j (its column) has features x and hidden channels

    h⁰_ij = tanh(W x_ij + V context + b_role)
    m_i   = tanh(a + mean over the tensors that meet unit i of S_side (mean of h over the weights at i))
    h_ij  <- tanh(h_ij + E h_ij + R_row m_i + R_column m_j + P_row (row mean) + P_column (column mean))

and outputs w·h after some rounds. S, R and P tell rows, columns and vectors apart and nothing else, so one
set of weights serves every architecture; fixed rows and columns (inputs, classes) have their private means P
alone. The network commutes with the permutations of the spec. Rounds are computed anew for every chunk of
weights from the few numbers that units hold, so no map of hidden channels is ever whole.

References:
    Kofinas et al. 2024, Graph neural networks for learning equivariant representations of neural networks,
    https://arxiv.org/abs/2403.12143 (neural graphs as optimizers). Lim et al. 2024, Graph metanetworks,
    https://arxiv.org/abs/2312.04501. Here residual streams are one node per unit, as the spec has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import sqrt

import torch
from torch import Tensor

from metanet.optim.chunks import CHUNK, Part, chunks
from metanet.optim.rule import ROLES, Meta, Metas
from metanet.optim.rules.links import SIDES, Links, Side, sides_of
from metanet.optim.rules.mixing import of_some

Means = dict[Side, Tensor]
"""Per side ``[K, hidden, length]``."""


@dataclass(frozen=True, slots=True)
class Edges:
    """The weights of K tensors of one shape.

    Args:
        values: ``[K, rows, columns]`` or ``[K, n]``.
        inputs: gives ``[k, features, width]`` numbers of a part of the flattened tensors.
        divisors: ``[K, features]``, by which they are divided to be the features.
        role: see `metanet.optim.rule.ROLES`.
        named: which of the K tensors an entry of the spec is; others share no units.
        stacked: the K tensors are the slices of one entry.
    """

    values: Tensor
    inputs: Callable[[Part], Tensor]
    divisors: Tensor
    role: str
    named: Mapping[str, slice] = field(default_factory=dict)
    stacked: bool = False

    @property
    def sides(self) -> tuple[Side, ...]:
        """Sides on which units are met."""
        return sides_of(self.values.ndim - 1)

    @property
    def together(self) -> bool:
        """Whether the K tensors are of one network, not one of each of K networks."""
        return self.stacked or len(self.named) > 1

    def joined(self, means: Tensor) -> Tensor:
        """Return ``[K, hidden, length]`` as ``[networks hidden, positions]``."""
        return means.transpose(0, 1).flatten(1) if self.together else means.flatten(0, 1)

    def parted(self, joined: Tensor, shape: torch.Size) -> Tensor:
        """Undo `joined`."""
        if self.together:
            return joined.reshape(shape[1], shape[0], shape[2]).transpose(0, 1)
        return joined.reshape(shape)

    def blocks(self, hidden: int) -> list[list[Part]]:
        """Return chunks of whole rows, those of the same tensors together."""
        row = self.values.shape[2] if self.values.ndim == 3 else 1
        parts = chunks(self.values.flatten(1), row, CHUNK // hidden)
        return [list(block) for _, block in groupby(parts, key=lambda at: at[0].start)]


@dataclass(frozen=True)
class UnitNetwork:
    """See the module's docstring.

    Args:
        features: of a weight.
        context: numbers that are the same for all weights, such as the time.
        hidden: channels.
        rounds: of message passing.
    """

    features: int
    context: int
    hidden: int = 8
    rounds: int = 2

    def metas(self, *, seed: int = 0) -> dict[str, Meta]:
        """Return the parameters: the last ones are zero, so that the network starts as zero."""
        generator = torch.Generator().manual_seed(seed)

        def drawn(outputs: int, inputs: int, scale: float) -> Meta:
            values = torch.randn(outputs * inputs, generator=generator) / sqrt(inputs)
            return Meta(tuple((scale * values).tolist()), 0.2)

        c = self.hidden
        found = {
            "first": drawn(c, self.features, 1.0),
            "first_context": Meta((0.0,) * (c * self.context), 0.2),
            "first_role": Meta((0.0,) * (c * len(ROLES)), 0.2),
        }
        for i in range(self.rounds):
            found |= {f"send_{side}_{i}": drawn(c, c, 1.0) for side in SIDES}
            found |= {f"receive_{side}_{i}": drawn(c, c, 0.5) for side in SIDES}
            found |= {f"private_{side}_{i}": drawn(c, c, 0.5) for side in SIDES}
            found |= {f"unit_{i}": Meta((0.0,) * c, 0.2), f"edge_{i}": drawn(c, c, 0.5)}
        return {**found, "last": Meta((0.0,) * c, 0.05)}

    def __call__(
        self, metas: Metas, context: Sequence[float], edges: Sequence[Edges], links: Links
    ) -> list[Tensor]:
        """Return the output ``[K, n]`` of every weight.

        Args:
            metas: parameters, ``[P, …]`` with P = K or 1.
            context: numbers that are the same for all weights.
            edges: all weights of a network.
            links: the units that they share.
        """
        told = metas["first"].new_tensor(list(context))
        bias: Tensor = self._square(metas, "first_context", self.context) @ told
        roles = metas["first_role"].unflatten(1, (len(ROLES), self.hidden))
        starts = [bias + roles[:, ROLES.index(edge.role)] for edge in edges]
        backs: list[list[Means]] = [[] for _ in edges]
        for i in range(self.rounds):
            means = [self._means(metas, *at) for at in zip(edges, starts, backs, strict=True)]
            shared = self._exchange(metas, i, edges, means, links)
            for back, own, met in zip(backs, means, shared, strict=True):
                back.append(self._received(metas, i, own, met))
        return [self._output(metas, *at) for at in zip(edges, starts, backs, strict=True)]

    def _square(self, metas: Metas, name: str, inputs: int) -> Tensor:
        matrices: Tensor = metas[name].unflatten(1, (self.hidden, inputs))
        return matrices

    def _units(self, metas: Metas, edge: Edges, start: Tensor, back: Sequence[Means], at: Part) -> Tensor:
        """Return the channels ``[k, hidden, width]`` of a chunk after all rounds that are done."""
        some, part = at
        inputs = edge.inputs(at)

        def square(name: str, columns: int) -> Tensor:
            matrices = of_some(self._square(metas, name, columns), some).to(inputs)
            return matrices.expand(len(inputs), -1, -1)

        bias = of_some(start, some).to(inputs)[:, :, None]
        first = square("first", self.features) / edge.divisors[some, None]
        units = torch.baddbmm(bias, first, inputs).tanh_()
        for i, means in enumerate(back):
            moved = torch.baddbmm(units, square(f"edge_{i}", self.hidden), units)
            if edge.values.ndim == 2:
                units = moved.add_(means["vector"][some, :, part]).tanh_()
                continue
            columns = edge.values.shape[2]
            rows = slice(part.start // columns, part.stop // columns)
            grid = moved.unflatten(2, (-1, columns)) + means["row"][some, :, rows, None]
            units = grid.add_(means["column"][some, :, None]).tanh_().flatten(2)
        return units

    def _means(self, metas: Metas, edge: Edges, start: Tensor, back: Sequence[Means]) -> Means:
        """Return the means over rows and columns, or the channels of vectors, of all tensors."""
        found = [self._block_means(metas, edge, start, back, block) for block in edge.blocks(self.hidden)]
        return {side: torch.cat([means[side] for means in found]) for side in edge.sides}

    def _block_means(
        self, metas: Metas, edge: Edges, start: Tensor, back: Sequence[Means], block: Sequence[Part]
    ) -> Means:
        rows: list[Tensor] = []
        columns: Tensor | None = None
        for at in block:
            units = self._units(metas, edge, start, back, at)
            if edge.values.ndim == 2:
                rows.append(units)
                continue
            grid = units.unflatten(2, (-1, edge.values.shape[2]))
            rows.append(grid.mean(3))
            total = grid.sum(2)
            columns = total if columns is None else columns + total
        if columns is None:
            return {"vector": torch.cat(rows, 2)}
        return {"row": torch.cat(rows, 2), "column": columns / edge.values.shape[1]}

    def _exchange(
        self, metas: Metas, at: int, edges: Sequence[Edges], means: Sequence[Means], links: Links
    ) -> list[Means]:
        """Return what the units that tensors share send back, per side; nothing where there are none."""
        found: list[Means] = [{} for _ in edges]
        sent = [
            (edge, side, values, met)
            for edge, mean, met in zip(edges, means, found, strict=True)
            for side, values in mean.items()
            if any(links.knows(entry) for entry in edge.named)
        ]
        if not sent:
            return found
        messages = [
            edge.joined(self._linear(metas, f"send_{side}_{at}", values)) for edge, side, values, _ in sent
        ]
        route = links.route(tuple((tuple(edge.named), side) for edge, side, *_ in sent), messages[0])
        pool = self._unit(metas, at, route.gather(messages))
        for (edge, side, values, met), back in zip(sent, route.scatter(pool), strict=True):
            met[side] = edge.parted(back, values.shape)
        return found

    def _unit(self, metas: Metas, at: int, pool: Tensor) -> Tensor:
        """Return the state ``[units, P hidden]`` of the units from the mean of what they got."""
        channels = pool.unflatten(1, (-1, self.hidden))
        return torch.tanh(channels + metas[f"unit_{at}"].to(pool)).flatten(1)

    def _received(self, metas: Metas, at: int, own: Means, met: Means) -> Means:
        found: Means = {}
        for side, values in own.items():
            found[side] = self._linear(metas, f"private_{side}_{at}", values)
            if side in met:
                found[side] = found[side] + self._linear(metas, f"receive_{side}_{at}", met[side])
        return found

    def _linear(self, metas: Metas, name: str, values: Tensor) -> Tensor:
        weight = self._square(metas, name, self.hidden).to(values).expand(len(values), -1, -1)
        return torch.bmm(weight, values)

    def _output(self, metas: Metas, edge: Edges, start: Tensor, back: Sequence[Means]) -> Tensor:
        last = metas["last"][:, None]
        found = []
        for block in edge.blocks(self.hidden):
            units = ((at[0], self._units(metas, edge, start, back, at)) for at in block)
            found.append(torch.cat([(of_some(last, some).to(own) @ own)[:, 0] for some, own in units], 1))
        return torch.cat(found)
