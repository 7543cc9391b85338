r"""Networks on top of the structured rule: one per parameter, one that mixes over the axes of the weights.

Every parameter has features x (gradient, momenta, Adam direction, structured direction D, own value), each
divided by its root mean square over the tensor. A hidden layer h = tanh(W₁ x + b + S s(τ)) is followed by a
linear layer that commutes with permutations of rows and columns and with those of the spec:

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

from metanet.optim.links import SIDES, Links, Side
from metanet.optim.rule import Item, Meta, Metas
from metanet.optim.structured import METAS, StructuredRule

FEATURES = 7
TIMES = 2
FLOORS = (1e-8, 1e-8, 1e-8, 1e-8, 1e-3, 1e-3, 1e-8)
"""Added to the root mean squares: gradients that are rounding errors stay small, as with Adam's ε."""
CHUNK = 1 << 15
"""Parameters whose hidden units are held at once, so that they stay in cache."""


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
        found = [self.base(metas, item, progress) for item in items]
        parts = [
            self._maps(metas, item, moved, adam, progress)
            for item, (moved, adam) in zip(items, found, strict=True)
        ]
        outputs = [part["own"] for part in parts]
        if self.mixing:
            outputs = [self._mixed(item, part) for item, part in zip(items, parts, strict=True)]
            if links is not None:
                self._exchange(metas, items, parts, outputs, links)
        return [moved + _rms(moved) * output for (moved, _), output in zip(found, outputs, strict=True)]

    def _maps(
        self, metas: Metas, item: Item, moved: Tensor, adam: Tensor, progress: float
    ) -> dict[str, Tensor]:
        """Return the linear maps of the hidden units by name: ``[K, *shape]`` each."""
        features = [item.gradients, *item.state["momenta"], adam, moved, item.values]
        names = ["own"]
        if self.mixing:
            names += ["row", "column"] if item.values.ndim == 3 else []
            names += ["tensor"]
            names += ["send_row", "send_column"] if item.values.ndim == 3 else ["send_vector"]
        weight = metas["first"].unflatten(1, (self.hidden, FEATURES))
        scale = torch.stack([_rms(feature).flatten() for feature in features], 1)
        scale = scale + scale.new_tensor(FLOORS)
        weight = weight / scale[:, None]
        times = metas["first"].new_tensor([progress - 0.5, 4 * (progress - 0.5) ** 2])
        bias = metas["first_bias"] + metas["first_time"].unflatten(1, (self.hidden, TIMES)) @ times
        last = torch.stack([metas[name] for name in names], 1)
        count = item.values[0].numel()
        flat = [feature.flatten(1) for feature in features]
        width = max(CHUNK // len(item.values), 1)
        maps = item.values.new_empty((len(item.values), len(names), count))
        for start in range(0, count, width):
            stop = min(start + width, count)
            stacked = torch.stack([feature[:, start:stop] for feature in flat], 1)
            inner = torch.baddbmm(bias[..., None].expand(len(stacked), -1, -1), weight, stacked).tanh_()
            maps[..., start:stop] = last.expand(len(inner), -1, -1) @ inner
        return {name: maps[:, i].reshape(item.values.shape) for i, name in enumerate(names)}

    @staticmethod
    def _mixed(item: Item, part: Mapping[str, Tensor]) -> Tensor:
        output = part["own"] + part["tensor"].flatten(1).mean(1).reshape(-1, *(1,) * (item.values.ndim - 1))
        if item.values.ndim == 3:
            output = output + part["row"].mean(2, keepdim=True) + part["column"].mean(1, keepdim=True)
        return output

    @staticmethod
    def _exchange(
        metas: Metas,
        items: Sequence[Item],
        parts: Sequence[Mapping[str, Tensor]],
        outputs: list[Tensor],
        links: Links,
    ) -> None:
        """Add, in place of the list, the messages between tensors that share units."""
        shapes = links.spec.shapes
        messages: dict[str, dict[Side, Tensor]] = {}
        for item, part in zip(items, parts, strict=True):
            if item.entry is not None and links.knows(item.entry):
                messages[item.entry] = {
                    side: part[f"send_{side}"].reshape(-1, *shapes[item.entry])
                    for side in SIDES
                    if f"send_{side}" in part
                }
        pools = links.gather(messages)
        receive: dict[Side, Tensor] = {side: metas["receive"][:, i] for i, side in enumerate(SIDES)}
        for i, item in enumerate(items):
            if item.entry is not None and item.entry in messages:
                like = outputs[i].reshape(-1, *shapes[item.entry])
                back = links.scatter(item.entry, pools, receive, like)
                outputs[i] = outputs[i] + back.reshape(outputs[i].shape)


class MixingRule(PerParameterRule):
    """The structured rule and a network that mixes over rows, columns, tensors, and units across tensors."""

    name = "mixing"
    hidden = 8
    mixing = True
    linked = True
    metas: Mapping[str, Meta] = _metas(8, mixing=True)


def _rms(values: Tensor) -> Tensor:
    """Return ``[K, 1, …]`` root mean squares."""
    return values.flatten(1).square().mean(1).sqrt().reshape(-1, *(1,) * (values.ndim - 1))
