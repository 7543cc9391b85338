"""What is checked of a recipe and its models before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metanet.merging.method import METHODS, Method
from metanet.merging.recipe import Recipe, RecipeError, nearest
from metanet.merging.setting import Setting
from metanet.merging.stretch import Value
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.sources import Entry


def find_method(name: str) -> Method:
    """Return a merge method.

    Raises:
        RecipeError: there is none of this name.
    """
    import metanet.merging.methods  # noqa: F401  # registers them

    if name not in METHODS:
        raise RecipeError(f"there is no merge method {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]


def check_parameters(method: Method, recipe: Recipe) -> None:
    """Hold the names of a recipe's parameters against its method.

    Raises:
        RecipeError: a parameter that the method has not, or that is not one model's.
    """
    places: list[tuple[str, Mapping[str, Setting], bool]] = [("parameters", recipe.parameters, True)]
    for i, source in enumerate(recipe.models):
        places.append((f"models[{i}].parameters", source.parameters, False))
    for i, piece in enumerate(recipe.slices):
        places.append((f"slices[{i}].parameters", piece.parameters, True))
        for j, source in enumerate(piece.sources):
            places.append((f"slices[{i}].sources[{j}].parameters", source.parameters, False))
    if recipe.importances() and not method.importances and method.prepare is None:
        raise RecipeError(f"importance was given, but {method.name} takes none; fisher and regmean do")
    for where, parameters, shared in places:
        for name in parameters:
            if name not in method.parameters:
                raise RecipeError(
                    f"{where}: {method.name} has no parameter {name!r}; {nearest(name, method.parameters)}"
                )
            if not shared and not method.parameters[name].per_model:
                raise RecipeError(f"{where}: {name} is one for the whole merge; set it under parameters")


def check_shapes(name: str, inputs: Sequence[tuple[str, Entry]]) -> None:
    """Check that a tensor has one shape in all models.

    Args:
        name: of the tensor.
        inputs: name of a model, and the tensor there.

    Raises:
        CheckpointError: it has not.
    """
    shapes = {entry.shape for _, entry in inputs}
    if len(shapes) == 1:
        return
    listed = "; ".join(f"{list(entry.shape)} in {model}" for model, entry in inputs)
    hint = "models must have the same architecture"
    if len({shape[1:] for shape in shapes}) == 1 and any(
        word in name for word in ("embed", "lm_head", "wte", "output")
    ):
        hint = "the vocabularies differ; set tokenizer_source: union (or base) to bring them together"
    raise CheckpointError(f"tensor {name!r} has shape {listed}; {hint}")


def check_range(name: str, value: Value, low: float | None, high: float | None) -> None:
    """Check that a parameter's value lies where it may.

    Raises:
        RecipeError: it does not.
    """
    if (low is not None and value < low) or (high is not None and value > high):
        raise RecipeError(f"{name}: found {value}, expected a number from {low} to {high}")
