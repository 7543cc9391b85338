r"""Wreath products: how nested permutations, and values per nested unit, lie on a tensor.

A group nested under a chain of others has one permutation for every combination of their units (its
*copies*). On indices :math:`(i_0, …, i_m)` of a chain, outermost first, an element takes each index from

.. math:: (p_0[i_0],\; p_1[i_0, i_1],\; …,\; p_m[i_0, …, i_m]).

A nested axis and the one that it goes with need not be neighbours, nor in one dimension of the tensor
(stacked experts ``E f d``). Everything here works on one element or, with leading dimensions ``*b`` on
permutations and values, on a batch of them.

References:
    Meldrum 1995, Wreath products of groups and semigroups (the group).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from metanet.axis import Atom, Axis, Perm, axis_size
from metanet.blocks import entry_blocks, join, split
from metanet.spec import WeightSpec


def chain_source(spec: WeightSpec, name: str, permutations: Mapping[str, Tensor]) -> Tensor | None:
    """Return where the units of a group, counted through all copies, come from.

    Args:
        spec: the spec.
        name: of the group.
        permutations: group -> ``[*b, n]``, or ``[*b, copies, n]`` for a nested one.

    Returns:
        ``[*b, copies · n]`` indices, or None if neither the group nor one of its ancestors moves.
    """
    source: Tensor | None = None
    count = 1
    for link in (*spec.ancestors(name), name):
        n, rows = spec.sizes[link], permutations.get(link)
        if rows is not None and spec.group[link].parent is None:
            rows = rows.unsqueeze(-2)
        if source is not None or rows is not None:
            outer = torch.arange(count) if source is None else source
            inner = torch.arange(n) if rows is None else rows
            source = (outer[..., None] * n + inner).flatten(-2)
        count *= n
    return source


def chain_of(at: int, parents: Sequence[int]) -> list[int]:
    """Return the positions of an atom and of those it is nested under, outermost first."""
    chain = [at]
    while parents[chain[0]] >= 0:
        chain.insert(0, parents[chain[0]])
    return chain


def lay(values: Tensor, chain: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Lay values per nested unit along the dimensions of a block.

    Args:
        values: ``[*b, copies, n]``, or ``[*b, n]`` for a chain of one.
        chain: positions in the block, outermost first.
        shape: of the block.

    Returns:
        ``[*b, *dims]``: the block's size where the chain runs, one elsewhere.
    """
    leading = values.shape[: values.ndim - min(len(chain), 2)]
    full = values.reshape(*leading, *(shape[at] for at in chain))
    order = sorted(range(len(chain)), key=lambda i: chain[i])
    full = full.permute(*range(len(leading)), *(len(leading) + i for i in order))
    return full.reshape(*leading, *(n if at in chain else 1 for at, n in enumerate(shape)))


def permute_block(
    tensor: Tensor,
    atoms: Sequence[Atom],
    parents: Sequence[int],
    permutations: Mapping[str, Tensor],
    *,
    start: int,
    batched: bool = False,
) -> Tensor:
    """Permute the units of a block: parents first, nested units in every copy on their own.

    Args:
        tensor: ``[*leading, *block shape, *trailing]``.
        atoms: of the block.
        parents: for every atom the position of the one that it is nested under, or -1.
        permutations: group -> ``[*b, n]`` or ``[*b, copies, n]``.
        start: number of leading dimensions.
        batched: the permutations have all the leading dimensions; otherwise none.
    """
    shape = tensor.shape[start : start + len(atoms)]
    for at in sorted(range(len(atoms)), key=lambda i: len(chain_of(i, parents))):
        atom = atoms[at]
        rows = permutations.get(atom.group) if isinstance(atom, Perm) else None
        if rows is None:
            continue
        if parents[at] < 0 and not batched:
            tensor = tensor.index_select(start + at, rows.to(tensor.device))
            continue
        index = lay(rows, chain_of(at, parents), shape).to(tensor.device)
        index = index[(None,) * (start + len(atoms) - index.ndim)]
        index = index.reshape(*index.shape, *(1 for _ in tensor.shape[start + len(atoms) :]))
        tensor = tensor.take_along_dim(index, start + at)
    return tensor


def tied_dimensions(axes: Sequence[Axis], spec: WeightSpec) -> list[tuple[int, ...]]:
    """Return the dimensions of a tensor in sets that an element permutes on their own, in order.

    Dimensions are together where one has a group that goes with its parent on the other.
    """
    owner = list(range(len(axes)))
    if any(group.parent is not None for group in spec.groups):
        for block in entry_blocks("", axes):
            for at, parent in enumerate(block.parents(spec)):
                if parent >= 0 and block.dims[at] != block.dims[parent]:
                    one, other = owner[block.dims[at]], owner[block.dims[parent]]
                    owner = [min(one, other) if o in (one, other) else o for o in owner]
    return [tuple(d for d, o in enumerate(owner) if o == first) for first in sorted(set(owner))]


def source_index(axes: Sequence[Axis], spec: WeightSpec, permutations: Mapping[str, Tensor]) -> Tensor | None:
    """Return where every index of some dimensions, taken row-major as one, comes from.

    Returns:
        ``[*b, size]``, or None where nothing moves.
    """
    if len(axes) == 1 and isinstance(axes[0], Perm) and spec.group[axes[0].group].parent is None:
        return permutations.get(axes[0].group)
    blocks = list(entry_blocks("", axes))
    moving = [permutations[g] for block in blocks for g in block.groups if g in permutations]
    if not moving:
        return None
    nested = [spec.group[g].parent is not None for block in blocks for g in block.groups if g in permutations]
    batch = moving[0].shape[: moving[0].ndim - 1 - nested[0]]
    sizes = [axis_size(axis, spec.sizes) for axis in axes]
    plain = torch.arange(prod(sizes)).reshape(sizes).expand(*batch, *sizes)
    parts = [
        permute_block(
            part, block.atoms, block.parents(spec), permutations, start=len(batch), batched=bool(batch)
        )
        for block, part in zip(blocks, split(plain, axes, spec.sizes), strict=True)
    ]
    return join(parts, axes, spec.sizes, leading=len(batch)).flatten(len(batch))


def spread_values(
    axes: Sequence[Axis],
    spec: WeightSpec,
    unit: Callable[[Perm], Tensor | None],
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor | None:
    """Spread values per unit over the indices of some dimensions.

    Args:
        axes: of the dimensions.
        spec: the spec.
        unit: gives ``[*b, n]`` values for the units of a group (``[*b, copies, n]`` if it is nested), or None
            for neutral ones.
        combine: ``torch.mul`` (neutral: one) or ``torch.add`` (neutral: zero).

    Returns:
        ``[*b, *sizes]``, or None if everything is neutral.
    """
    blocks = list(entry_blocks("", axes))
    found = [
        combine_units(block.atoms, block.parents(spec), block.shape(spec.sizes), unit, combine)
        for block in blocks
    ]
    known = next((part for part in found if part is not None), None)
    if known is None:
        return None
    first = next(block for block, part in zip(blocks, found, strict=True) if part is not None)
    batch = known.shape[: known.ndim - len(first.atoms)]
    neutral = known.new_full((), float(combine is torch.mul))
    parts = [
        (neutral if part is None else part).expand(*batch, *block.shape(spec.sizes))
        for block, part in zip(blocks, found, strict=True)
    ]
    return join(parts, axes, spec.sizes, leading=len(batch))


def combine_units(
    atoms: Sequence[Atom],
    parents: Sequence[int],
    shape: Sequence[int],
    unit: Callable[[Perm], Tensor | None],
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor | None:
    """Return what the units on all axes of a block combine to, ``[*b, *dims]``; see `spread_values`."""
    result: Tensor | None = None
    for at, atom in enumerate(atoms):
        values = unit(atom) if isinstance(atom, Perm) else None
        if values is not None:
            laid = lay(values, chain_of(at, parents), shape)
            result = laid if result is None else combine(result, laid)
    return result


def select_indices(tensor: Tensor, dims: Sequence[int], index: Tensor) -> Tensor:
    """Take indices of some dimensions, row-major as one.

    Args:
        tensor: any; its first dimensions are those of a batched index.
        dims: ascending.
        index: ``[*b, size]`` as `source_index` gives it.
    """
    index = index.to(tensor.device)
    if index.ndim == 1 and len(dims) == 1:
        return tensor.index_select(dims[0], index)
    first = dims[0]
    places = list(range(first, first + len(dims)))
    moved = tensor.movedim(list(dims), places)
    shape = moved.shape
    flat = moved.flatten(first, places[-1])
    if index.ndim == 1:
        flat = flat.index_select(first, index)
    else:
        b = index.ndim - 1
        ones = (1,) * (first - b), (1,) * (flat.ndim - first - 1)
        flat = flat.take_along_dim(index.reshape(*index.shape[:b], *ones[0], -1, *ones[1]), first)
    return flat.reshape(shape).movedim(places, list(dims))


def act_on(
    tensor: Tensor,
    axes: Sequence[Axis],
    spec: WeightSpec,
    permutations: Mapping[str, Tensor],
    factors: Callable[[Perm], Tensor | None],
    shifts: Callable[[Perm], Tensor | None] | None,
    *,
    start: int,
) -> Tensor:
    """Permute the units of a tensor, multiply by what each has, and add what it has.

    Args:
        tensor: ``[*leading, *shape, *trailing]``; a batch of elements is its first dimensions.
        axes: of the shape.
        spec: the spec.
        permutations: group -> ``[*b, n]`` or ``[*b, copies, n]``.
        factors: gives likewise what multiplies the units of a group, or None for one.
        shifts: gives likewise what is added to them, or None for nothing.
        start: number of leading dimensions.
    """
    sets = tied_dimensions(axes, spec)
    for dims in sets:
        index = source_index([axes[d] for d in dims], spec, permutations)
        if index is not None:
            tensor = select_indices(tensor, [start + d for d in dims], index)
    for dims in sets:
        for unit, combine in ((factors, torch.mul), (shifts, torch.add)):
            values = None if unit is None else spread_values([axes[d] for d in dims], spec, unit, combine)
            if values is not None:
                b = values.ndim - len(dims)
                shape = [n if i < b or i - start in dims else 1 for i, n in enumerate(tensor.shape)]
                tensor = combine(tensor, values.to(tensor).reshape(shape))
    return tensor
