"""The ``align`` of a merge: its models, brought into one order of units before they are merged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from metanet.group import GroupElement
from metanet.merging.alignment import Align, AlignMethod
from metanet.merging.recipe import Recipe
from metanet.merging.reference import ModelReference
from metanet.spec import WeightSpec
from metanet_zoo.matching.align import MAX_MEMORY, align_sources
from metanet_zoo.matching.element_file import load_element
from metanet_zoo.matching.folded import check_folded
from metanet_zoo.matching.source_tensors import aligned_source
from metanet_zoo.matching.universe import Method, common_order
from metanet_zoo.merging.model import MergeModel
from metanet_zoo.spec_source import find_spec

QUICK_VALUES = 20_000_000
"""Values of a model up to which Frank–Wolfe takes minutes, so that ``auto`` may choose it."""


@dataclass(frozen=True)
class AlignedModels:
    """Models of a recipe, aligned.

    Args:
        models: the models, those that were moved with an aligned source.
        notes: what was done, one sentence per model.
        digest: of the elements, for telling whether an interrupted merge may go on.
    """

    models: Mapping[ModelReference, MergeModel]
    notes: tuple[str, ...]
    digest: str


def align_models(
    recipe: Recipe,
    models: Mapping[ModelReference, MergeModel],
    *,
    seed: int = 0,
    max_memory: int = MAX_MEMORY,
) -> AlignedModels:
    """Align the models of a recipe as its ``align`` says (`metanet.merging.alignment.Align`).

    One model keeps its order of units: the one named as reference, the base, or else the first. The others
    come to it one by one, or all of them are matched at once.

    Raises:
        CheckpointError: models of different architectures, no spec, or an element of another architecture.
    """
    wanted = recipe.align
    if wanted is None:
        return AlignedModels(models, (), "")
    references = recipe.references()
    elements: dict[ModelReference, GroupElement] = {}
    if wanted.elements is not None:
        notes = []
        for reference in references:
            if str(reference) in wanted.elements:
                file = wanted.elements[str(reference)]
                elements[reference], facts = load_element(file)
                check_folded(facts, models[reference].source, str(reference))
                notes.append(f"{reference}: moved by the group element {file}")
    else:
        first = next(
            (reference for reference in references if str(reference) == wanted.reference), references[0]
        )
        ordered = [first, *(reference for reference in references if reference != first)]
        leading = models[first]
        spec = find_spec(
            leading.folder or leading.opened.files[0],
            spec_file=None if wanted.spec is None else Path(wanted.spec),
            activation=wanted.activation,
        ).spec
        method = chosen_method(wanted, len(ordered), spec, has_base=recipe.base is not None)
        if method is None:
            notes = _one_by_one(spec, ordered, models, wanted, elements, seed, max_memory)
        else:
            notes = _at_once(spec, ordered, models, wanted, method, elements, seed, max_memory)
    digest = hashlib.sha256()
    aligned = dict(models)
    for reference, element in elements.items():
        aligned[reference] = _moved(models[reference], element)
        _update(digest, element)
    return AlignedModels(aligned, tuple(notes), digest.hexdigest())


def chosen_method(wanted: Align, count: int, spec: WeightSpec, *, has_base: bool) -> Method | None:
    """Return how models are matched at once, None for one by one.

    ``auto`` matches three or more models without a base at once, by Frank–Wolfe where that takes minutes.
    """
    methods: Mapping[AlignMethod, Method | None] = {
        "reference": None,
        "weights": None,
        "cycle-consistent": "cycle-consistent",
        "merge-many": "merge-many",
    }
    if wanted.method != "auto":
        return methods[wanted.method]
    if count < 3 or has_base:
        return None
    return "cycle-consistent" if spec.num_parameters <= QUICK_VALUES else "merge-many"


def _one_by_one(
    spec: WeightSpec,
    ordered: list[ModelReference],
    models: Mapping[ModelReference, MergeModel],
    wanted: Align,
    elements: dict[ModelReference, GroupElement],
    seed: int,
    max_memory: int,
) -> list[str]:
    first, *others = ordered
    notes: list[str] = []
    for reference in others:
        found = align_sources(
            spec,
            models[first].source,
            models[reference].source,
            min_gain=wanted.min_gain,
            max_memory=max_memory,
            seed=seed,
        )
        change = f"squared distance {found.before:.4g} -> {found.after:.4g}"
        verb = "aligned to" if found.used else "left as it is beside"
        notes.append(f"{reference}: {verb} {first} ({change})")
        notes += [f"{reference}: {note}" for note in found.notes if note.startswith("held")]
        elements[reference] = found.element
    return notes


def _at_once(
    spec: WeightSpec,
    ordered: list[ModelReference],
    models: Mapping[ModelReference, MergeModel],
    wanted: Align,
    method: Method,
    elements: dict[ModelReference, GroupElement],
    seed: int,
    max_memory: int,
) -> list[str]:
    sources = {str(reference): models[reference].source for reference in ordered}
    found = common_order(spec, sources, method=method, max_memory=max_memory, seed=seed)
    used = found.gain > wanted.min_gain
    change = f"squared distance to their mean {found.before:.4g} -> {found.after:.4g}"
    verb = f"brought into the order of {ordered[0]}" if used else "left as they are"
    notes = [f"{len(ordered)} models matched at once ({method}) and {verb} ({change})"]
    notes += [f"held {name}, which couples more tensors than fit into memory" for name in found.held]
    if used:
        elements |= dict(zip(ordered, found.anchored(0), strict=True))
        # The reference is read as it lies in its file.
        del elements[ordered[0]]
    return notes


def _moved(model: MergeModel, element: GroupElement) -> MergeModel:
    return replace(model, source=aligned_source(model.source, element))


def _update(digest: hashlib._Hash, element: GroupElement) -> None:
    """Add an element's values to a digest."""
    parts: list[tuple[str, Tensor]] = [*element.permutations.items()]
    parts += [(f"{kind} {name}", values) for (name, kind), values in element.freedoms.items()]
    parts += [(str(number), value) for number, value in element.actions.items()]
    for name, value in parts:
        digest.update(f"{name}\n{value.tolist()}\n".encode())
