r"""A structured update rule: a few dozen meta-learned numbers around an orthogonalised and an Adam direction.

With momenta m_i (decays β_i, bias-corrected), second moment v and progress τ = t/T, a matrix moves by

    u = Σ_i (a_i + b_i τ) m_i                            mixture of the gradient (m_0) and its momenta
    O = √max(1, rows/columns) orthogonalize(u), row r divided by rms(O_r)^ρ
    A = Σ_i (c_i + d_i τ) m_i / (√v + ε)
    W <- W - η(τ) r_role (o O + s A + λ W)

and vectors and embeddings by the Adam part alone (o = 0, s = 1). The step size is a schedule of its own, so
that there is no rate to tune:

    η(τ) = (cos²(πτ/2))^κ exp(Σ_j k_j φ_j(t, τ))

At its initial values the rule is Muon with a cosine schedule, and Adam on vectors. A step commutes with
permutations of the rows and columns of every tensor.

References:
    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. Kristiansen et al. 2024, Narrowing the
    focus: learned optimizers for pretrained models (learned combinations of base directions),
    https://arxiv.org/abs/2408.09310. Li et al. 2025, NorMuon, https://arxiv.org/abs/2510.05491 (rows).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import cos, exp, log, pi

import torch
from torch import Tensor

from metanet.optim.buffers import Buffers, laid, together
from metanet.optim.chunks import CHUNK, chunks
from metanet.optim.links import Links
from metanet.optim.newton_schulz import orthogonalize
from metanet.optim.rule import ROLES, Factor, Item, Meta, Metas, UpdateRule, add_scaled, factor

BETAS = (0.8, 0.95, 0.99)
SECOND_BETA = 0.99
EPS = 1e-8


METAS: Mapping[str, Meta] = {
    "log_rate": Meta((log(0.016), log(0.016), log(0.016), log(0.008)), 0.3),
    "log_orthogonal": Meta((0.0, 0.0), 0.3),
    "adam": Meta((0.0, 0.0), 0.1),
    "momentum": Meta((0.05, 0.0, 0.95, 0.0), 0.2),
    "momentum_drift": Meta((0.0, 0.0, 0.0, 0.0), 0.2),
    "adam_momentum": Meta((0.0, 0.0, 1.0, 0.0), 0.2),
    "adam_momentum_drift": Meta((0.0, 0.0, 0.0, 0.0), 0.2),
    "row_power": Meta((0.0,), 0.2),
    "log_cosine_power": Meta((0.0,), 0.2),
    "schedule": Meta((0.0, 0.0, 0.0, 0.0), 0.3),
    "decay": Meta((0.0,), 0.05),
}
"""Meta-learned tensors by name, in the order in which they stand in a flat vector."""


def _is_turned(item: Item) -> bool:
    return item.values.ndim == 3 and item.role != "embedding"


class StructuredRule(UpdateRule):
    """See the module's docstring."""

    name = "structured"
    metas = METAS

    @cached_property
    def buffers(self) -> Buffers:
        """Memory that is kept between steps."""
        return Buffers()

    def state(self, shape: Sequence[int], like: Tensor) -> dict[str, Tensor]:
        """Return momenta ``[3, *shape]`` and the second moment ``[1, *shape]``."""
        return {
            "momenta": like.new_zeros((len(BETAS), *shape)),
            "second": like.new_zeros((1, *shape)),
        }

    def rate(self, metas: Metas, role: str, step: int, horizon: int) -> Tensor:
        """Return η(τ) r."""
        tau = min((step + 0.5) / horizon, 1 - 0.5 / horizon)
        basis = metas["schedule"].new_tensor([tau - 0.5, (tau - 0.5) ** 2, exp(-step / 10), exp(-step / 100)])
        power = metas["log_cosine_power"][:, 0].exp()
        schedule = power * log(0.5 + 0.5 * cos(pi * tau)) + metas["schedule"] @ basis
        result: Tensor = (schedule + metas["log_rate"][:, ROLES.index(role)]).exp()
        return result

    def directions(
        self, metas: Metas, items: Sequence[Item], progress: float, links: Links | None = None
    ) -> list[Tensor]:
        """Return o O + s A + λ W for matrices between units, A for vectors and embeddings."""
        return [moved for moved, _ in self.bases(metas, items, progress)]

    def bases(self, metas: Metas, items: Sequence[Item], progress: float) -> list[tuple[Tensor, Tensor]]:
        """Return the direction of every bucket, and the Adam direction beside it (the same one for vectors).

        Tensors that lie side by side, as those of particles do, go through the pointwise part at once.
        """
        whole = self._together(items)
        if whole is None:
            return [self.base(metas, item, progress) for item in items]
        adam, mixed = (
            self.buffers.take(name, whole.values.shape, whole.values) for name in ("adam", "mixed")
        )
        self._accumulate(metas, whole, progress, adam, mixed)
        values = [item.values for item in items]
        return [
            (self._turned(metas, item, mix, own), own) if _is_turned(item) else (own, own)
            for item, own, mix in zip(items, laid(adam, values), laid(mixed, values), strict=True)
        ]

    def base(self, metas: Metas, item: Item, progress: float) -> tuple[Tensor, Tensor]:
        """Return the direction of one bucket, and the Adam direction beside it (the same one for vectors)."""
        adam = torch.empty_like(item.values, memory_format=torch.contiguous_format)
        mixed = torch.empty_like(adam) if _is_turned(item) else None
        self._accumulate(metas, item, progress, adam, mixed)
        return adam if mixed is None else self._turned(metas, item, mixed, adam), adam

    def _together(self, items: Sequence[Item]) -> Item | None:
        """Return all buckets as one ``[K, n]`` if they lie side by side; what is between them is zero."""
        gradients = together([item.gradients for item in items])
        second = together([item.state["second"] for item in items], 2)
        momenta = together([item.state["momenta"] for item in items], 2)
        if gradients is None or second is None or momenta is None:
            return None
        state = {"momenta": momenta, "second": second}
        return Item("vector", gradients, gradients, state, items[0].count)

    def _turned(self, metas: Metas, item: Item, mixed: Tensor, adam: Tensor) -> Tensor:
        """Return o O + s A + λ W of a matrix, in the memory of its mixture."""

        def size(name: str, at: int) -> Factor:
            return factor(metas[name][:, at], 3)

        values, place = item.values, ROLES.index(item.role)
        rows, columns = values.shape[1:]
        turned = orthogonalize(mixed, buffers=self.buffers)
        scale = factor(metas["log_orthogonal"][:, place].exp() * max(1.0, rows / columns) ** 0.5, 3)
        power = size("row_power", 0)
        if isinstance(power, Tensor) or power:
            squares = torch.linalg.vector_norm(turned, dim=-1, keepdim=True).square_().div_(columns)
            squares.add_(1e-12)
            scale = scale * (squares.mean(-2, keepdim=True) / squares).pow_(power * 0.5)
        moved = torch.mul(turned, scale, out=mixed)
        add_scaled(moved, adam, size("adam", place))
        return add_scaled(moved, values, size("decay", 0))

    def _accumulate(
        self, metas: Metas, item: Item, progress: float, adam: Tensor, mixed: Tensor | None
    ) -> None:
        """Take the gradients into the state and write both mixtures, a chunk at a time."""
        gradients, momenta = item.gradients.flatten(1), item.state["momenta"].flatten(2)
        second = item.state["second"][0].flatten(1)
        corrections = [1.0, *(1 - beta**item.count for beta in BETAS)]

        def weights(name: str) -> list[Factor]:
            found = metas[name] + metas[name + "_drift"] * (progress - 0.5)
            return [factor(found[:, i] / correction, 2) for i, correction in enumerate(corrections)]

        outputs = [(adam.flatten(1), weights("adam_momentum"))]
        if mixed is not None:
            outputs.append((mixed.flatten(1), weights("momentum")))
        spread = (1 - SECOND_BETA**item.count) ** -0.5
        for part in chunks(gradients, size=2 * CHUNK):
            gradient = gradients[part]
            carried = [momentum[part] for momentum in momenta]
            for beta, momentum in zip(BETAS, carried, strict=True):
                momentum.lerp_(gradient, 1 - beta)
            square = second[part].mul_(SECOND_BETA)
            square.addcmul_(gradient, gradient, value=1 - SECOND_BETA)
            for output, by in outputs:
                here = [amount[part[0]] if isinstance(amount, Tensor) else amount for amount in by]
                total = torch.mul(gradient, here[0], out=output[part])
                for term, amount in zip(carried, here[1:], strict=True):
                    add_scaled(total, term, amount)
            outputs[0][0][part].div_(square.sqrt().mul_(spread).add_(EPS))
