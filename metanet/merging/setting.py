"""What a recipe sets a parameter to: a number, a gradient over the layers, or a choice by tensor names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metanet.merging.stretch import Value


@dataclass(frozen=True, slots=True)
class Gradient:
    """Values at equal distances from the first layer to the last, linear in between."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Settings by name: the first whose text is part of the tensor's name holds; None fits every name."""

    cases: tuple[tuple[str | None, Setting], ...]


Setting = Value | Gradient | Choice


def parse_setting(value: object) -> Setting:
    """Read a setting: a scalar, a list of numbers, or a list of ``{filter, value}``.

    Raises:
        ValueError: none of these.

    Example:
        >>> parse_setting([0, 1])
        Gradient(values=(0.0, 1.0))
        >>> evaluate(parse_setting([{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]), "a.mlp.w", 0.25)
        0.25
    """
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str) and _number(value) is not None:
        # YAML reads 1e-5 as text.
        return float(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        if all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
            return Gradient(tuple(float(item) for item in value))
        if all(isinstance(item, Mapping) for item in value):
            return Choice(tuple(_case(item) for item in value))
    if isinstance(value, Mapping):
        return Choice((_case(value),))
    raise ValueError(
        f"found {value!r}, expected a number, a list of numbers (over the layers), or a list of "
        "{filter: text in the tensor's name, value: …}"
    )


def evaluate(setting: Setting | None, tensor: str, t: float | None) -> Value | None:
    """Give a setting's value for a tensor.

    Args:
        setting: the setting; None gives None.
        tensor: the tensor's name.
        t: how deep its layer lies, from 0 to 1; None if the model has no layers.

    Returns:
        the value, or None where no case fits the name.

    Raises:
        ValueError: a gradient for a model without layers.
    """
    if isinstance(setting, Gradient):
        if len(setting.values) == 1:
            return setting.values[0]
        if t is None:
            raise ValueError(
                f"a gradient {list(setting.values)} was given, but no numbered layers were found in the "
                "tensors' names; give one value, or values by filter"
            )
        place = t * (len(setting.values) - 1)
        below = min(int(place), len(setting.values) - 2)
        share = place - below
        return (1 - share) * setting.values[below] + share * setting.values[below + 1]
    if isinstance(setting, Choice):
        for text, inner in setting.cases:
            if text is None or text in tensor:
                return evaluate(inner, tensor, t)
        return None
    return setting


def _case(item: Mapping[object, object]) -> tuple[str | None, Setting]:
    if not item.keys() <= {"filter", "value"} or "value" not in item:
        raise ValueError(f"found {dict(item)!r}, expected filter and value")
    text = item.get("filter")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"found the filter {text!r}, expected text that is part of a tensor's name")
    return (None if text == "*" else text), parse_setting(item["value"])


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
