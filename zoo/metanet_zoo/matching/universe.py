"""Taking the models of several checkpoints to a common order of units, component by component."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from metanet.axis import Axis, Fixed, Perm, atoms, map_perms
from metanet.group import GroupElement
from metanet.matching.components import COPIES, components_of, held_groups
from metanet.matching.many import cycle_consistent_matching, merge_many_matching
from metanet.matching.pair import STATISTICS
from metanet.spec import WeightSpec
from metanet_zoo.errors import CheckpointError
from metanet_zoo.matching.memory import release_memory
from metanet_zoo.matching.source_tensors import SourceTensors
from metanet_zoo.merging.sources import TensorSource

Method = Literal["cycle-consistent", "merge-many"]
MAX_MEMORY = 1 << 30
MAX_VALUES = 100_000_000
"""Values of one component in one model up to which Frank–Wolfe is tried: it multiplies by dense matrices."""


@dataclass(frozen=True)
class CommonOrder:
    """Elements that take models to a common order of units (a universe).

    Args:
        elements: one per model.
        before: sum of squared distances to their mean as they are.
        after: the same in the common order.
        held: groups that stay, since what they couple does not fit into memory.
    """

    elements: tuple[GroupElement, ...]
    before: float
    after: float
    held: tuple[str, ...] = ()

    @property
    def gain(self) -> float:
        """Fraction of the sum that the common order removes."""
        return 1.0 - self.after / self.before if self.before > 0 else 0.0

    def anchored(self, model: int) -> tuple[GroupElement, ...]:
        """Return the elements that take the models to one of them, which stays as it is."""
        back = self.elements[model].inverse()
        return tuple(
            GroupElement.identity(element.spec) if number == model else back @ element
            for number, element in enumerate(self.elements)
        )


def common_order(
    spec: WeightSpec,
    models: Mapping[str, TensorSource],
    *,
    method: Method = "cycle-consistent",
    max_memory: int = MAX_MEMORY,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CommonOrder:
    """Match all models at once, one component of groups after the other, so that memory stays bounded.

    Around any cycle of models the elements between them compose to the identity.

    Args:
        spec: of all models.
        models: name -> tensors; two or more.
        method: Frank–Wolfe over all groups of a component jointly (C²M³), or MergeMany.
        max_memory: bytes that the tensors of a component may take in all models; groups that couple more are
            held.
        seed: of the order of models and groups.
        progress: told how many values of a model are matched, of how many.

    Raises:
        CheckpointError: models that differ from the spec, or a component too large for Frank–Wolfe.
        ValueError: fewer than two models.

    References:
        `metanet.matching.many`.
    """
    tensors = {name: SourceTensors(source) for name, source in models.items()}
    for name, own in tensors.items():
        try:
            spec.check(own.shapes())
        except ValueError as error:
            raise CheckpointError(f"{name} does not fit the spec: {error}") from None
    compared = [name for name in spec if not name.endswith(STATISTICS)]
    # Every model as it is and as it is moved, their mean, and what matches one with the mean of the others.
    share = COPIES * max_memory // (2 * len(models) + 2 + COPIES)
    held = held_groups(spec, share, entries=compared)
    components = components_of(spec, held, compared)
    match = cycle_consistent_matching if method == "cycle-consistent" else merge_many_matching
    done, total = 0, sum(component.values for component in components)
    found = [GroupElement.identity(spec) for _ in models]
    before = saved = 0.0
    seen: set[str] = set()
    for component in components:
        if method == "cycle-consistent" and component.values > MAX_VALUES:
            raise CheckpointError(
                f"{component.values / 1e6:.0f} million values are coupled by {len(component.groups)} groups; "
                f"cycle-consistent matching takes at most {MAX_VALUES / 1e6:.0f} million together. Use "
                "merge-many, which takes larger ones"
            )
        inner = _alone(spec.select(component.entries), component.groups)
        states = [_floats(own, inner) for own in tensors.values()]
        universe = match(inner, states, seed=seed)
        # A fused tensor may belong to several components; it is counted once.
        before += _spread(states, component.entries - seen)
        seen |= component.entries
        saved += universe.before - universe.after
        found = [
            GroupElement(spec, element.permutations, element.freedoms) @ whole
            for element, whole in zip(universe.elements, found, strict=True)
        ]
        del universe, states
        release_memory()
        done += component.values
        if progress is not None:
            progress(done, total)
    return CommonOrder(tuple(found), before, max(0.0, before - saved), held)


def _alone(spec: WeightSpec, free: Collection[str]) -> WeightSpec:
    """Return a spec in which all groups but some are fixed; a group under a fixed one stays fixed too."""
    kept = {name for name in free if set(spec.ancestors(name)) <= set(free)}
    held: dict[Perm, Axis] = {}
    for _, axes in spec.entries:
        for axis in axes:
            for atom in atoms(axis):
                if isinstance(atom, Perm) and atom.group not in kept:
                    held[atom] = Fixed(spec.sizes[atom.group])
    return replace(
        spec,
        groups=tuple(group for group in spec.groups if group.name in kept),
        entries=tuple((name, tuple(map_perms(axis, held) for axis in axes)) for name, axes in spec.entries),
        actions=(),
        operations=(),
    )


def _floats(tensors: SourceTensors, spec: WeightSpec) -> dict[str, Tensor]:
    state = {name: tensors[name] for name in spec}
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _spread(states: Sequence[Mapping[str, Tensor]], names: Collection[str]) -> float:
    """Return the sum of squared distances to the mean."""
    total = 0.0
    for name in names:
        stacked = torch.stack([state[name].double() for state in states])
        total += float((stacked - stacked.mean(0)).square().sum())
    return total
