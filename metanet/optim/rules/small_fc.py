r"""A network of every parameter alone on 39 features, as published: ``small_fc_lopt``.

28 features of the parameter and Adafactor's accumulators, each divided by its root mean square over the
tensor, and 11 features of time enter a network with two hidden layers and outputs (d, m):

    p <- p - λ d exp(10⁻³ m),  λ = 10⁻³

The decays of the accumulators are fixed here (the original learns them).

References:
    Metz, Freeman, Harrison, Maheswaranathan and Sohl-Dickstein 2022, Practical tradeoffs between memory,
    compute, and performance in learned optimizers, https://arxiv.org/abs/2203.11860.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metanet.optim.rule import Item, Meta, Metas
from metanet.optim.rules.factored import FactoredRule, accumulate
from metanet.optim.rules.pointwise import TIMES, layers, times

FEATURES = 28


class SmallFCRule(FactoredRule):
    """See the module's docstring; 32 hidden units, 2,402 meta-parameters."""

    name = "small_fc"
    metas: Mapping[str, Meta] = layers((FEATURES + len(TIMES), 32, 32, 2))

    def direction(self, metas: Metas, item: Item) -> Tensor:
        """Return d exp(10⁻³ m)."""
        accumulate(item)
        moved = torch.empty_like(item.values, memory_format=torch.contiguous_format)
        flat, clock = moved.flatten(1), times(item.count - 1, moved)[0, :, 0]
        for at, found in self.outputs(metas, item, short=False, clock=clock):
            torch.mul(found[:, 0], found[:, 1].mul_(1e-3).exp_(), out=flat[at])
        return moved
