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
from math import cos, exp, log, pi

import torch
from torch import Tensor

from metanet.optim.chunks import chunks
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


class StructuredRule(UpdateRule):
    """See the module's docstring."""

    name = "structured"
    metas = METAS

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
        return [self.base(metas, item, progress)[0] for item in items]

    def base(self, metas: Metas, item: Item, progress: float) -> tuple[Tensor, Tensor]:
        """Return the direction of one bucket, and the Adam direction beside it (the same one for vectors)."""
        values, role = item.values, item.role
        matrix = values.ndim == 3 and role != "embedding"
        adam = torch.empty_like(values, memory_format=torch.contiguous_format)
        mixed = torch.empty_like(adam) if matrix else None
        self._accumulate(metas, item, progress, adam, mixed)
        if mixed is None:
            return adam, adam

        def size(name: str, at: int) -> Factor:
            return factor(metas[name][:, at], 3)

        place = ROLES.index(role)
        rows, columns = values.shape[1:]
        turned = orthogonalize(mixed)
        scale = factor(metas["log_orthogonal"][:, place].exp() * max(1.0, rows / columns) ** 0.5, 3)
        power = size("row_power", 0)
        if isinstance(power, Tensor) or power:
            squares = torch.linalg.vector_norm(turned, dim=-1, keepdim=True).square_().div_(columns)
            squares.add_(1e-12)
            scale = scale * (squares.mean(-2, keepdim=True) / squares).pow_(power * 0.5)
        moved = torch.mul(turned, scale, out=mixed)
        add_scaled(moved, adam, size("adam", place))
        return add_scaled(moved, values, size("decay", 0)), adam

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
        for part in chunks(gradients):
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
