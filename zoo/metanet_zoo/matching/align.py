"""Aligning one model to another, tensor by tensor in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from metanet.group import GroupElement
from metanet.matching.components import COPIES, VALUE_BYTES, Component, components_of, held_groups
from metanet.matching.method import Matcher, Problem, find_matcher, match
from metanet.matching.pair import STATISTICS
from metanet.matching.weights import Matching
from metanet.spec import WeightSpec
from metanet_zoo.errors import CheckpointError
from metanet_zoo.matching.memory import release_memory
from metanet_zoo.matching.source_tensors import SourceTensors
from metanet_zoo.merging.sources import TensorSource
from metanet_zoo.network_data import NetworkData
from metanet_zoo.runnable import float_state

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
        before: ‖a − b‖² over the entries compared, or whatever else the method measures.
        after: ‖a − g·b‖² over the same, for the element that was found.
        used: whether that element is used, or the identity in its place.
        moved: group -> fraction of its units that the found element moves.
        held: groups that stay so that matching fits into memory.
        starts: start that won -> in how many components.
        sweeps: passes over the groups.
        seconds: time taken.
        notes: what the user should know, one sentence each.
        method: that found it.
        measure: what ``before`` and ``after`` are.
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
    method: str = "weights"
    measure: str = "squared distance"

    @property
    def gain(self) -> float:
        """Fraction of what is measured that the found element removes."""
        return 1.0 - self.after / self.before if self.before > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the element."""
        return {
            "method": self.method,
            "measure": self.measure,
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
    method: str = "weights",
    settings: Mapping[str, Any] | None = None,
    data: NetworkData | None = None,
    fixed: Collection[str] = (),
    free: Collection[str] = (),
    min_gain: float = MIN_GAIN,
    max_memory: int = MAX_MEMORY,
    seed: int = 0,
    progress: Progress | None = None,
) -> Alignment:
    """Find the element that takes model B to model A, by a method of `metanet.matching.method`.

    Methods that stream (weight matching) take one component at a time; groups that couple more than fits
    into ``max_memory`` (the residual stream of a language model) are held, and the notes say so. Others have
    both models in memory. Fine-tunes of one base come out unchanged: the identity is kept unless what the
    method measures falls by more than ``min_gain``.

    Args:
        spec: of both models.
        a: tensors of the model that stays.
        b: tensors of the model to be moved.
        method: name of a method that returns an element.
        settings: of the method.
        data: a network and data, for methods that look at them.
        fixed: groups that stay.
        free: groups that must not be held, whatever memory it takes.
        min_gain: fraction by which the distance, or what else is measured, must fall.
        max_memory: bytes for the tensors that are matched together.
        seed: of whatever is drawn.
        progress: told of every component that is done.

    Raises:
        CheckpointError: the models differ in names or shapes, or have values that are not finite.
        ValueError: unknown groups, methods or settings, or models that do not fit into memory.
    """
    began = time.monotonic()
    found_method = find_matcher(method)
    left, right = SourceTensors(a), SourceTensors(b)
    for which, tensors in (("first", left), ("other", right)):
        try:
            spec.check(tensors.shapes())
        except ValueError as error:
            hint = "" if which == "first" else "; --method transport takes models of other widths"
            raise CheckpointError(f"the {which} model does not fit the spec: {error}{hint}") from None
    for name in {*fixed, *free} - set(spec.group):
        raise ValueError(f"there is no group {name!r}; metanet inspect lists the groups")
    problem = Problem(
        spec,
        left,
        right,
        fixed=frozenset(fixed),
        seed=seed,
        model=None if data is None else data.model,
        inputs=() if data is None else data.inputs,
        loss=data.loss() if data is not None and found_method.needs == "loss" else None,
    )
    held: tuple[str, ...] = ()
    if found_method.streams:
        problem, held = _streaming(problem, free, max_memory, progress)
    else:
        problem = _in_memory(problem, found_method, free, max_memory)
    try:
        found = match(found_method, problem, **(settings or {}))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(found, Matching):
        raise ValueError(f"matching by {method} finds a soft map, which does not keep the function")
    used = found.gain > min_gain
    notes = [
        f"held {name}, which couples more tensors than fit into {max_memory >> 20} MiB; --free {name} aligns "
        "it too"
        for name in held
    ]
    if not used:
        notes.append(
            f"kept as it is: matching lowers the {found.measure} by {found.gain:.2%}, and at most "
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
        method=method,
        measure=found.measure,
    )


def _streaming(
    problem: Problem, free: Collection[str], max_memory: int, progress: Progress | None
) -> tuple[Problem, tuple[str, ...]]:
    """Hold what does not fit into memory, and tell of what is done; return the groups that are held too."""
    spec = problem.spec
    compared = [name for name in spec if not name.endswith(STATISTICS)]
    held = held_groups(spec, max_memory, fixed=problem.fixed, free=free, entries=compared)
    fixed = {*problem.fixed, *held}
    done, total = 0, sum(c.values for c in components_of(spec, fixed, compared))

    def tell(component: Component) -> None:
        nonlocal done
        done += component.values
        if component.values > RELEASED_VALUES:
            release_memory()
        if progress is not None:
            progress(done, total)

    return replace(problem, fixed=fixed, progress=tell), held


def _in_memory(problem: Problem, method: Matcher, free: Collection[str], max_memory: int) -> Problem:
    """Read both models."""
    if free:
        raise ValueError(f"matching by {method.name} holds no group; leave --free out")
    size = problem.spec.num_parameters * VALUE_BYTES * COPIES
    if size > max_memory:
        raise ValueError(
            f"matching by {method.name} has both models in memory, about {size >> 20} MiB; at most "
            f"{max_memory >> 20} MiB are allowed: raise --max-memory, or match weights, which streams"
        )
    return replace(problem, a=float_state(problem.a), b=float_state(problem.b))
