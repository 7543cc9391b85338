"""Augmentation of stacked networks: a random group element for every one of them, and weight noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from metanet.axis import Axis, Concat, Fixed, Perm, axis_size
from metanet.freedom import phase_shift, spread, unit_factor
from metanet.group import GroupElement
from metanet.spec import FreedomKind, WeightSpec

GroupAugmentation = Literal["none", "permutations", "all"]
"""Which random elements to apply: a metanetwork does not notice permutations, an MLP on weights does."""


@dataclass(frozen=True)
class ElementBatch:
    """One group element for each of b stacked networks.

    Args:
        spec: the spec.
        permutations: group -> ``[b, n]`` source indices; ``[b, parent size, n]`` for a nested group.
        freedoms: ``(group, kind) -> [b, n]``, as in `metanet.GroupElement`.
    """

    spec: WeightSpec
    permutations: Mapping[str, Tensor]
    freedoms: Mapping[tuple[str, FreedomKind], Tensor]

    @classmethod
    def random(
        cls, spec: WeightSpec, b: int, generator: torch.Generator, kinds: GroupAugmentation = "permutations"
    ) -> ElementBatch:
        """Draw b independent elements, distributed as `metanet.GroupElement.random` draws them.

        Args:
            spec: the spec.
            b: number of networks.
            generator: source of randomness.
            kinds: ``"permutations"``, ``"all"`` for signs, phases and scales too, or ``"none"``.

        Raises:
            ValueError: unknown kinds.
        """
        if kinds not in get_args(GroupAugmentation):
            raise ValueError(
                f"unknown group augmentation {kinds!r}; expected one of "
                f"{', '.join(get_args(GroupAugmentation))}"
            )
        if kinds == "none":
            return cls(spec, {}, {})
        permutations: dict[str, Tensor] = {}
        for group in spec.groups:
            shape = (b, spec.sizes[group.parent], group.size) if group.parent else (b, group.size)
            permutations[group.name] = torch.rand(shape, generator=generator).argsort(-1)
        freedoms: dict[tuple[str, FreedomKind], Tensor] = {}
        if kinds == "all":
            drawn = [GroupElement.random(spec, generator, kinds="all", permute=False) for _ in range(b)]
            for key in drawn[0].freedoms if drawn else ():
                freedoms[key] = torch.stack([element.freedoms[key] for element in drawn])
        return cls(spec, permutations, freedoms)

    def __getitem__(self, i: int) -> GroupElement:
        """Return the element of network i."""
        return GroupElement(
            self.spec,
            {name: permutation[i] for name, permutation in self.permutations.items()},
            {key: values[i] for key, values in self.freedoms.items()},
        )

    def act(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Act on stacked weights ``[b, *shape]``, network i with element i."""
        return {name: self._act(tensor, self.spec.axes[name]) for name, tensor in tensors.items()}

    def _act(self, tensor: Tensor, axes: tuple[Axis, ...]) -> Tensor:
        for dim, axis in enumerate(axes, 1):
            index = self._index(axis)
            if index is not None:
                view = index.reshape(_along(tensor, dim)).expand_as(tensor)
                tensor = tensor.gather(dim, view.to(tensor.device))
        for dim, axis in enumerate(axes, 1):
            factor = spread(axis, self.spec.sizes, self._factor, torch.mul)
            if factor is not None:
                tensor = tensor * factor.to(tensor).reshape(_along(tensor, dim))
            shift = spread(axis, self.spec.sizes, self._shift, torch.add)
            if shift is not None:
                tensor = tensor + shift.to(tensor).reshape(_along(tensor, dim))
        return tensor

    def _index(self, axis: Axis) -> Tensor | None:
        """Return the ``[b, size]`` source index of every index of an axis, or None where nothing moves."""
        if isinstance(axis, Fixed) or not self.permutations:
            return None
        if isinstance(axis, Perm):
            return self.permutations[axis.group]
        b = next(iter(self.permutations.values())).shape[0]
        sizes = [axis_size(part, self.spec.sizes) for part in axis.axes]
        if isinstance(axis, Concat):
            parts = [self._index(part) for part in axis.axes]
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            plain = [torch.arange(n).expand(b, n) for n in sizes]
            return torch.cat(
                [s + (n if p is None else p) for s, n, p in zip(starts, plain, parts, strict=True)], -1
            )
        grids = torch.meshgrid(*(torch.arange(n) for n in sizes), indexing="ij")
        positions: dict[str, Tensor] = {}
        result = torch.zeros((b, *sizes), dtype=torch.long)
        for part, size, grid in zip(axis.axes, sizes, grids, strict=True):
            if isinstance(part, Perm):
                positions[part.group] = grid
                parent = self.spec.group[part.group].parent
                permutation = self.permutations[part.group]
                source = permutation[:, grid] if parent is None else permutation[:, positions[parent], grid]
            else:
                inner = self._index(part)
                source = grid.expand(b, *sizes) if inner is None else inner[:, grid]
            result = result * size + source
        return result.flatten(1)

    def _factor(self, perm: Perm) -> Tensor | None:
        result: Tensor | None = None
        for freedom in self.spec.group[perm.group].freedoms:
            values = self.freedoms.get((perm.group, freedom.kind))
            step = None if values is None else unit_factor(freedom.kind, values, perm.role)
            if step is not None:
                result = step if result is None else result * step
        return result

    def _shift(self, perm: Perm) -> Tensor | None:
        freedom = self.spec.group[perm.group].freedom("phase")
        values = self.freedoms.get((perm.group, "phase"))
        if perm.role != "bias" or freedom is None or values is None:
            return None
        return phase_shift(freedom, values)


def add_noise(
    tensors: Mapping[str, Tensor], scales: Mapping[str, float], noise: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Add Gaussian noise of ``noise`` times each tensor's own scale.

    Args:
        tensors: name -> ``[b, *shape]``; what is no floating-point tensor stays as it is.
        scales: name -> standard deviation of the tensor's values over the training part.
        noise: in units of these.
        generator: source of randomness.
    """
    return {
        name: tensor
        + noise * scales[name] * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }


def _along(tensor: Tensor, dim: int) -> list[int]:
    """Shape that lays ``[b, size]`` along one dimension of a stacked tensor."""
    return [tensor.shape[0], *(-1 if i == dim else 1 for i in range(1, tensor.ndim))]
