r"""A nominal momentum step and a learned residual: Deep Sets and universal neural functionals as optimizers.

The parameter, its gradient and six momenta, clipped to [-1, 1] and divided by their root mean square over the
tensor, and 11 features of time enter three layers of 32 units with ReLU that act on every parameter alone.
The last layer is pointwise too (Deep Sets) or equivariant (UNF), and

    p <- p - α (m + β f),  m the momentum with decay 0.9

The original UNF has weights for every pair of tensors of one architecture; here they are shared by the way in
which tensors meet units (`metanet.optim.rules.links`), so that one set of weights serves every architecture,
and the decay of m is fixed. α and β are learned.

References:
    Zhou, Finn and Harrison 2024, Universal neural functionals, https://arxiv.org/abs/2402.05232. Zaheer et
    al. 2017, Deep sets, https://arxiv.org/abs/1703.06114.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import torch
from torch import Tensor

from metanet.optim.chunks import chunks
from metanet.optim.rule import Item, Meta, Metas, UpdateRule
from metanet.optim.rules.links import Links
from metanet.optim.rules.mixing import Passed, UnitMeans, exchange, mixing_metas, whole_rows
from metanet.optim.rules.pointwise import TIMES, hidden_units, layers, linear, on_device, sizes, times

DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
NOMINAL = 2
HIDDEN = 32
FLOOR = 1e-5
METAS: Mapping[str, Meta] = {
    "log_alpha": Meta((log(0.1),), 0.3),
    "log_beta": Meta((log(1e-3),), 0.3),
    **layers((2 + len(DECAYS) + len(TIMES), HIDDEN, HIDDEN, HIDDEN, 1)),
}


class DeepSetsRule(UpdateRule):
    """See the module's docstring: every parameter alone."""

    name = "deep_sets"
    mixing = False
    metas: Mapping[str, Meta] = METAS

    def state(self, shape: Sequence[int], like: Tensor) -> dict[str, Tensor]:
        """Return six momenta."""
        return {"momenta": like.new_zeros((len(DECAYS), *shape))}

    def rate(self, metas: Metas, role: str, step: int, horizon: int) -> Tensor:
        """Return α."""
        return metas["log_alpha"][:, 0].exp()

    def fallback(self, item: Item) -> Tensor:
        """Return the nominal direction."""
        return item.state["momenta"][NOMINAL].clone()

    def directions(
        self, metas: Metas, items: Sequence[Item], progress: float, links: Links | None = None
    ) -> list[Tensor]:
        """Return m + β f."""
        found = [self._pass(on_device(metas, item.values), item, links) for item in items]
        moves, passed = [moved for moved, _ in found], [result for _, result in found]
        if links is not None and self.mixing:
            exchange(metas, items, passed, links)
        for (moved, result), item in zip(zip(moves, passed, strict=True), items, strict=True):
            flat = moved.flatten(1)
            for at in chunks(flat, item.values.shape[-1]) if result.terms else ():
                flat[at].add_(result.part(at, item.values))
        return moves

    def _pass(self, metas: Metas, item: Item, links: Links | None) -> tuple[Tensor, Passed]:
        momenta = item.state["momenta"]
        for decay, momentum in zip(DECAYS, momenta, strict=True):
            momentum.lerp_(item.gradients, 1 - decay)
        moved = torch.empty_like(item.values, memory_format=torch.contiguous_format)
        moved.copy_(momenta[NOMINAL])
        flat, clock = moved.flatten(1), times(item.count - 1, moved)
        sources = [item.values.flatten(1), item.gradients.flatten(1), *momenta.flatten(2)]

        def features(part: slice) -> Tensor:
            return torch.stack([source[:, part] for source in sources], 1).clamp_(-1, 1)

        scale = sizes(item, features) + FLOOR
        beta = metas["log_beta"].exp()
        sums = UnitMeans(item, links) if self.mixing else None
        maps = None if sums is None else sums.maps(metas)
        for part in whole_rows(item.values):
            own = features(part).div_(scale)
            inputs = torch.cat([own, clock.expand(len(own), -1, own.shape[2])], 1)
            units = hidden_units(metas, inputs, 3)
            flat[:, part] += beta * linear(metas, units, 3)[:, 0]
            if sums is not None and maps is not None:
                sums.add(maps @ units, (slice(0, len(units)), part))
        result = Passed(beta[:, 0].expand(len(moved)))
        if sums is not None:
            result.terms, result.messages = sums.finish()
        return moved, result


class UNFRule(DeepSetsRule):
    """See the module's docstring: an equivariant last layer over the derived spec."""

    name = "unf"
    mixing = True
    linked = True
    bucketed = True
    metas: Mapping[str, Meta] = {**METAS, **mixing_metas(HIDDEN, 0.1)}
