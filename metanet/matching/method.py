"""The contract of matching methods, and the one registry of them.

A matcher maps a `Problem`, two networks and whatever the method looks at, to what it found: a `Matching`,
whose element keeps the function, or a `SoftMatching`, whose matrices do not. ``metanet match --method`` knows
every registered name; a learned matcher (a network that maps two sets of weights to an element) is one more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor, nn

from metanet.merging.spelling import nearest
from metanet.spec import WeightSpec

if TYPE_CHECKING:
    from metanet.matching.components import Component
    from metanet.matching.soft_map import SoftMatching
    from metanet.matching.weights import Matching

State: TypeAlias = Mapping[str, Tensor]
Loss: TypeAlias = Callable[[dict[str, Tensor]], Tensor]
"""Differentiable loss of a state dict; every call may look at another batch."""
Needs = Literal["weights", "inputs", "loss"]
"""What a method looks at: the weights alone, activations on inputs too, or a loss on labelled data too."""
Returns = Literal["element", "soft map"]
SettingValue: TypeAlias = bool | int | float | str | tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """Two networks to be matched, and what there is to look at.

    Args:
        spec: of network b, the one to be moved.
        a: state dict of the network that stays; may be lazy.
        b: state dict of the network to be moved; may be lazy.
        spec_a: of network a, where its widths are others; None if it is the same.
        model: a network with b's names that can be run; its weights are left as they were.
        model_a: the same with a's widths, where they are others.
        inputs: arguments of the network: one batch of data.
        loss: of a state dict of this architecture.
        fixed: groups that stay as they are.
        seed: of whatever is drawn.
        progress: told of every component (`metanet.matching.components`) that is done.
    """

    spec: WeightSpec
    a: State
    b: State
    spec_a: WeightSpec | None = None
    model: nn.Module | None = None
    model_a: nn.Module | None = None
    inputs: tuple[Any, ...] = ()
    loss: Loss | None = None
    fixed: Collection[str] = ()
    seed: int = 0
    progress: Callable[[Component], None] | None = None


Match: TypeAlias = "Callable[..., Matching | SoftMatching]"
"""A method: called with a problem, and its settings by name."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a method.

    Args:
        default: its value unless given; says its type too.
        doc: one line about it.
        choices: the allowed values, of a text.
    """

    default: SettingValue
    doc: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Matcher:
    """A matching method.

    Args:
        name: as ``metanet match --method`` takes it.
        match: the method.
        summary: one line about it.
        reference: authors, year and URL of the paper.
        needs: what it looks at.
        returns: an element of the group, or a soft map.
        streams: whether it reads lazy state dicts a component at a time.
        widths: whether the networks may differ in widths.
        folds: whether gains of norms are to be folded into what reads them first.
        settings: by name.
    """

    name: str
    match: Match
    summary: str
    reference: str
    needs: Needs = "weights"
    returns: Returns = "element"
    streams: bool = False
    widths: bool = False
    folds: bool = False
    settings: Mapping[str, Setting] = field(default_factory=dict)


MATCHERS: dict[str, Matcher] = {}
"""Every known method by name: those of `metanet.matching.methods`, and the user's own."""


def matcher(
    name: str,
    *,
    reference: str,
    needs: Needs = "weights",
    returns: Returns = "element",
    streams: bool = False,
    widths: bool = False,
    folds: bool = False,
    settings: Mapping[str, Setting] | None = None,
) -> Callable[[Match], Match]:
    """Make a function a matching method that ``metanet match --method`` knows by name.

    Args:
        name: of the method.
        reference: where it comes from.
        needs: what it looks at: ``weights``, ``inputs`` (a model and data), ``loss`` (labelled data).
        returns: ``element`` (a `Matching`) or ``soft map`` (a `SoftMatching`).
        streams: whether it reads lazy state dicts a component at a time, in bounded memory.
        widths: whether the networks may differ in widths.
        folds: whether gains of norms are to be folded into what reads them first.
        settings: what the user may set, by name.

    Returns:
        the decorator; it leaves the function as it is.

    Raises:
        ValueError: the name is taken by another function.

    Example:
        >>> from metanet.group import GroupElement
        >>> from metanet.matching.weights import matching_of
        >>> @matcher("nothing", reference="the identity")
        ... def nothing(problem):
        ...     return matching_of(GroupElement.identity(problem.spec), problem.a, problem.b)
        >>> MATCHERS["nothing"].summary
        'Nothing.'
        >>> del MATCHERS["nothing"]
    """

    def register(match: Match) -> Match:
        old = MATCHERS.get(name)
        if old is not None and _origin(old.match) != _origin(match):
            raise ValueError(f"there is a matching method {name!r} already ({old.reference}); rename yours")
        text = (match.__doc__ or f"{name.capitalize()}.").strip().splitlines()[0]
        MATCHERS[name] = Matcher(
            name, match, text, reference, needs, returns, streams, widths, folds, dict(settings or {})
        )
        return match

    return register


def find_matcher(name: str) -> Matcher:
    """Return a method by name, built-in or registered.

    Raises:
        ValueError: there is none; names the nearest.
    """
    from metanet.matching import methods  # registers the built-in ones; it imports this module

    assert methods.__name__
    if name not in MATCHERS:
        raise ValueError(f"there is no matching method {name!r}; {nearest(name, MATCHERS)}")
    return MATCHERS[name]


def match(method: str | Matcher, problem: Problem, **settings: Any) -> Matching | SoftMatching:
    """Match two networks by a method of the registry.

    Args:
        method: its name.
        problem: the networks and what there is to look at.
        **settings: of the method.

    Raises:
        ValueError: an unknown method or setting, or a problem that lacks what the method looks at.
    """
    found = find_matcher(method) if isinstance(method, str) else method
    check_problem(found, problem)
    return found.match(problem, **checked_settings(found, settings))


def check_problem(method: Matcher, problem: Problem) -> None:
    """Raise unless a problem has what a method looks at."""
    if method.needs != "weights" and problem.model is None and problem.loss is None:
        raise ValueError(f"matching by {method.name} runs the networks: it needs a model and data")
    if method.needs == "inputs" and not problem.inputs:
        raise ValueError(f"matching by {method.name} looks at activations: it needs a batch of data")
    if method.needs == "loss" and problem.loss is None:
        raise ValueError(f"matching by {method.name} goes by a loss: it needs labelled data")
    if problem.spec_a is not None and not method.widths and problem.spec_a != problem.spec:
        others = ", ".join(m.name for m in MATCHERS.values() if m.widths)
        raise ValueError(
            f"matching by {method.name} takes networks of the same widths; {others} takes others"
        )
    if unknown := sorted(set(problem.fixed) - set(problem.spec.group)):
        raise ValueError(f"the spec has no groups {unknown}; its groups are {', '.join(problem.spec.group)}")


def checked_settings(method: Matcher, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the types of their defaults.

    Raises:
        ValueError: an unknown one, or a value of another type.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in method.settings:
            raise ValueError(
                f"matching by {method.name} has no setting {name!r}; {nearest(name, method.settings)}"
            )
        setting = method.settings[name]
        kind = type(setting.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is tuple and not isinstance(value, str):
            value = tuple(value)
        if type(value) is not kind:
            raise ValueError(f"{method.name}: {name} is {value!r}, expected {kind.__name__}: {setting.doc}")
        if setting.choices and value not in setting.choices:
            raise ValueError(f"{method.name}: {name} is {value!r}, expected {' or '.join(setting.choices)}")
        found[name] = value
    return found


def _origin(match: Match) -> tuple[str, str]:
    return getattr(match, "__module__", ""), getattr(match, "__qualname__", "")
