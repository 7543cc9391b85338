"""Aligning one model to another, tensor by tensor in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metanet.group import GroupElement
from metanet.matching.components import components_of, held_groups
from metanet.matching.pair import STATISTICS
from metanet.matching.starts import Start
from metanet.matching.weights import DEFAULT_STARTS, weight_matching
from metanet.spec import WeightSpec
from metanet_zoo.errors import CheckpointError
from metanet_zoo.matching.memory import release_memory
from metanet_zoo.matching.source_tensors import SourceTensors
from metanet_zoo.merging.sources import TensorSource

MAX_MEMORY = 1 << 30
MIN_GAIN = 0.01
RELEASED_VALUES = 1_000_000
"""Components of more values have their memory returned to the system when they are done."""
Progress = Callable[[int, int], None]
"""Called with the values compared so far and in all."""


@dataclass(frozen=True)
class Alignment:
    """An element that takes model B to model A, and how it was found.

    Args:
        element: the element; the identity where matching gains too little.
        before: ‖a − b‖² over the entries compared.
        after: ‖a − g·b‖² over the same, for the element that was found.
        used: whether that element is used, or the identity in its place.
        moved: group -> fraction of its units that the found element moves.
        held: groups that stay so that matching fits into memory.
        starts: start that won -> in how many components.
        sweeps: passes over the groups.
        seconds: time taken.
        notes: what the user should know, one sentence each.
    """

    element: GroupElement
    before: float
    after: float
    used: bool
    moved: Mapping[str, float]
    held: tuple[str, ...]
    starts: Mapping[str, int]
    sweeps: int
    seconds: float
    notes: tuple[str, ...]

    @property
    def gain(self) -> float:
        """Fraction of ‖a − b‖² that the found element removes."""
        return 1.0 - self.after / self.before if self.before > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the element."""
        return {
            "before": self.before,
            "after": self.after,
            "gain": self.gain,
            "used": self.used,
            "moved": dict(self.moved),
            "held": list(self.held),
            "starts": dict(self.starts),
            "sweeps": self.sweeps,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def align_sources(
    spec: WeightSpec,
    a: TensorSource,
    b: TensorSource,
    *,
    fixed: Collection[str] = (),
    free: Collection[str] = (),
    min_gain: float = MIN_GAIN,
    starts: Sequence[Start] = DEFAULT_STARTS,
    max_sweeps: int = 100,
    max_memory: int = MAX_MEMORY,
    seed: int = 0,
    progress: Progress | None = None,
) -> Alignment:
    """Find the element that takes model B to model A by weight matching, one component at a time.

    Groups that couple more than fits into ``max_memory`` (the residual stream of a language model) are held,
    and the notes say so. Fine-tunes of one base come out unchanged: the identity is kept unless ‖a − g·b‖²
    falls by more than ``min_gain``.

    Args:
        spec: of both models.
        a: tensors of the model that stays.
        b: tensors of the model to be moved.
        fixed: groups that stay.
        free: groups that must not be held, whatever memory it takes.
        min_gain: fraction by which the distance must fall.
        starts: where to start (`metanet.matching.starts`).
        max_sweeps: passes over the groups of a component, for each start.
        max_memory: bytes for the tensors of a component.
        seed: of the order of groups and of random starts.
        progress: told of every component that is done.

    Raises:
        CheckpointError: the models differ in names or shapes, or have values that are not finite.
        ValueError: unknown groups or starts.
    """
    began = time.monotonic()
    left, right = SourceTensors(a), SourceTensors(b)
    for which, tensors in (("first", left), ("other", right)):
        try:
            spec.check(tensors.shapes())
        except ValueError as error:
            raise CheckpointError(f"the {which} model does not fit the spec: {error}") from None
    for name in {*fixed, *free} - set(spec.group):
        raise ValueError(f"there is no group {name!r}; metanet inspect lists the groups")
    compared = [name for name in spec if not name.endswith(STATISTICS)]
    held = held_groups(spec, max_memory, fixed=fixed, free=free, entries=compared)
    done, total = 0, sum(c.values for c in components_of(spec, {*fixed, *held}, compared))

    def tell(values: int) -> None:
        nonlocal done
        done += values
        if values > RELEASED_VALUES:
            release_memory()
        if progress is not None:
            progress(done, total)

    try:
        found = weight_matching(
            spec,
            left,
            right,
            fixed={*fixed, *held},
            starts=starts,
            max_sweeps=max_sweeps,
            entries=compared,
            seed=seed,
            progress=lambda component: tell(component.values),
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    used = found.gain > min_gain
    notes = [
        f"held {name}, which couples more tensors than fit into {max_memory >> 20} MiB; --free {name} aligns "
        "it too"
        for name in held
    ]
    if not used:
        notes.append(
            f"kept as it is: matching lowers the squared distance by {found.gain:.2%}, and at most "
            f"{min_gain:.2%} is taken for noise"
        )
    return Alignment(
        element=found.element if used else GroupElement.identity(spec),
        before=found.before,
        after=found.after,
        used=used,
        moved=found.moved,
        held=held,
        starts={start: found.starts.count(start) for start in dict.fromkeys(found.starts)},
        sweeps=found.sweeps,
        seconds=time.monotonic() - began,
        notes=tuple(notes),
    )
