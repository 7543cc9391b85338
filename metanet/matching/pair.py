"""Two networks block by block: the state that coordinate descent works on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from metanet.axis import Perm
from metanet.blocks import Block, blocks_of, split
from metanet.elements.freedom import phase_shift, unit_factor
from metanet.elements.wreath import chain_of, lay, permute_block
from metanet.group import GroupElement
from metanet.matching.action_signs import sign_actions, sign_places
from metanet.matching.moves import Move, moves_of
from metanet.matching.squares import all_finite, squared_norm
from metanet.matching.squares import squared_distance as squared_distance
from metanet.spec import WeightSpec

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers that describe data rather than weights: they are moved along, but not compared."""


class Pair:
    """A fixed network a, and a network b that is permuted step by step towards it.

    Args:
        spec: of both.
        a: entry name -> tensor.
        b: entry name -> tensor.
        fixed: groups that stay as they are.
        entries: what is compared; None for everything that carries a free group, statistics left out.

    Raises:
        ValueError: weights that do not fit the spec, or values that are not finite.
    """

    def __init__(
        self,
        spec: WeightSpec,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        *,
        fixed: Collection[str] = (),
        entries: Collection[str] | None = None,
    ) -> None:
        self.spec = spec
        free = {group.name for group in spec.groups if group.name not in fixed}
        blocks: list[Block] = []
        self.a: list[Tensor] = []
        self.b: list[Tensor] = []
        whole: dict[str, list[Block]] = {}
        for block in blocks_of(spec):
            whole.setdefault(block.entry, []).append(block)
        for name, parts in whole.items():
            wanted = not name.endswith(STATISTICS) if entries is None else name in entries
            if not wanted or not any(free.intersection(block.groups) for block in parts):
                continue
            left, right = _values(spec, name, a[name], b[name])
            for block, x, y in zip(parts, left, right, strict=True):
                if free.intersection(block.groups):
                    blocks.append(block)
                    self.a.append(x)
                    self.b.append(y)
        self.blocks: Sequence[Block] = tuple(blocks)
        self.parents = tuple(block.parents(spec) for block in blocks)
        chosen = sign_actions(spec)
        self.signs = tuple(sign_places(spec, block, chosen) for block in blocks)
        self.moves: Sequence[Move] = moves_of(spec, blocks, fixed, self.signs)
        self.start = list(self.b)
        self.element = GroupElement.identity(spec)

    def distance(self, blocks: Collection[int] | None = None) -> float:
        """Return ‖a − b‖² over some blocks (default: all), b as permuted so far."""
        numbers = range(len(self.blocks)) if blocks is None else blocks
        return sum(squared_distance(self.a[i], self.b[i]) for i in numbers)

    def scale(self) -> float:
        """Return ‖a‖² + ‖b‖², which rounding errors are measured by."""
        return sum(squared_norm(x) for x in (*self.a, *self.start))

    def moved(self, element: GroupElement, blocks: Collection[int]) -> dict[int, Tensor]:
        """Return what an element makes of some blocks of b, as permuted so far."""
        found = {i: act_block(element, self.blocks[i], self.parents[i], self.b[i]) for i in blocks}
        for i, tensor in found.items() if element.actions else ():
            for at, number in self.signs[i].items():
                if number in element.actions:
                    signs = lay(element.actions[number], [at], tensor.shape)
                    found[i] = found[i] * signs.to(tensor)
        return found

    def advance(self, element: GroupElement, moved: Mapping[int, Tensor]) -> None:
        """Take a step: compose the element, keep what it made of the blocks."""
        for number, tensor in moved.items():
            self.b[number] = tensor
        self.element = element @ self.element

    def restart(self, element: GroupElement) -> None:
        """Begin again with b moved by an element.

        Raises:
            ValueError: it uses actions other than the signs that matching uses.
        """
        usable = {number for places in self.signs for number in places.values()}
        if others := set(element.actions) - usable:
            kinds = ", ".join(sorted({self.spec.actions[number].kind for number in others}))
            raise ValueError(
                f"matching uses permutations and flips, and cannot begin at an element with {kinds} actions: "
                "act with it first, and match what comes out"
            )
        self.element = element
        self.b = list(self.start)
        self.b = list(self.moved(element, range(len(self.blocks))).values())


def act_block(element: GroupElement, block: Block, parents: tuple[int, ...], tensor: Tensor) -> Tensor:
    """Act on one block: permutations, then factors and shifts of the groups' freedoms."""
    spec = element.spec
    tensor = permute_block(tensor, block.atoms, parents, element.permutations, start=0)
    for at, atom in enumerate(block.atoms):
        if not isinstance(atom, Perm):
            continue
        for freedom in spec.group[atom.group].freedoms:
            values = element.freedoms.get((atom.group, freedom.kind))
            if values is None:
                continue
            factor = unit_factor(freedom.kind, values, atom.role)
            if factor is not None:
                tensor = tensor * lay(factor, chain_of(at, parents), tensor.shape).to(tensor)
        for freedom in spec.group[atom.group].freedoms:
            values = element.freedoms.get((atom.group, freedom.kind))
            if freedom.kind == "phase" and atom.role == "bias" and values is not None:
                shift = phase_shift(freedom, values)
                tensor = tensor + lay(shift, chain_of(at, parents), tensor.shape).to(tensor)
    return tensor


def _values(spec: WeightSpec, name: str, a: Tensor, b: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    expected = spec.shapes[name]
    found = []
    for which, tensor in (("first", a), ("second", b)):
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"{name}: the {which} network has shape {list(tensor.shape)}, the spec {list(expected)}; "
                "only networks of one architecture can be aligned"
            )
        wide = tensor.detach().to("cpu", torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        if not all_finite(wide):
            raise ValueError(f"{name}: the {which} network has values that are not finite; repair it first")
        found.append(wide)
    if found[0].dtype != found[1].dtype:
        found = [tensor.double() for tensor in found]
    left, right = (split(tensor, spec.axes[name], spec.sizes) for tensor in found)
    return left, right
