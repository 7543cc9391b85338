"""The contract of update rules: what a learned optimizer is made of, in use and in meta-training alike.

A rule works on *buckets*: K tensors of one shape and role, stacked on the first dimension. In deployment the
bucket holds tensors of one network that share the meta-parameters; in meta-training it holds one tensor of
every particle, each with meta-parameters of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol, Self, TypeAlias

import torch
from torch import Tensor

from metanet.optim.chunks import Part
from metanet.optim.rules.links import Links

ROLES = ("hidden", "output", "embedding", "vector")
"""How a tensor is treated: a matrix between units, the last matrix, an embedding, or one dimension."""


@dataclass(frozen=True, slots=True)
class Meta:
    """A meta-learned tensor: its initial values, and the size of a sensible change of each."""

    initial: tuple[float, ...]
    scale: float


Metas = Mapping[str, Tensor]
"""Meta-parameters by name, each ``[P, n]``: P is K (every tensor of a bucket has its own, on its device) or 1
(all share them; on the CPU)."""


Factor: TypeAlias = float | Tensor
"""A number, or ``[P, 1, …]`` numbers that broadcast over the tensors of a bucket."""


def factor(values: Tensor, rank: int) -> Factor:
    """Return ``[P]`` meta-learned values as a number if there is one, else ``[P, 1, …]`` of some rank.

    A value that is differentiated stays a tensor.
    """
    if len(values) == 1 and not values.requires_grad:
        return values.item()
    return values.reshape(-1, *(1,) * (rank - 1))


def add_scaled(total: Tensor, term: Tensor, by: Factor) -> Tensor:
    """Add a multiple of a term, in place and in one pass; a term with factor zero is left out."""
    if isinstance(by, Tensor):
        return total.addcmul_(term, by)
    return total.add_(term, alpha=by) if by else total


def part_of(by: Factor, some: slice) -> Factor:
    """Return the factors of some of the tensors of a bucket."""
    return by[some] if isinstance(by, Tensor) else by


@dataclass(frozen=True, slots=True)
class Item:
    """One bucket in a step.

    Args:
        role: of the tensors, one of `ROLES`.
        values: ``[K, rows, columns]`` or ``[K, n]``.
        gradients: the same shape.
        state: of the bucket; updated in place.
        count: gradients that the state will have seen, this one included.
        entry: name of the tensor in the spec, for terms across tensors.
        stacked: the K tensors are the slices of that one entry, such as experts.
        entries: names of the K tensors in the spec, where each is an entry; instead of ``entry``.
    """

    role: str
    values: Tensor
    gradients: Tensor
    state: Mapping[str, Tensor]
    count: int
    entry: str | None = None
    stacked: bool = False
    entries: tuple[str, ...] = ()

    @property
    def named(self) -> dict[str, slice]:
        """Which of the K tensors an entry of the spec is."""
        if self.entry is not None:
            return {self.entry: slice(0, len(self.values))}
        return {name: slice(i, i + 1) for i, name in enumerate(self.entries)}


class Mover(Protocol):
    """Takes the direction of a part of a bucket, ``[k, width]`` at some tensors and values, and moves it.

    ``again`` says that this part has been moved before, by what did not need all of the bucket.
    """

    def __call__(self, at: Part, direction: Tensor, *, again: bool = False) -> None:
        """Subtract a multiple of the direction."""


class UpdateRule(ABC):
    """A learned update rule.

    ``metas`` lists the meta-learned tensors in the order in which they stand in a flat vector.
    """

    name: str
    metas: Mapping[str, Meta]
    bucketed: bool = False
    """Whether linked tensors of one shape may share a bucket, for which the rule reads `Item.named`."""
    linked: bool = False
    """Whether the rule has terms across tensors, for which it wants the spec of the network."""
    needs_spec: bool = False
    """Whether it is nothing without one."""
    compilable: bool = False
    """Whether it has loops for ``torch.compile`` (`metanet.optim.rules.fused`)."""
    compiled: bool = False
    """Whether it uses them; the results are the same."""

    @property
    def size(self) -> int:
        """Number of meta-parameters."""
        return sum(len(meta.initial) for meta in self.metas.values())

    def compiling(self) -> Self:
        """Return this rule with compiled loops, which give the same results.

        Raises:
            ValueError: it has none.
        """
        if not self.compilable:
            raise ValueError(
                f"the rule {self.name!r} has no loops to compile: its products of matrices are faster as "
                "they are. Leave compile out"
            )
        found = copy(self)
        found.compiled = True
        return found

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """Return meta-parameters for ``[P, size]`` changes in units of their scales; 0 is the start."""
        found, start = {}, 0
        for name, meta in self.metas.items():
            change = flat[:, start : start + len(meta.initial)] * meta.scale
            found[name] = change + change.new_tensor(meta.initial)
            start += len(meta.initial)
        return found

    def initial(self) -> dict[str, Tensor]:
        """Return the initial meta-parameters, ``[1, n]`` each."""
        return self.unpack(torch.zeros(1, self.size))

    @abstractmethod
    def state(self, shape: Sequence[int], like: Tensor) -> dict[str, Tensor]:
        """Return zero state ``[slots, K, …]`` for a bucket ``[K, rows, columns]`` or ``[K, n]``.

        `fallback` needs ``momenta`` (two or more, the second one slow) and ``second``.
        """

    @abstractmethod
    def rate(self, metas: Metas, role: str, step: int, horizon: int) -> Tensor:
        """Return the ``[P]`` step sizes at a step in 0 … horizon - 1: the rule's own schedule."""

    @abstractmethod
    def directions(
        self, metas: Metas, items: Sequence[Item], progress: float, links: Links | None = None
    ) -> list[Tensor]:
        """Return what a step of rate one subtracts from every bucket, and take the gradients into the states.

        Args:
            metas: meta-parameters.
            items: buckets; all tensors of a network where terms across tensors are wanted.
            progress: τ in [0, 1], how much of the training is over.
            links: which units tensors share; None leaves terms across tensors out.
        """

    def move(
        self,
        metas: Metas,
        items: Sequence[Item],
        progress: float,
        links: Links | None,
        movers: Sequence[Mover],
    ) -> None:
        """Hand what `directions` returns to a mover per bucket; rules that can do so go part by part.

        Whoever overrides one of the two in a class that has both of its own overrides the other.

        Args:
            metas: meta-parameters.
            items: buckets, whose values the movers change.
            progress: τ in [0, 1].
            links: which units tensors share.
            movers: see `Mover`.
        """
        found = self.directions(metas, items, progress, links)
        for mover, moved in zip(movers, found, strict=True):
            flat = moved.flatten(1)
            mover((slice(0, flat.shape[0]), slice(0, flat.shape[1])), flat)

    def fallback(self, item: Item) -> Tensor:
        """Return the direction that is taken where the rule's own is not finite: Adam's."""
        return item.state["momenta"][1] / (item.state["second"][0].sqrt() + 1e-8)
