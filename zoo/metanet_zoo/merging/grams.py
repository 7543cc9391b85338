"""Gram matrices of layers' inputs in files beside the models, and the recipes that merge by them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.merging.recipe import Recipe, RecipeError, Source
from metanet.merging.reference import Location, ModelReference
from metanet_zoo.layout import GRAMS

if TYPE_CHECKING:
    from torch import nn

FORMAT = "metanet.grams"


def save_input_grams(
    path: str | os.PathLike[str],
    model: nn.Module,
    batches: Iterable[Any],
    *,
    layers: Collection[str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Run a model on data and write the Gram matrices of its linear layers' inputs beside its checkpoint.

    ``metanet merge --method regmean`` finds them there.

    Args:
        path: the model's folder or its ``.safetensors`` file, or the file to write (``….gram.safetensors``).
        model: the model, its weights loaded.
        batches: as `metanet.merging.input_grams.input_grams` takes them.
        layers: names of the linear layers; None takes all.
        facts: what is to be known of the data, as JSON values.

    Returns:
        the file.

    Raises:
        ValueError: no data or no linear layers.
        OSError: the file cannot be written.
    """
    from metanet.merging.input_grams import input_grams
    from metanet_zoo.saving import save_checkpoint

    file = grams_file(Path(path))
    grams = {name: gram.contiguous() for name, gram in input_grams(model, batches, layers=layers).items()}
    save_checkpoint(file, grams, {"format": FORMAT, "facts": json.dumps(dict(facts or {}))})
    return file


def grams_file(model: Path) -> Path:
    """Return where a model's Gram matrices lie.

    Example:
        >>> grams_file(Path("a.safetensors")).name
        'a.gram.safetensors'
    """
    if model.is_dir():
        return model / GRAMS
    return model if model.name.endswith(f".{GRAMS}") else model.with_name(f"{model.stem}.{GRAMS}")


def with_grams(recipe: Recipe) -> Recipe:
    """Return a recipe in which every model names its Gram matrices: those of the recipe, or beside it.

    Raises:
        RecipeError: a model has none.
    """

    def found(source: Source) -> Source:
        if source.importance is not None:
            return source
        file = grams_file(Path(source.model.model.path).expanduser())
        # Those beside a model are not those of the model with an adapter.
        if source.model.lora is not None or not file.is_file():
            raise RecipeError(
                f"regmean needs the Gram matrices of what flows into the layers of {source.model}: found no "
                f"{file}. metanet_zoo.merging.grams.save_input_grams writes them; importance: FILE names "
                "others"
            )
        return replace(source, importance=ModelReference(Location(str(file))))

    return replace(
        recipe,
        models=tuple(found(source) for source in recipe.models),
        slices=tuple(
            replace(piece, sources=tuple(found(source) for source in piece.sources))
            for piece in recipe.slices
        ),
        modules={name: with_grams(part) for name, part in recipe.modules.items()},
    )
