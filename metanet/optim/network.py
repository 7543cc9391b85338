r"""Networks on top of the structured rule: one per parameter, one that mixes over the axes of the weights.

Every parameter has features x (gradient, momenta, Adam direction, structured direction D, own value), each
divided by its root mean square over the tensor. A hidden layer h = clip(W₁ x + b + S s(τ), -1, 1) is followed
by a linear layer that commutes with permutations of rows and columns and with those of the spec:

    f = w·h + mean over columns of (w_row·h) + mean over rows of (w_col·h) + mean over the tensor of (w_all·h)
        + messages between tensors that share units (`metanet.optim.links`)
    direction = D + rms(D) f

The per-parameter rule keeps w·h alone and a wider hidden layer. All last weights start at zero, so training
starts from the structured rule.

References:
    Metz et al. 2022, Practical tradeoffs between memory, compute, and performance in learned optimizers,
    https://arxiv.org/abs/2203.11860 (features). Zhou et al. 2024, Universal neural functionals,
    https://arxiv.org/abs/2402.05232 (pointwise layers, one equivariant layer at the end, residual on a
    nominal term). Moudgil et al. 2026, Celo2, https://arxiv.org/abs/2602.19142.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from metanet.optim.chunks import CHUNK
from metanet.optim.links import SIDES, Links, Side, sides_of
from metanet.optim.rule import Item, Meta, Metas
from metanet.optim.structured import METAS, StructuredRule

FEATURES = 7
TIMES = 2
FLOORS = (1e-8, 1e-8, 1e-8, 1e-8, 1e-3, 1e-3, 1e-8)
"""Added to the root mean squares: gradients that are rounding errors stay small, as with Adam's ε."""


def _metas(hidden: int, *, mixing: bool) -> dict[str, Meta]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(hidden * FEATURES, generator=generator) / sqrt(FEATURES)
    metas = {
        **METAS,
        "first": Meta(tuple(first.tolist()), 0.2),
        "first_bias": Meta((0.0,) * hidden, 0.2),
        "first_time": Meta((0.0,) * (hidden * TIMES), 0.2),
        "own": Meta((0.0,) * hidden, 0.05),
    }
    if mixing:
        metas |= {name: Meta((0.0,) * hidden, 0.05) for name in ("row", "column", "tensor")}
        metas |= {f"send_{side}": Meta((0.0,) * hidden, 0.05) for side in SIDES}
        metas["receive"] = Meta((1.0, 1.0, 1.0), 0.2)
    return metas


@dataclass(slots=True)
class Passed:
    """What one pass of the network over a bucket leaves.

    Args:
        moved: ``[K, *shape]``: D + rms(D) w·h, to which the mixed terms are still to be added.
        size: ``[K]``, rms(D).
        terms: side -> ``[K, length]``: mixed terms of rows, columns or single values.
        messages: side -> ``[K, length]``: what the units of the side are sent.
    """

    moved: Tensor
    size: Tensor
    terms: dict[Side, Tensor] = field(default_factory=dict)
    messages: dict[Side, Tensor] = field(default_factory=dict)

    def finish(self) -> Tensor:
        """Return the direction, with all mixed terms."""
        for side, term in self.terms.items():
            scaled = term * self.size[:, None]
            self.moved += scaled if side == "vector" else scaled.unsqueeze(2 if side == "row" else 1)
        return self.moved


class PerParameterRule(StructuredRule):
    """The structured rule and a network of every parameter alone."""

    name = "per_parameter"
    hidden = 12
    mixing = False
    metas: Mapping[str, Meta] = _metas(12, mixing=False)

    def directions(
        self, metas: Metas, items: Sequence[Item], progress: float, links: Links | None = None
    ) -> list[Tensor]:
        """Return D + rms(D) f for every bucket."""
        passed = [self._pass(metas, item, progress, links) for item in items]
        if links is not None and self.mixing:
            self._exchange(metas, items, passed, links)
        return [result.finish() for result in passed]

    def _pass(self, metas: Metas, item: Item, progress: float, links: Links | None) -> Passed:
        """Run the network over a bucket, a chunk at a time; no map of its hidden units is ever whole."""
        moved, adam = self.base(metas, item, progress)
        features = [item.gradients, *item.state["momenta"], adam, moved, item.values]
        flat = [feature.flatten(1) for feature in features]
        metas = {name: meta.to(moved.device) for name, meta in metas.items()}
        sizes = torch.stack([_rms(feature) for feature in flat], 1)
        weight = metas["first"].unflatten(1, (self.hidden, FEATURES))
        weight = weight / (sizes + sizes.new_tensor(FLOORS))[:, None]
        times = metas["first"].new_tensor([progress - 0.5, 4 * (progress - 0.5) ** 2])
        bias = metas["first_bias"] + metas["first_time"].unflatten(1, (self.hidden, TIMES)) @ times
        weight = torch.cat([weight, bias[..., None].expand(len(weight), -1, -1)], 2).expand(
            len(moved), -1, -1
        )
        own = metas["own"][:, None] * sizes[:, 5, None, None]
        sums = _Means(item, self.hidden, links) if self.mixing else None
        ones = moved.new_ones(1).expand(len(moved), _width(item.values))
        for part in _whole_rows(item.values):
            width = part.stop - part.start
            stacked = torch.stack([*(feature[:, part] for feature in flat), ones[:, :width]], 1)
            units = torch.bmm(weight, stacked).clamp_(-1, 1)
            flat[5][:, part] += (own @ units)[:, 0]
            if sums is not None:
                sums.add(units, part, metas)
        result = Passed(moved, sizes[:, 5])
        if sums is not None:
            result.terms, result.messages = sums.finish(metas)
        return result

    @staticmethod
    def _exchange(metas: Metas, items: Sequence[Item], passed: Sequence[Passed], links: Links) -> None:
        """Add the messages between tensors that share units to the terms of their sides."""
        known = {
            item.entry: result
            for item, result in zip(items, passed, strict=True)
            if item.entry is not None and links.knows(item.entry)
        }
        pools = links.gather({entry: result.messages for entry, result in known.items()})
        for entry, result in known.items():
            for side in result.terms:
                back = links.scatter(entry, side, pools)
                if back is not None:
                    receive = metas["receive"][:, SIDES.index(side), None].to(back.device)
                    result.terms[side] = result.terms[side] + back * receive


class MixingRule(PerParameterRule):
    """The structured rule and a network that mixes over rows, columns, tensors, and units across tensors."""

    name = "mixing"
    hidden = 8
    mixing = True
    linked = True
    metas: Mapping[str, Meta] = _metas(8, mixing=True)


class _Means:
    """Means of the hidden units over rows, columns and the tensor, and the linear maps that follow them."""

    def __init__(self, item: Item, hidden: int, links: Links | None) -> None:
        self.shape = item.values.shape
        self.sides = sides_of(len(self.shape) - 1)
        self.linked = links is not None and links.knows(item.entry)
        self.total = item.values.new_zeros((len(item.values), hidden))
        self.rows: list[Tensor] = []
        self.columns = item.values.new_zeros((len(item.values), hidden, self.shape[-1]))
        self.sent: list[Tensor] = []

    def add(self, units: Tensor, part: slice, metas: Metas) -> None:
        """Take in the ``[K, hidden, width]`` units of a chunk of whole rows, or of a vector."""
        if len(self.shape) == 2:
            self.total += units.sum(2)
            if self.linked:
                self.sent.append((metas["send_vector"][:, None] @ units)[:, 0])
            return
        grid = units.unflatten(2, (-1, self.shape[2]))
        self.rows.append(grid.mean(3))
        self.columns += grid.sum(2)

    def finish(self, metas: Metas) -> tuple[dict[Side, Tensor], dict[Side, Tensor]]:
        """Return the mixed terms and the messages of every side."""

        def through(name: str, means: Tensor) -> Tensor:
            return (metas[name][:, None] @ means)[:, 0]

        if len(self.shape) == 2:
            mean = (metas["tensor"] * self.total).sum(1, keepdim=True) / self.shape[1]
            messages: dict[Side, Tensor] = {"vector": torch.cat(self.sent, 1)} if self.linked else {}
            return {"vector": mean.expand(self.shape)}, messages
        rows, columns = torch.cat(self.rows, 2), self.columns / self.shape[1]
        terms: dict[Side, Tensor] = {
            "row": through("row", rows) + (metas["tensor"] * rows.mean(2)).sum(1, keepdim=True),
            "column": through("column", columns),
        }
        if not self.linked:
            return terms, {}
        return terms, {"row": through("send_row", rows), "column": through("send_column", columns)}


def _width(values: Tensor) -> int:
    """Return the number of values of one tensor that a chunk has: whole rows of matrices."""
    width = max(CHUNK // len(values), 1)
    if values.ndim == 3:
        width = max(width // values.shape[2], 1) * values.shape[2]
    return min(width, values[0].numel())


def _whole_rows(values: Tensor) -> Iterator[slice]:
    """Yield the chunks of the flattened values of a bucket."""
    width, count = _width(values), values[0].numel()
    for start in range(0, count, width):
        yield slice(start, min(start + width, count))


def _rms(flat: Tensor) -> Tensor:
    """Return the ``[K]`` root mean squares of ``[K, n]``."""
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norms / sqrt(flat.shape[1])
