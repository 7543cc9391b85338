r"""A direction from 30 features, of root mean square one; the size of the step is the user's.

The features of VeLO, each divided by its root mean square over the tensor, enter a network with two hidden
layers of eight units. Its output f gives matrices the direction f / rms(f); vectors and embeddings move by
Adam:

    p <- p - 10⁻³ lr f / rms(f)

Any scheduler sets ``lr``. Of the original's three outputs the two that it does not use are left out.

References:
    Moudgil, Knyazev and Belilovsky 2026, Celo2, https://arxiv.org/abs/2602.19142. Metz et al. 2022, VeLO,
    https://arxiv.org/abs/2211.09760 (features).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metanet.optim.rule import Item, Meta, Metas
from metanet.optim.rules.factored import DECAYS, SECOND_DECAY, FactoredRule, accumulate
from metanet.optim.rules.pointwise import layers

FEATURES = 30


class Celo2Rule(FactoredRule):
    """See the module's docstring; 329 meta-parameters."""

    name = "celo2"
    compilable = True
    metas: Mapping[str, Meta] = layers((FEATURES, 8, 8, 1))

    def direction(self, metas: Metas, item: Item) -> Tensor:
        """Return f / rms(f) for matrices, Adam's direction for vectors and embeddings."""
        accumulate(item, fused=self.compiled)
        if item.values.ndim == 2 or item.role == "embedding":
            momentum = item.state["momenta"][0] / (1 - DECAYS[0] ** item.count)
            second = item.state["second"][0] / (1 - SECOND_DECAY**item.count)
            return momentum.div_(second.sqrt_().add_(1e-8))
        moved = torch.empty_like(item.values, memory_format=torch.contiguous_format)
        flat = moved.flatten(1)
        for at, found in self.outputs(metas, item, short=True):
            flat[at].copy_(found[:, 0])
        size = torch.linalg.vector_norm(flat, dim=1, keepdim=True) / flat.shape[1] ** 0.5
        flat.div_(size + 1e-8)
        return moved
