"""Where single tokens take their rows of embeddings from: ``tokens`` of a recipe's ``tokenizer``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metanet.merging.recipe import RecipeError, nearest
from metanet.merging.reference import ModelReference

KEYS = ("source", "force")
KINDS = ("model_token", "zero")
ROW_KEYS = ("kind", "model", "token", "token_id")


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """Where a token's rows come from in models that lack it, or in all of them.

    Args:
        model: the model that has them; None gives zeros.
        token: the token there, or its id.
        force: whether models that have rows of their own take them, too.
    """

    model: ModelReference | None
    token: str | int
    force: bool = False


def token_choices(value: object, models: Mapping[ModelReference, Any]) -> dict[str, TokenChoice]:
    """Read ``tokens``: token -> ``{source, force}``.

    A source is a model, ``{kind: model_token, model, token | token_id}`` for another token's row, or
    ``{kind: zero}``. A token without a source is made part of the vocabulary, with rows as any other token.

    Raises:
        RecipeError: another form, an unknown key, or a model that the recipe does not name.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"tokenizer.tokens: found {value!r}, expected a mapping of tokens to their sources")
    found = {}
    for token, item in value.items():
        where = f"tokenizer.tokens.{token}"
        if not isinstance(item, Mapping):
            raise RecipeError(f"{where}: found {item!r}, expected source and perhaps force")
        _check_keys(item, KEYS, where)
        force = item.get("force", False)
        if not isinstance(force, bool):
            raise RecipeError(f"{where}.force: found {force!r}, expected true or false")
        if item.get("source") is not None:
            found[str(token)] = _source(item["source"], str(token), force, models, f"{where}.source")
        elif force:
            raise RecipeError(f"{where}: force needs a source; name the model whose rows all others take")
    return found


def _source(
    value: object, token: str, force: bool, models: Mapping[ModelReference, Any], where: str
) -> TokenChoice:
    if not isinstance(value, Mapping) or "kind" not in value:
        return TokenChoice(_model(value, models, where), token, force)
    kind = value["kind"]
    if kind == "zero":
        _check_keys(value, ("kind",), where)
        return TokenChoice(None, token, force)
    if kind != "model_token":
        raise RecipeError(f"{where}.kind: found {kind!r}, expected {' or '.join(KINDS)}")
    _check_keys(value, ROW_KEYS, where)
    given = [value[key] for key in ("token", "token_id") if value.get(key) is not None]
    if len(given) != 1 or not isinstance(given[0], str if value.get("token") is not None else int):
        raise RecipeError(
            f"{where}: found {dict(value)!r}, expected either token (text) or token_id (a number)"
        )
    return TokenChoice(_model(value.get("model"), models, f"{where}.model"), given[0], force)


def _model(value: object, models: Mapping[ModelReference, Any], where: str) -> ModelReference:
    try:
        reference = ModelReference.parse(value)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None
    if reference not in models:
        hint = nearest(str(reference), map(str, models))
        raise RecipeError(f"{where}: the recipe names no model {str(reference)!r}; {hint}")
    return reference


def _check_keys(value: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    for key in value:
        if key not in known:
            raise RecipeError(f"{where}: unknown key {key!r}; {nearest(str(key), known)}")
