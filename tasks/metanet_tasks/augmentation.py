"""Augmentation of stacked networks: a random group element for every one of them, and weight noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from metanet.axis import Perm
from metanet.elements.freedom import factor_of, shift_of
from metanet.elements.wreath import act_on
from metanet.group import GroupElement
from metanet.spec import FreedomKind, WeightSpec

GroupAugmentation = Literal["none", "permutations", "all"]
"""Which random elements to apply: a metanetwork does not notice permutations, an MLP on weights does."""


@dataclass(frozen=True)
class ElementBatch:
    """One group element for each of b stacked networks.

    Args:
        spec: the spec.
        permutations: group -> ``[b, n]`` source indices; ``[b, copies, n]`` for a nested group.
        freedoms: ``(group, kind) -> [b, n]`` or ``[b, copies, n]``, as in `metanet.GroupElement`.
        actions: number of an action -> ``[b, *axes]``.
    """

    spec: WeightSpec
    permutations: Mapping[str, Tensor]
    freedoms: Mapping[tuple[str, FreedomKind], Tensor]
    actions: Mapping[int, Tensor] = field(default_factory=dict)

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
            shape = (spec.copies(group.name), group.size) if group.parent else (group.size,)
            permutations[group.name] = torch.rand((b, *shape), generator=generator).argsort(-1)
        freedoms: dict[tuple[str, FreedomKind], Tensor] = {}
        actions: dict[int, Tensor] = {}
        if kinds == "all":
            drawn = [GroupElement.random(spec, generator, kinds="all", permute=False) for _ in range(b)]
            for key in drawn[0].freedoms if drawn else ():
                freedoms[key] = torch.stack([element.freedoms[key] for element in drawn])
            for number in drawn[0].actions if drawn else ():
                actions[number] = torch.stack([element.actions[number] for element in drawn])
        return cls(spec, permutations, freedoms, actions)

    def __getitem__(self, i: int) -> GroupElement:
        """Return the element of network i."""
        return GroupElement(
            self.spec,
            {name: permutation[i] for name, permutation in self.permutations.items()},
            {key: values[i] for key, values in self.freedoms.items()},
            {number: values[i] for number, values in self.actions.items()},
        )

    def act(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Act on stacked weights ``[b, *shape]``, network i with element i."""
        group = self.spec.group

        def factors(perm: Perm) -> Tensor | None:
            return factor_of(group[perm.group], self.freedoms, perm.role)

        def shifts(perm: Perm) -> Tensor | None:
            return shift_of(group[perm.group], self.freedoms, perm.role)

        acted = {
            name: act_on(tensor, self.spec.axes[name], self.spec, self.permutations, factors, shifts, start=1)
            for name, tensor in tensors.items()
        }
        if not self.actions:
            return acted
        single = [
            GroupElement(self.spec, {}, {}, {number: values[i] for number, values in self.actions.items()})
            @ {name: tensor[i] for name, tensor in acted.items()}
            for i in range(len(next(iter(self.actions.values()))))
        ]
        return {name: torch.stack([network[name] for network in single]) for name in acted}


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
