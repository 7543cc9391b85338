"""Links between tensors: the units that they share, as a spec says it.

Every tensor meets units on its sides: a matrix on its rows (the first dimension) and its columns (all later
ones), anything else on its only side; the units of a stack (experts) stand on all sides of it. A message goes
from the sides to the units and from the units back to every side that carries them. Rows, columns and vectors
have weights of their own; that is all that is told apart, so one set of weights fits every architecture.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from metanet.axis import Axis, Perm, bound_to
from metanet.blocks import Block, entry_blocks, split
from metanet.optim.rules.routes import Meetings, Route, route
from metanet.spec import WeightSpec

T = TypeVar("T")
Side: TypeAlias = Literal["row", "column", "vector"]
SIDES: tuple[Side, ...] = ("row", "column", "vector")
"""How a tensor meets a unit: on its first dimension, on a later one, or as the only one it has."""


def sides_of(rank: int) -> tuple[Side, ...]:
    """Return the sides of tensors that a rule sees with 1 (vector) or 2 (matrix) dimensions."""
    return ("row", "column") if rank == 2 else ("vector",)


Sides: TypeAlias = tuple[tuple[tuple[str, ...], Side], ...]
"""Entries, and the side on which each is met."""
ROUTES = 8
"""Sets of sides that are remembered: parameters without a gradient take no part in a step."""

Unit: TypeAlias = tuple[tuple[str, ...], tuple[int, ...]]
"""A group behind its ancestors, and the dimensions of a block on which they are."""


class Links:
    """Messages between tensors over the units of a spec.

    Args:
        spec: of the network whose tensors are moved.
        stacked: entries whose first dimension counts tensors.
    """

    def __init__(self, spec: WeightSpec, stacked: Collection[str] = ()) -> None:
        self.spec = spec
        self.stacked = frozenset(stacked)
        self._sizes = spec.sizes
        self._axes_of = dict(spec.axes)
        self._shapes = dict(spec.shapes)
        self._parents = {group.name: group.parent for group in spec.groups}
        self._plans: dict[tuple[str, Side], list[tuple[Block, list[Unit]]]] = {}
        self._starts: dict[tuple[str, ...], int] = {}
        self._units = 0
        self._routes: dict[tuple[Sides, torch.device, torch.dtype], Route] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle keeps: routes are made anew, on the device they are wanted on."""
        return {**self.__dict__, "_routes": {}}

    def knows(self, entry: str | None) -> bool:
        """Return whether a tensor is an entry of the spec that has dimensions; a scalar meets no unit."""
        return bool(self._axes_of.get(entry)) if entry is not None else False

    def groups(self, entry: str, sides: Sequence[Side]) -> tuple[str, ...]:
        """Return the groups over which some sides of a tensor exchange messages."""
        found = {key[-1]: None for side in sides for _, units in self._plan(entry, side) for key, _ in units}
        return tuple(found)

    def route(self, sides: Sides, like: Tensor) -> Route:
        """Return the way of messages between some sides, all that take part, and the units they meet.

        Args:
            sides: what lies one behind the other in a message: a side of one entry or of several.
            like: of the type and on the device of the messages.
        """
        key = (sides, like.device, like.dtype)
        if key not in self._routes:
            while len(self._routes) >= ROUTES:
                self._routes.pop(next(iter(self._routes)))
            self._routes[key] = self._route(sides, like)
        return self._routes[key]

    def _route(self, sides: Sides, like: Tensor) -> Route:
        lengths, meetings, start = [], [], 0
        for entries, side in sides:
            begun = start
            for entry in entries:
                meetings += [replace(m, position=m.position + start) for m in self._meetings(entry, side)]
                start += prod(self._shape(entry, side))
            lengths.append(start - begun)
        return route(lengths, self._units, meetings, like)

    def _meetings(self, entry: str, side: Side) -> Iterator[Meetings]:
        """Yield the meetings of the positions of a side, at most one per position and permuted dimension."""
        shape, axes = self._shape(entry, side), self._axes(entry, side)
        parts = split(torch.arange(prod(shape)).reshape(shape), axes, self._sizes)
        for (_, units), part in zip(self._plan(entry, side), parts, strict=True):
            for key, dims in units:
                order = sorted(range(len(dims)), key=lambda i: dims[i])
                inside = [n if dim in dims else 1 for dim, n in enumerate(part.shape)]
                of_dims = self._units_of(key).permute(order).reshape(inside)
                weight = of_dims.numel() / max(part.numel(), 1)
                yield Meetings(
                    part.flatten(),
                    of_dims.expand(part.shape).flatten(),
                    torch.full((part.numel(),), weight, dtype=torch.float64),
                )

    def _units_of(self, key: tuple[str, ...]) -> Tensor:
        """Return the numbers ``[*sizes]`` of the units of a group behind its ancestors."""
        sizes = [self._sizes[group] for group in key]
        if key not in self._starts:
            self._starts[key] = self._units
            self._units += prod(sizes)
        return self._starts[key] + torch.arange(prod(sizes)).reshape(sizes)

    def _axes(self, entry: str, side: Side) -> tuple[Axis, ...]:
        return self._of_side(self._axes_of[entry], entry, side)

    def _shape(self, entry: str, side: Side) -> tuple[int, ...]:
        return self._of_side(self._shapes[entry], entry, side)

    def _of_side(self, dims: tuple[T, ...], entry: str, side: Side) -> tuple[T, ...]:
        """Return what stands on one side of a tensor, of one thing per dimension."""
        stack = int(entry in self.stacked)
        first, second, later = dims[:stack], dims[stack : stack + 1], dims[stack + 1 :]
        return {"row": (*first, *second), "column": (*first, *later), "vector": dims}[side]

    def _plan(self, entry: str, side: Side) -> list[tuple[Block, list[Unit]]]:
        """Return the blocks of a side, each with its units; nested ones need their parents on the side."""
        if (entry, side) not in self._plans:
            self._plans[entry, side] = [
                (block, [unit for at in range(len(block.atoms)) if (unit := self._unit(block, at))])
                for block in entry_blocks(entry, self._axes(entry, side))
            ]
        return self._plans[entry, side]

    def _unit(self, block: Block, at: int) -> Unit | None:
        atom = block.atoms[at]
        if not isinstance(atom, Perm):
            return None
        key, dims = [atom.group], [at]
        parent = self._parents[atom.group]
        while parent is not None:
            place = bound_to(dims[0], parent, block.atoms, block.dims)
            if place is None:
                return None
            key.insert(0, parent)
            dims.insert(0, place)
            parent = self._parents[parent]
        return tuple(key), tuple(dims)
