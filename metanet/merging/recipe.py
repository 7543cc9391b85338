"""Recipes: the YAML grammar of mergekit, read strictly.

A key that is not part of the grammar is refused with the nearest one that is: a misspelt density must not
silently become the default.

References:
    C. Goddard et al., Arcee's MergeKit: a toolkit for merging large language models, 2024.
    https://arxiv.org/abs/2403.13257 (grammar: https://github.com/arcee-ai/mergekit#merge-configuration)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metanet.merging.alignment import Align, parse_align
from metanet.merging.reference import ModelReference
from metanet.merging.setting import Setting, parse_setting
from metanet.merging.spelling import nearest as nearest

TOP_KEYS = (
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "align",
)
SOURCE_KEYS = ("model", "layer_range", "parameters", "importance")
SLICE_KEYS = ("sources", "base_model", "parameters")
MODULE_KEYS = ("models", "slices", "parameters")
DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""Names of dtypes in recipes -> in safetensors files."""


UNSUPPORTED = {
    "residual_weight": "mergekit reads it and does nothing with it; leave it out",
    "name": "of a file of several merges; give every merge a file of its own, the first one first",
    "experts": "of mergekit-moe, which makes mixtures of experts; metanet merge does not",
    "gate_mode": "of mergekit-moe, which makes mixtures of experts; metanet merge does not",
    "genome": "of mergekit-evolve, which searches for recipes; metanet merge does not",
}
"""Keys of mergekit's files that are known and refused, and why."""


class RecipeError(ValueError):
    """A recipe that cannot be carried out as written: what was found, what was expected."""


@dataclass(frozen=True, slots=True)
class Source:
    """One model's part in a merge: which layers, with which parameters, and what weighs its values.

    ``importance`` names a checkpoint of the same tensors, such as a diagonal Fisher information; mergekit's
    grammar has no such key.
    """

    model: ModelReference
    layers: tuple[int, int] | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    importance: ModelReference | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive layers of the output, and the models they are merged from."""

    sources: tuple[Source, ...]
    base: ModelReference | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A merge as it was asked for.

    Args:
        method: name of the merge method.
        models: the models, where layers are not spelled out; empty otherwise.
        slices: the output's layers from first to last, where they are.
        modules: name of a part of a multi-part model -> its own models or slices.
        base: the base model.
        parameters: settings for all models.
        dtype: safetensors name of the dtype that inputs are taken to have, None for their own.
        out_dtype: of the output; None is ``dtype``, or the first model's own.
        tokenizer: ``base``, ``union``, a model, or a mapping as in mergekit's ``tokenizer``; None: ``base``.
        chat_template: Jinja text or the name of one; ``auto``; None copies the tokenizer's.
        align: how to align models before merging, None for not at all.
        text: the recipe as it was read, for the record.
    """

    method: str
    models: tuple[Source, ...] = ()
    slices: tuple[Slice, ...] = ()
    modules: Mapping[str, Recipe] = field(default_factory=dict)
    base: ModelReference | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: str | Mapping[str, Any] | None = None
    chat_template: str | None = None
    align: Align | None = None
    text: str = ""

    def importances(self) -> tuple[ModelReference, ...]:
        """Every checkpoint of importances, each once."""
        sources = (*self.models, *(source for piece in self.slices for source in piece.sources))
        found = dict.fromkeys(source.importance for source in sources if source.importance is not None)
        for module in self.modules.values():
            found.update(dict.fromkeys(module.importances()))
        return tuple(found)

    def references(self) -> tuple[ModelReference, ...]:
        """Every model named, each once: the base first, then in the order of the recipe."""
        found: dict[ModelReference, None] = {}
        if self.base is not None:
            found[self.base] = None
        for piece in self.slices:
            if piece.base is not None:
                found[piece.base] = None
        for source in (*self.models, *(source for piece in self.slices for source in piece.sources)):
            found[source.model] = None
        for module in self.modules.values():
            found.update(dict.fromkeys(module.references()))
        return tuple(found)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        RecipeError: no YAML, or not this grammar; the message names the place.
        OSError: the file cannot be read.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        return parse_recipe(_yaml(text), text)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def parse_recipe(value: object, text: str = "") -> Recipe:
    """Make a recipe of what a YAML file holds.

    Args:
        value: the mapping that the YAML text stands for.
        text: that text, for the record.

    Raises:
        RecipeError: a key that is unknown or missing, or a value of the wrong kind.

    Example:
        >>> parse_recipe({"merge_method": "linear", "modells": []})
        Traceback (most recent call last):
        ...
        metanet.merging.recipe.RecipeError: unknown key 'modells'; did you mean 'models'?
    """
    top = _mapping(value, "the recipe", TOP_KEYS)
    method = top.get("merge_method")
    if not isinstance(method, str):
        raise RecipeError("no merge_method; name one, such as linear")
    models, slices = _parts(top, "the recipe", modules="modules" in top)
    base = _reference(top.get("base_model"), "base_model")
    parameters = _parameters(top.get("parameters"), "parameters")
    modules: dict[str, Recipe] = {}
    for name, part in _items(top.get("modules"), "modules"):
        where = f"modules.{name}"
        inner = _mapping(part, where, MODULE_KEYS)
        inner_models, inner_slices = _parts(inner, where)
        settings = {**parameters, **_parameters(inner.get("parameters"), f"{where}.parameters")}
        modules[name] = Recipe(method, inner_models, inner_slices, {}, base, settings)
    if "tokenizer" in top and "tokenizer_source" in top:
        raise RecipeError("both tokenizer and tokenizer_source; give one")
    tokenizer = top.get("tokenizer", top.get("tokenizer_source"))
    if tokenizer is not None and not isinstance(tokenizer, str | Mapping):
        raise RecipeError(f"tokenizer: found {tokenizer!r}, expected base, union, a model or a mapping")
    recipe = Recipe(
        method=method,
        models=models,
        slices=slices,
        modules=modules,
        base=base,
        parameters=parameters,
        dtype=_dtype(top.get("dtype"), "dtype"),
        out_dtype=_dtype(top.get("out_dtype"), "out_dtype"),
        tokenizer=tokenizer,
        chat_template=_text(top.get("chat_template"), "chat_template"),
        text=text,
    )
    return replace(recipe, align=_align(top.get("align"), recipe.references()))


def _yaml(text: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses a key that is given twice, of which YAML would keep the last."""

    def construct(loader: Any, node: Any) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if isinstance(key, str) and keys.count(key) > 1 and key != "<<"}
        if twice:
            raise RecipeError(f"{sorted(twice)[0]!r} is given twice (line {node.start_mark.line + 1})")
        loader.flatten_mapping(node)
        return dict(loader.construct_pairs(node, deep=True))

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, construct)
    try:
        # A subclass of the safe loader: it builds plain values only.
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"no YAML: {' '.join(str(error).split())}") from None


def _parts(
    value: Mapping[str, Any], where: str, modules: bool = False
) -> tuple[tuple[Source, ...], tuple[Slice, ...]]:
    given = [key for key in ("models", "slices", "modules") if value.get(key) is not None]
    if len(given) != 1:
        raise RecipeError(
            f"{where} has {' and '.join(given) or 'neither models, slices nor modules'}; give exactly one"
        )
    models = tuple(
        _source(item, f"models[{i}]") for i, item in enumerate(_sequence(value.get("models"), "models"))
    )
    for i, source in enumerate(models):
        if source.layers is not None:
            raise RecipeError(f"models[{i}] has a layer_range; give layers under slices")
    slices = tuple(
        _slice(item, f"slices[{i}]") for i, item in enumerate(_sequence(value.get("slices"), "slices"))
    )
    if not modules and not models and not slices:
        raise RecipeError(f"{where}: {given[0]} is empty; name at least one model")
    return models, slices


def _slice(value: object, where: str) -> Slice:
    inner = _mapping(value, where, SLICE_KEYS)
    sources = tuple(
        _source(item, f"{where}.sources[{i}]")
        for i, item in enumerate(_sequence(inner.get("sources"), f"{where}.sources"))
    )
    if not sources:
        raise RecipeError(f"{where} has no sources; name at least one model and its layer_range")
    lengths = {source.layers[1] - source.layers[0] for source in sources if source.layers}
    if len(lengths) != 1 or any(source.layers is None for source in sources):
        raise RecipeError(
            f"{where}: found layer ranges {[source.layers for source in sources]}, expected one of the same "
            "length for each source"
        )
    return Slice(
        sources,
        _reference(inner.get("base_model"), f"{where}.base_model"),
        _parameters(inner.get("parameters"), f"{where}.parameters"),
    )


def _source(value: object, where: str) -> Source:
    inner = _mapping(value, where, SOURCE_KEYS)
    model = _reference(inner.get("model"), f"{where}.model")
    if model is None:
        raise RecipeError(f"{where} names no model; expected model: PATH")
    layers = inner.get("layer_range")
    if layers is not None:
        if (
            not isinstance(layers, Sequence)
            or len(layers) != 2
            or not all(type(end) is int for end in layers)
            or not 0 <= layers[0] < layers[1]
        ):
            raise RecipeError(f"{where}.layer_range: found {layers!r}, expected [first, behind the last]")
        layers = (layers[0], layers[1])
    return Source(
        model,
        layers,
        _parameters(inner.get("parameters"), f"{where}.parameters"),
        _reference(inner.get("importance"), f"{where}.importance"),
    )


def _parameters(value: object, where: str) -> dict[str, Setting]:
    result = {}
    for name, given in _items(value, where):
        try:
            result[name] = parse_setting(given)
        except ValueError as error:
            raise RecipeError(f"{where}.{name}: {error}") from None
    return result


def _reference(value: object, where: str) -> ModelReference | None:
    if value is None:
        return None
    try:
        return ModelReference.parse(value)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None


def _dtype(value: object, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in DTYPES:
        raise RecipeError(f"{where}: found {value!r}, expected one of {', '.join(DTYPES)}")
    return DTYPES[value]


def _align(value: object, models: Iterable[ModelReference]) -> Align | None:
    try:
        found = parse_align(value)
    except ValueError as error:
        raise RecipeError(f"align: {error}") from None
    known = [str(reference) for reference in models]
    for name in found.names() if found is not None else ():
        if name not in known:
            raise RecipeError(f"align: {name!r} is no model of the recipe; {nearest(name, known)}")
    return found


def _text(value: object, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise RecipeError(f"{where}: found {value!r}, expected text")


def _mapping(value: object, where: str, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: found {type(value).__name__}, expected a mapping of {', '.join(known)}")
    for key in value:
        if key not in known:
            place = "" if where == "the recipe" else f"{where}: "
            if key in UNSUPPORTED:
                raise RecipeError(
                    f"{place}{key!r} is a key of mergekit's that is not supported: {UNSUPPORTED[key]}"
                )
            raise RecipeError(f"{place}unknown key {key!r}; {nearest(str(key), known)}")
    return value


def _items(value: object, where: str) -> Iterable[tuple[str, Any]]:
    if value is None:
        return ()
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RecipeError(f"{where}: found {value!r}, expected a mapping of names to values")
    return value.items()


def _sequence(value: object, where: str) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RecipeError(f"{where}: found {value!r}, expected a list")
    return value
