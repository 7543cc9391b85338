r"""Networks on top of the structured rule: one per parameter, one that mixes over the axes of the weights.

Every parameter has features x (gradient, momenta, Adam direction, structured direction D, own value), each
divided by its root mean square over the tensor. A hidden layer h = clip(W₁ x + b + S s(τ), -1, 1) is followed
by a linear layer that commutes with permutations of rows and columns and with those of the spec:

    f = w·h + mean over columns of (w_row·h) + mean over rows of (w_col·h) + mean over the tensor of (w_all·h)
        + messages between tensors that share units (`metanet.optim.rules.links`)
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

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor

from metanet.optim.chunks import CHUNK, Part, chunks
from metanet.optim.rule import Item, Meta, Metas, Mover
from metanet.optim.rules.links import Links
from metanet.optim.rules.mixing import Passed, UnitMeans, exchange, mixing_metas, rms
from metanet.optim.rules.pointwise import on_device
from metanet.optim.rules.structured import METAS, SPAN, Base, StructuredRule, is_turned

FEATURES = 7
TIMES = 2
SMALL = 1 << 18
"""Numbers of a bucket up to which its Adam direction is kept whole, not computed twice."""
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
        metas |= mixing_metas(hidden, 0.05)
    return metas


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
        bases, passed = self.bases(metas, items, progress), []
        for item, (moved, adam) in zip(items, bases, strict=True):
            base = Base(item, (), 1.0, self.buffers, moved.flatten(1), adam.flatten(1))
            passed.append(self._pass(metas, base, progress, links, None))
        if links is not None and self.mixing:
            exchange(metas, items, passed, links)
        for item, (moved, _), result in zip(items, bases, passed, strict=True):
            for at in chunks(moved.flatten(1), item.values.shape[-1]) if result.terms else ():
                moved.flatten(1)[at].add_(result.part(at, item.values, self.buffers))
        return [moved for moved, _ in bases]

    def move(
        self,
        metas: Metas,
        items: Sequence[Item],
        progress: float,
        links: Links | None,
        movers: Sequence[Mover],
    ) -> None:
        """Move every bucket by what it needs no other for, chunk by chunk, and then by the mixed terms."""
        passed = []
        for item, mover in zip(items, movers, strict=True):
            small = item.values.numel() <= SMALL or is_turned(item)
            adam = self.memory("adam", item.values) if small else None
            base = self.parted(metas, item, progress, adam)
            passed.append(self._pass(metas, base, progress, links, mover))
            del base, adam  # before the next matrix has its own
        if links is not None and self.mixing:
            exchange(metas, items, passed, links)
        for item, mover, result in zip(items, movers, passed, strict=True):
            for at in chunks(item.values.flatten(1), item.values.shape[-1], SPAN) if result.terms else ():
                mover(at, result.part(at, item.values, self.buffers), again=True)

    def _pass(
        self,
        metas: Metas,
        base: Base,
        progress: float,
        links: Links | None,
        mover: Mover | None,
    ) -> Passed:
        """Run the network over a bucket, a chunk at a time; no map of its hidden units is ever whole.

        Args:
            metas: meta-parameters.
            base: the bucket and its structured direction D.
            progress: τ in [0, 1].
            links: which units tensors share.
            mover: takes parts of D + rms(D) w·h; None to leave them where D is.
        """
        item, values = base.item, base.item.values.flatten(1)
        metas = on_device(metas, values)
        sources = [item.gradients.flatten(1), *item.state["momenta"].flatten(2)]
        sizes = self._sizes(base, sources, values)
        weight = metas["first"].unflatten(1, (self.hidden, FEATURES))
        weight = weight / (sizes + sizes.new_tensor(FLOORS))[:, None]
        times = metas["first"].new_tensor([progress - 0.5, 4 * (progress - 0.5) ** 2])
        bias = metas["first_bias"] + metas["first_time"].unflatten(1, (self.hidden, TIMES)) @ times
        weight = torch.cat([weight, bias[..., None].expand(len(values), -1, -1)], 2)
        maps = metas["own"][:, None] * sizes[:, 5, None, None]
        sums = UnitMeans(item, links) if self.mixing else None
        if sums is not None:
            maps = torch.cat([maps, sums.maps(metas).expand(len(values), -1, -1)], 1)
        for at in chunks(values, item.values.shape[-1]):
            adam = base.adam(at)
            moved = adam if base.moved is None else base.moved[at]
            parts = [*(source[at] for source in sources), adam, moved, values[at]]
            self._run(parts, weight[at[0]], maps[at[0]], at, sums)
            if mover is not None:
                mover(at, moved)
        result = Passed(sizes[:, 5])
        if sums is not None:
            result.terms, result.messages = sums.finish()
        return result

    def _run(
        self, parts: Sequence[Tensor], weight: Tensor, maps: Tensor, at: Part, sums: UnitMeans | None
    ) -> None:
        """Add the first map of the hidden units of a part to D, and hand the other ones on."""
        count, width = parts[0].shape
        inputs = self.buffers.take("inputs", (count, FEATURES + 1, width), weight)
        torch.stack([*parts, weight.new_ones(1).expand(count, width)], 1, out=inputs)
        units = self.buffers.take("units", (count, self.hidden, width), weight)
        torch.bmm(weight, inputs, out=units).clamp_(-1, 1)
        found = self.buffers.take("maps", (count, maps.shape[1], width), weight)
        torch.bmm(maps, units, out=found)
        parts[5].add_(found[:, 0])
        if sums is not None:
            sums.add(found[:, 1:], at)

    def _sizes(self, base: Base, sources: Sequence[Tensor], values: Tensor) -> Tensor:
        """Return the ``[K, features]`` root mean squares of the features."""
        if base.whole is not None:
            adam = rms(base.whole)
        else:
            squares = values.new_zeros(len(values))
            for at in chunks(values, size=2 * CHUNK):
                squares[at[0]] += torch.linalg.vector_norm(base.adam(at), dim=1).square_()
            adam = (squares / values.shape[1]).sqrt_()
        moved = adam if base.moved is None else rms(base.moved)
        return torch.stack([*(rms(source) for source in sources), adam, moved, rms(values)], 1)


class MixingRule(PerParameterRule):
    """The structured rule and a network that mixes over rows, columns, tensors, and units across tensors."""

    name = "mixing"
    hidden = 8
    mixing = True
    linked = True
    bucketed = True
    metas: Mapping[str, Meta] = _metas(8, mixing=True)
