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

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor

from metanet.optim.chunks import chunks
from metanet.optim.links import Links
from metanet.optim.mixing import Passed, UnitMeans, exchange, mixing_metas, rms
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
        bases = self.bases(metas, items, progress)
        passed = [
            self._pass(metas, item, base, progress, links) for item, base in zip(items, bases, strict=True)
        ]
        if links is not None and self.mixing:
            exchange(metas, items, passed, links)
        return [result.finish() for result in passed]

    def _pass(
        self, metas: Metas, item: Item, base: tuple[Tensor, Tensor], progress: float, links: Links | None
    ) -> Passed:
        """Run the network over a bucket, a chunk at a time; no map of its hidden units is ever whole."""
        moved, adam = base
        if moved.device != metas["first"].device:
            metas = {name: meta.to(moved.device) for name, meta in metas.items()}
        count = len(moved)
        flat = [f.flatten(1) for f in (item.gradients, *item.state["momenta"], adam, moved, item.values)]
        sizes = torch.stack([rms(feature) for feature in flat], 1)
        weight = metas["first"].unflatten(1, (self.hidden, FEATURES))
        weight = weight / (sizes + sizes.new_tensor(FLOORS))[:, None]
        times = metas["first"].new_tensor([progress - 0.5, 4 * (progress - 0.5) ** 2])
        bias = metas["first_bias"] + metas["first_time"].unflatten(1, (self.hidden, TIMES)) @ times
        weight = torch.cat([weight, bias[..., None].expand(count, -1, -1)], 2)
        own = metas["own"][:, None] * sizes[:, 5, None, None]
        sums = UnitMeans(item, self.hidden, links) if self.mixing else None
        for some, part in chunks(flat[5], item.values.shape[-1]):
            height, width = some.stop - some.start, part.stop - part.start
            inputs = self.buffers.take("inputs", (height, FEATURES + 1, width), moved)
            ones = moved.new_ones(1).expand(height, width)
            torch.stack([*(feature[some, part] for feature in flat), ones], 1, out=inputs)
            units = self.buffers.take("units", (height, self.hidden, width), moved)
            torch.bmm(weight[some], inputs, out=units).clamp_(-1, 1)
            change = self.buffers.take("change", (height, 1, width), moved)
            flat[5][some, part].add_(torch.bmm(own[some], units, out=change)[:, 0])
            if sums is not None:
                sums.add(units, (some, part), metas)
        result = Passed(moved, sizes[:, 5])
        if sums is not None:
            result.terms, result.messages = sums.finish(metas)
        return result


class MixingRule(PerParameterRule):
    """The structured rule and a network that mixes over rows, columns, tensors, and units across tensors."""

    name = "mixing"
    hidden = 8
    mixing = True
    linked = True
    metas: Mapping[str, Meta] = _metas(8, mixing=True)
