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
from dataclasses import dataclass, replace
from functools import cached_property
from math import cos, exp, log, pi

import torch
from torch import Tensor

from metanet.optim.buffers import Buffers, laid, together
from metanet.optim.chunks import CHUNK, Part, chunks
from metanet.optim.rule import (
    ROLES,
    Factor,
    Item,
    Meta,
    Metas,
    Mover,
    UpdateRule,
    add_scaled,
    factor,
    part_of,
)
from metanet.optim.rules.links import Links
from metanet.optim.rules.newton_schulz import KEPT, orthogonalize

BETAS = (0.8, 0.95, 0.99)
SECOND_BETA = 0.99
EPS = 1e-8
SPAN = 4 * CHUNK
"""Numbers that passes over few tensors handle at once: calls cost more than what no longer fits the cache."""


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


def is_turned(item: Item) -> bool:
    """Return whether a bucket's base direction is orthogonalised: matrices between units."""
    return item.values.ndim == 3 and item.role != "embedding"


@dataclass(slots=True)
class Base:
    """The direction D of a bucket, and the Adam direction beside it, which need not be whole.

    Args:
        item: the bucket, whose state has seen the gradients.
        weights: of the gradient and the momenta in the Adam direction.
        floor: added to the root of the second moment.
        buffers: memory for a part of the Adam direction.
        moved: ``[K, n]``, D of matrices; None where it is the Adam direction.
        whole: ``[K, n]``, the Adam direction if it is at hand.
    """

    item: Item
    weights: Sequence[Factor]
    floor: float
    buffers: Buffers
    moved: Tensor | None = None
    whole: Tensor | None = None

    def adam(self, at: Part, out: Tensor | None = None) -> Tensor:
        """Return a part of the Adam direction, written to ``out`` if it is not at hand."""
        if self.whole is not None:
            return self.whole[at]
        gradient = self.item.gradients.flatten(1)[at]
        momenta = self.item.state["momenta"].flatten(2)[:, *at]
        out = self.buffers.take("part of adam", gradient.shape, gradient) if out is None else out
        root = torch.sqrt(
            self.item.state["second"][0].flatten(1)[at],
            out=self.buffers.take("part of root", gradient.shape, gradient),
        )
        _mix([gradient, *momenta], self.weights, at[0], out)
        return out.div_(root.add_(self.floor))

    def direction(self, at: Part) -> Tensor:
        """Return a part of D; it may be changed."""
        return self.adam(at) if self.moved is None else self.moved[at]


class StructuredRule(UpdateRule):
    """See the module's docstring."""

    name = "structured"
    metas = METAS

    @cached_property
    def buffers(self) -> Buffers:
        """Memory that is kept between steps."""
        return Buffers()

    def memory(self, name: str, like: Tensor) -> Tensor:
        """Return contiguous memory of a tensor's shape, which is kept between steps unless it is huge."""
        if like.numel() > KEPT:
            return torch.empty_like(like, memory_format=torch.contiguous_format)
        return self.buffers.take(name, like.shape, like)

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

    def move(
        self,
        metas: Metas,
        items: Sequence[Item],
        progress: float,
        links: Links | None,
        movers: Sequence[Mover],
    ) -> None:
        """Move every bucket chunk by chunk; of a matrix between units D alone is whole."""
        for item, mover in zip(items, movers, strict=True):
            base = self.parted(metas, item, progress)
            for at in chunks(item.values.flatten(1), size=SPAN):
                mover(at, base.direction(at))

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
        base = self._accumulate(metas, whole, progress, adam=adam, mixed=mixed)
        values = [item.values for item in items]
        found = []
        for item, own, mix in zip(items, laid(adam, values), laid(mixed, values), strict=True):
            if is_turned(item):
                self._turn(metas, replace(base, item=item, whole=own.flatten(1)), mix)
            found.append((mix if is_turned(item) else own, own))
        return found

    def base(self, metas: Metas, item: Item, progress: float) -> tuple[Tensor, Tensor]:
        """Return the direction of one bucket, and the Adam direction beside it (the same one for vectors)."""
        adam = torch.empty_like(item.values, memory_format=torch.contiguous_format)
        mixed = torch.empty_like(adam) if is_turned(item) else None
        base = self.parted(metas, item, progress, adam, mixed)
        return adam if base.moved is None else base.moved.view_as(adam), adam

    def parted(
        self,
        metas: Metas,
        item: Item,
        progress: float,
        adam: Tensor | None = None,
        mixed: Tensor | None = None,
    ) -> Base:
        """Take the gradients of a bucket into its state and return its direction.

        Args:
            metas: meta-parameters.
            item: the bucket.
            progress: τ in [0, 1].
            adam: of the values' shape, where the whole Adam direction is wanted.
            mixed: of the values' shape, memory for D of matrices; without it D is valid until the next call.
        """
        if not is_turned(item):
            return self._accumulate(metas, item, progress, adam=adam, mixed=None)
        mixed = self.memory("direction", item.values) if mixed is None else mixed
        base = self._accumulate(metas, item, progress, adam=adam, mixed=mixed)
        base.moved = self._turn(metas, base, mixed).flatten(1)
        return base

    def _together(self, items: Sequence[Item]) -> Item | None:
        """Return all buckets as one ``[K, n]`` if they lie side by side; what is between them is zero."""
        gradients = together([item.gradients for item in items])
        second = together([item.state["second"] for item in items], 2)
        momenta = together([item.state["momenta"] for item in items], 2)
        if gradients is None or second is None or momenta is None:
            return None
        state = {"momenta": momenta, "second": second}
        return Item("vector", gradients, gradients, state, items[0].count)

    def _turn(self, metas: Metas, base: Base, mixed: Tensor) -> Tensor:
        """Turn the mixture of a matrix into o O + s A + λ W, in place."""
        values, place = base.item.values, ROLES.index(base.item.role)
        rows, columns = values.shape[1:]
        orthogonalize(mixed, buffers=self.buffers, out=mixed)
        scale = factor(metas["log_orthogonal"][:, place].exp() * max(1.0, rows / columns) ** 0.5, 3)
        power = factor(metas["row_power"][:, 0], 3)
        if isinstance(power, Tensor) or power:
            squares = torch.linalg.vector_norm(mixed, dim=-1, keepdim=True).square_().div_(columns)
            squares.add_(1e-12)
            scale = scale * (squares.mean(-2, keepdim=True) / squares).pow_(power * 0.5)
        mixed.mul_(scale)
        share, decay = factor(metas["adam"][:, place], 2), factor(metas["decay"][:, 0], 2)
        moved, own = mixed.flatten(1), values.flatten(1)
        for at in chunks(moved, size=SPAN):
            add_scaled(moved[at], base.adam(at), part_of(share, at[0]))
            add_scaled(moved[at], own[at], part_of(decay, at[0]))
        return mixed

    def _accumulate(
        self, metas: Metas, item: Item, progress: float, *, adam: Tensor | None, mixed: Tensor | None
    ) -> Base:
        """Take the gradients into the state and write mixtures that are wanted whole, a chunk at a time."""
        gradients, momenta = item.gradients.flatten(1), item.state["momenta"].flatten(2)
        second = item.state["second"][0].flatten(1)
        corrections = [1.0, *(1 - beta**item.count for beta in BETAS)]
        root = (1 - SECOND_BETA**item.count) ** 0.5

        def weights(name: str, by: float = 1.0) -> list[Factor]:
            found = metas[name] + metas[name + "_drift"] * (progress - 0.5)
            found = found * by / found.new_tensor(corrections)
            if len(found) == 1 and not found.requires_grad:
                return list(map(float, found[0].tolist()))
            return [column[:, None] for column in found.unbind(1)]

        base = Base(item, weights("adam_momentum", root), EPS * root, self.buffers)
        mixture = weights("momentum")
        shares = gradients.new_tensor([1 - beta for beta in BETAS])[:, None, None]
        for at in chunks(gradients, size=SPAN):
            gradient = gradients[at]
            carried = momenta[:, *at].lerp_(gradient, shares)
            square = second[at].mul_(SECOND_BETA)
            square.addcmul_(gradient, gradient, value=1 - SECOND_BETA)
            if mixed is not None:
                _mix([gradient, *carried], mixture, at[0], mixed.flatten(1)[at])
            if adam is not None:
                base.adam(at, adam.flatten(1)[at])
        base.whole = None if adam is None else adam.flatten(1)
        return base


def _mix(terms: Sequence[Tensor], by: Sequence[Factor], some: slice, out: Tensor) -> None:
    """Write the weighted sum of terms."""
    torch.mul(terms[0], part_of(by[0], some), out=out)
    for term, amount in zip(terms[1:], by[1:], strict=True):
        add_scaled(out, term, part_of(amount, some))
