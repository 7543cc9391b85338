"""What a recipe's ``tokenizer`` asks for: the output's tokenizer, and the models in its vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from metanet.merging.recipe import Recipe, RecipeError, nearest
from metanet.merging.reference import ModelReference
from metanet_zoo.merging.companions import TOKENIZER_FILES, copied_files
from metanet_zoo.merging.model import EMBEDDINGS, HEADS, MergeModel
from metanet_zoo.merging.token_choice import TokenChoice, token_choices
from metanet_zoo.merging.vocabulary import (
    ChosenRow,
    Speaker,
    Tokenizer,
    extend,
    read_tokenizer,
    translate,
    unite,
)

KEYS = ("source", "tokens", "pad_to_multiple_of")
KEPT_BY_UNION = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""Files that a united tokenizer keeps; others of the leading model would say something else."""
HEAD_BIAS = "lm_head.bias"


@dataclass(frozen=True, slots=True)
class Spoken:
    """Models in one vocabulary.

    Args:
        models: the models.
        files: of the output's tokenizer.
        notes: what was done, one sentence each.
    """

    models: Mapping[ModelReference, MergeModel]
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def speak_alike(recipe: Recipe, models: Mapping[ModelReference, MergeModel]) -> Spoken:
    """Bring models into the vocabulary that a recipe asks for.

    Without ``tokenizer`` the leading model's files are copied and models must agree in shape.

    Args:
        recipe: the recipe.
        models: every model it names.

    Raises:
        RecipeError: a tokenizer of no model, or a setting that is unknown.
        CheckpointError: a model without a tokenizer that can be read, or tokenizers that cannot be united.
    """
    leading = recipe.base or recipe.references()[0]
    source, multiple, tokens = _wanted(recipe)
    if source is None:
        folder = models[leading].folder
        return Spoken(models, {} if folder is None else copied_files(folder, TOKENIZER_FILES))
    chosen = leading if source in ("base", "union") else _named(source, models)
    order = [chosen, *(reference for reference in models if reference != chosen)]
    tokenizers = {ref: read_tokenizer(models[ref].folder, str(ref)) for ref in order}
    united = unite([tokenizers[ref] for ref in order]) if source == "union" else tokenizers[chosen]
    choices = token_choices(tokens, models)
    united = extend(united, [str(token) for token in tokens or ()])
    folder = models[chosen].folder
    assert folder is not None
    files = copied_files(folder, TOKENIZER_FILES)
    if len(united.ids) > len(tokenizers[chosen].ids):
        files = _united_files(files, united)
    rows = {token: _row(token, choice, order, tokenizers) for token, choice in choices.items()}
    speakers = [Speaker(str(ref), models[ref].source, tokenizers[ref], _tables(models[ref])) for ref in order]
    size = max(united.ids.values()) + 1
    if source != "union":
        size = max([size, *_heights(models[chosen])])
    size = -(-size // multiple) * multiple
    result = dict(models)
    for ref, moved in zip(order, translate(speakers, united.ids, size, rows), strict=True):
        result[ref] = replace(models[ref], source=moved)
    added = len(united.ids) - len(tokenizers[chosen].ids)
    note = f"vocabulary of {chosen}" + (f" and {added} tokens that it lacks" if added else "")
    return Spoken(result, files, (f"{note}: {size} rows",))


def _row(
    token: str,
    choice: TokenChoice,
    order: Sequence[ModelReference],
    tokenizers: Mapping[ModelReference, Tokenizer],
) -> ChosenRow:
    if choice.model is None:
        return ChosenRow(None, 0, choice.force)
    ids = tokenizers[choice.model].ids
    if isinstance(choice.token, str) and choice.token not in ids:
        hint = nearest(choice.token, ids)
        raise RecipeError(f"tokenizer.tokens.{token}: {choice.model} has no token {choice.token!r}; {hint}")
    number = ids[choice.token] if isinstance(choice.token, str) else choice.token
    return ChosenRow(order.index(choice.model), number, choice.force)


def _wanted(recipe: Recipe) -> tuple[str | None, int, Mapping[str, Any] | None]:
    wanted = recipe.tokenizer
    if wanted is None or isinstance(wanted, str):
        return wanted, 1, None
    for key in wanted:
        if key not in KEYS:
            raise RecipeError(f"tokenizer: {key!r} is not supported; {nearest(str(key), KEYS)}")
    source, multiple = wanted.get("source", "union"), wanted.get("pad_to_multiple_of") or 1
    if type(multiple) is not int or multiple < 1:
        raise RecipeError(f"tokenizer.pad_to_multiple_of: found {multiple!r}, expected a positive integer")
    return _reference_text(source), multiple, wanted.get("tokens")


def _reference_text(source: object) -> str:
    try:
        return str(source) if source in ("base", "union") else str(ModelReference.parse(source))
    except ValueError as error:
        raise RecipeError(f"tokenizer.source: {error}") from None


def _named(source: str, models: Mapping[ModelReference, MergeModel]) -> ModelReference:
    for reference in models:
        if source in (str(reference), str(reference.model)):
            return reference
    known = ["base", "union", *map(str, models)]
    raise RecipeError(f"tokenizer: the recipe names no model {source!r}; {nearest(source, known)}")


def _tables(model: MergeModel) -> tuple[str, ...]:
    """Names of the tensors whose first dimension is the vocabulary."""
    return tuple(
        name for name in model.source.entries() if name.endswith((*EMBEDDINGS, HEAD_BIAS)) or name in HEADS
    )


def _heights(model: MergeModel) -> list[int]:
    return [model.source.entries()[name].shape[0] for name in _tables(model)]


def _united_files(files: Mapping[str, bytes], united: Tokenizer) -> dict[str, bytes]:
    result = {name: content for name, content in files.items() if name in KEPT_BY_UNION}
    result["tokenizer.json"] = (json.dumps(united.content, ensure_ascii=False, indent=2) + "\n").encode()
    if "tokenizer_config.json" in result:
        config = json.loads(result["tokenizer_config.json"])
        if "added_tokens_decoder" in config:
            for token in united.content.get("added_tokens") or ():
                described = {key: value for key, value in token.items() if key != "id"}
                config["added_tokens_decoder"].setdefault(str(token["id"]), described)
            result["tokenizer_config.json"] = (
                json.dumps(config, ensure_ascii=False, indent=2) + "\n"
            ).encode()
    return result
