"""The ``align`` of a merge: its models, brought into the order of the first before they are merged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from metanet.group import GroupElement
from metanet.merging.recipe import Recipe, RecipeError, nearest
from metanet.merging.reference import ModelReference
from metanet_zoo.matching.align import MAX_MEMORY, MIN_GAIN, align_sources
from metanet_zoo.matching.element_file import load_element
from metanet_zoo.matching.source_tensors import aligned_source
from metanet_zoo.merging.model import MergeModel
from metanet_zoo.spec_source import find_spec

METHODS: Mapping[str, float] = {"auto": MIN_GAIN, "weights": 0.0}
"""Method -> smallest gain for which a model is moved: auto leaves fine-tunes of one base as they are."""


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
    """Align the models of a recipe as its ``align`` says: to its base, or else to its first model.

    ``auto`` and ``weights`` match weights; a mapping from models to files applies elements found before.

    Raises:
        RecipeError: an unknown method or model.
        CheckpointError: models of different architectures, no spec, or an element of another architecture.
    """
    wanted = recipe.align
    if wanted is None:
        return AlignedModels(models, (), "")
    aligned = dict(models)
    notes: list[str] = []
    digest = hashlib.sha256()
    references = recipe.references()
    if isinstance(wanted, str):
        if wanted not in METHODS:
            raise RecipeError(f"align: there is no method {wanted!r}; {nearest(wanted, METHODS)}")
        leading = models[references[0]]
        spec = find_spec(leading.folder or leading.opened.files[0]).spec
        for reference in references[1:]:
            found = align_sources(
                spec,
                leading.source,
                models[reference].source,
                min_gain=METHODS[wanted],
                max_memory=max_memory,
                seed=seed,
            )
            change = f"squared distance {found.before:.4g} -> {found.after:.4g}"
            verb = "aligned to" if found.used else "left as it is beside"
            notes.append(f"{reference}: {verb} {references[0]} ({change})")
            notes += [f"{reference}: {note}" for note in found.notes if note.startswith("held")]
            aligned[reference] = _moved(models[reference], found.element)
            _update(digest, found.element)
    else:
        by_name = {str(reference): reference for reference in references}
        for name, file in wanted.items():
            if name not in by_name:
                raise RecipeError(f"align: {name!r} is no model of the recipe; {nearest(name, by_name)}")
            element, _ = load_element(file)
            aligned[by_name[name]] = _moved(models[by_name[name]], element)
            notes.append(f"{name}: moved by the group element {file}")
            _update(digest, element)
    return AlignedModels(aligned, tuple(notes), digest.hexdigest())


def _moved(model: MergeModel, element: GroupElement) -> MergeModel:
    return replace(model, source=aligned_source(model.source, element))


def _update(digest: hashlib._Hash, element: GroupElement) -> None:
    """Add an element's values to a digest."""
    parts: list[tuple[str, Tensor]] = [*element.permutations.items()]
    parts += [(f"{kind} {name}", values) for (name, kind), values in element.freedoms.items()]
    parts += [(str(number), value) for number, value in element.actions.items()]
    for name, value in parts:
        digest.update(f"{name}\n{value.tolist()}\n".encode())
