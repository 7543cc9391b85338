"""Links between tensors: the units that they share, as a spec says it.

A message goes from every tensor to the units of its axes (the mean over all other axes) and from the units
to every tensor that carries them. Rows, columns and vectors meet a unit in ways of their own; that is all
that is told apart, so one set of weights fits every architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from metanet.axis import Perm
from metanet.blocks import Block, entry_blocks, join, split
from metanet.spec import WeightSpec

Side: TypeAlias = Literal["row", "column", "vector"]
SIDES: tuple[Side, ...] = ("row", "column", "vector")
"""How a tensor meets a unit: on its first dimension, on a later one, or as the only one it has."""


class Links:
    """Messages between tensors over the units of a spec.

    Args:
        spec: of the network whose tensors are moved.
    """

    def __init__(self, spec: WeightSpec) -> None:
        self.spec = spec
        self._blocks = {name: tuple(entry_blocks(name, axes)) for name, axes in spec.entries}
        self._parents = {group.name: group.parent for group in spec.groups}

    def knows(self, entry: str | None) -> bool:
        """Return whether a tensor is an entry of the spec."""
        return entry in self._blocks

    def gather(self, messages: Mapping[str, Mapping[Side, Tensor]]) -> dict[tuple[str, ...], Tensor]:
        """Return the mean message to the units of every group.

        Args:
            messages: entry -> side -> ``[K, *shape of the entry]``.

        Returns:
            The group behind its ancestors -> ``[K, *sizes]``.
        """
        sums: dict[tuple[str, ...], Tensor] = {}
        counts: dict[tuple[str, ...], int] = {}
        for entry, by_side in messages.items():
            axes = self.spec.axes[entry]
            for side, message in by_side.items():
                parts = split(message, axes, self.spec.sizes)
                for block, part in zip(self._blocks[entry], parts, strict=True):
                    for key, dims in self._units(block, side, len(axes)):
                        others = [d + 1 for d in range(len(block.atoms)) if d not in dims]
                        mean = part.mean(others) if others else part
                        order = sorted(dims)
                        mean = mean.permute(0, *(order.index(d) + 1 for d in dims))
                        sums[key] = mean if key not in sums else sums[key] + mean
                        counts[key] = counts.get(key, 0) + 1
        return {key: total / counts[key] for key, total in sums.items()}

    def scatter(
        self,
        entry: str,
        pools: Mapping[tuple[str, ...], Tensor],
        weights: Mapping[Side, Tensor],
        like: Tensor,
    ) -> Tensor:
        """Return what the units send back to one tensor.

        Args:
            entry: the tensor.
            pools: what `gather` returned.
            weights: side -> ``[P]`` factor.
            like: ``[K, *shape of the entry]``, gives size and type.

        Returns:
            ``[K, *shape of the entry]``.
        """
        axes = self.spec.axes[entry]
        parts = []
        for block in self._blocks[entry]:
            total = like.new_zeros((like.shape[0], *block.shape(self.spec.sizes)))
            for side in SIDES:
                for key, dims in self._units(block, side, len(axes)):
                    if key not in pools:
                        continue
                    pool = pools[key] * weights[side].reshape(-1, *(1,) * len(dims))
                    order = sorted(range(len(dims)), key=lambda i: dims[i])
                    pool = pool.permute(0, *(i + 1 for i in order))
                    shape = [total.shape[0]] + [
                        size if d in dims else 1 for d, size in enumerate(total.shape[1:])
                    ]
                    total = total + pool.expand(total.shape[0], *pool.shape[1:]).reshape(shape)
            parts.append(total)
        return join(parts, axes, self.spec.sizes, leading=1)

    def _units(self, block: Block, side: Side, rank: int) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
        """Return, for every permuted dimension of a side, its group and ancestors and their dimensions."""
        found = []
        for d, atom in enumerate(block.atoms):
            here = "vector" if rank == 1 else "row" if block.dims[d] == 0 else "column"
            if not isinstance(atom, Perm) or here != side:
                continue
            chain = _ancestors(atom.group, self._parents)
            dims = [_nearest(block, name, d) for name in chain] + [d]
            found.append(((*chain, atom.group), tuple(dims)))
        return found


def _ancestors(group: str, parents: Mapping[str, str | None]) -> list[str]:
    chain: list[str] = []
    parent = parents[group]
    while parent is not None:
        chain.insert(0, parent)
        parent = parents[parent]
    return chain


def _nearest(block: Block, group: str, place: int) -> int:
    """Return the dimension of an ancestor: the nearest to the left in the same product, or the only one."""
    at: Sequence[int] = [i for i, a in enumerate(block.atoms) if isinstance(a, Perm) and a.group == group]
    same = [i for i in at if block.dims[i] == block.dims[place] and i < place]
    return same[-1] if same else at[0]
