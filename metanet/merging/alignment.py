"""How a recipe's models are to be aligned before they are merged: what ``align`` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

from metanet.merging.spelling import nearest

AlignMethod = Literal["auto", "weights", "reference", "cycle-consistent", "merge-many"]
"""What models are taken to. ``reference`` and ``weights``: to the base, or else to the first model, the
latter however little that gains. ``cycle-consistent`` (C²M³) and ``merge-many``: all of them to a common
order of units. ``auto``: to the base if there is one; three or more models without one to a common order."""
ManyMethod = Literal["reference", "cycle-consistent", "merge-many"]
"""How three or more are aligned."""
ALIGN_METHODS: tuple[AlignMethod, ...] = get_args(AlignMethod)
MANY_METHODS: tuple[ManyMethod, ...] = get_args(ManyMethod)
KEYS = ("method", "reference", "min_gain", "activation", "spec", "elements")
MIN_GAIN = 0.01
"""Fraction of the squared distance below which models are left as they are: fine-tunes of one base."""


@dataclass(frozen=True, slots=True)
class Align:
    """What a recipe's ``align`` asks for.

    Args:
        method: how models are aligned.
        reference: name of the model whose order of units is kept; None is the base, or else the first.
        min_gain: fraction of the squared distance that alignment must remove to be taken.
        activation: of a plain sequential network, such as ``relu``.
        spec: file of the models' spec, None to find it.
        elements: model -> file of a group element found before; then nothing is matched.
    """

    method: AlignMethod = "auto"
    reference: str | None = None
    min_gain: float = MIN_GAIN
    activation: str | None = None
    spec: str | None = None
    elements: Mapping[str, str] | None = None

    def names(self) -> tuple[str, ...]:
        """The models that it names."""
        return (*((self.reference,) if self.reference else ()), *(self.elements or ()))


def parse_align(value: object) -> Align | None:
    """Read ``align``: true, a method, a mapping of settings, or a mapping of models to element files.

    Raises:
        ValueError: none of these.

    Example:
        >>> parse_align("weights").min_gain, parse_align({"method": "merge-many"}).method
        (0.0, 'merge-many')
        >>> parse_align({"b": "g.safetensors"}).elements
        {'b': 'g.safetensors'}
    """
    if value is None or value is False:
        return None
    if value is True:
        return Align()
    if isinstance(value, str):
        method = _method(value)
        return Align(method, min_gain=_gain(method))
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"found {value!r}, expected true, a method, settings, or files by model")
    if not set(value) & set(KEYS):
        return Align(elements=_files(value))
    for key in value:
        if key not in KEYS:
            raise ValueError(f"unknown key {key!r}; {nearest(key, KEYS)}")
    if "elements" in value:
        if len(value) > 1:
            raise ValueError("elements were found before; leave the other settings out")
        return Align(elements=_files(value["elements"]))
    method = _method(value.get("method", "auto"))
    least = value.get("min_gain", _gain(method))
    if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least < 1:
        raise ValueError(f"min_gain: found {least!r}, expected a fraction from 0 to below 1")
    texts = {key: value.get(key) for key in ("reference", "activation", "spec")}
    for key, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{key}: found {text!r}, expected text")
    return Align(method, texts["reference"], float(least), texts["activation"], texts["spec"])


def _method(value: object) -> AlignMethod:
    if not _is_method(value):
        raise ValueError(f"there is no method {value!r}; {nearest(str(value), ALIGN_METHODS)}")
    return value


def _is_method(value: object) -> TypeGuard[AlignMethod]:
    return value in ALIGN_METHODS


def _gain(method: AlignMethod) -> float:
    return 0.0 if method == "weights" else MIN_GAIN


def _files(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(file, str) for file in value.values()):
        raise ValueError(f"found {value!r}, expected models and the files of their group elements")
    return {str(model): file for model, file in value.items()}
