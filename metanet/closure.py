"""Which actions make a group together: checks that a `WeightSpec` makes of its actions.

An element permutes, then multiplies, then shifts. Elements compose exactly if linear actions that meet in a
tensor commute, and if what multiplies a shifted tensor maps a shift to a shift:

    (s, L) ∘ (s', L') = (s + L s', L L')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from metanet.action import ACTION_KINDS, MIXING_KINDS, Action, Term
from metanet.axis import Axis, Fixed, Perm, axis_size
from metanet.leaf import Leaf, apart, leaves_of
from metanet.units import Group

if TYPE_CHECKING:
    from metanet.spec import WeightSpec

Induced = tuple[tuple[int, tuple[int, ...], int], ...]
"""What multiplies the value of a shift: (number of the action, places among the shift's axes, power)."""


def check_actions(
    groups: Mapping[str, Group],
    axes: Mapping[str, tuple[Axis, ...]],
    actions: Sequence[Action],
    ties: Sequence[tuple[str, ...]] = (),
) -> None:
    """Raise unless every action fits its entries and the actions make a group together.

    Raises:
        ValueError: naming the action and the entry.
    """
    sizes = {name: group.size for name, group in groups.items()}
    for action in actions:
        try:
            _check_form(action, groups, sizes)
            for term in action.terms:
                _check_term(action, term, axes, sizes)
        except ValueError as error:
            raise ValueError(f"action '{action}': {error}") from None
    by_entry = terms_by_entry(actions)
    for entry, terms in by_entry.items():
        _check_freedoms(entry, axes[entry], groups, actions, terms)
        for i, (number, term) in enumerate(terms):
            for other, second in terms[i + 1 :]:
                _check_pair(entry, axes[entry], (actions[number], term), (actions[other], second))
    for number, action in enumerate(actions):
        if action.kind == "shift":
            _check_shift(number, action, axes, groups, actions, by_entry)
    _check_ties(ties, by_entry)


def compatible(spec: WeightSpec, actions: Sequence[Action], action: Action) -> bool:
    """Return whether an action makes a group together with others and with the freedoms of groups."""
    entries = {term.entry for term in action.terms}
    near = [
        replace(other, terms=tuple(term for term in other.terms if term.entry in entries))
        for other in actions
        if any(term.entry in entries for term in other.terms)
    ]
    try:
        check_actions(spec.group, spec.axes, [*near, action])
    except ValueError:
        return False
    return True


def terms_by_entry(actions: Sequence[Action]) -> dict[str, list[tuple[int, Term]]]:
    """Return, for every entry, the terms that act on it, with the numbers of their actions."""
    found: dict[str, list[tuple[int, Term]]] = {}
    for number, action in enumerate(actions):
        for term in action.terms:
            found.setdefault(term.entry, []).append((number, term))
    return found


def induced(
    term: Term,
    axes: tuple[Axis, ...],
    actions: Sequence[Action],
    terms: Sequence[tuple[int, Term]],
) -> Induced:
    """Return how the linear actions on a shifted entry multiply the value of the shift.

    Args:
        term: of the shift.
        axes: of the entry.
        actions: of the spec.
        terms: that act on the entry, with the numbers of their actions.
    """
    own = _leaves(axes, term)
    return tuple(
        (number, tuple(term.leaves.index(leaf) for leaf in other.leaves), other.power)
        for number, other in terms
        if actions[number].kind != "shift" and not apart(own, _leaves(axes, other))
    )


def _leaves(axes: tuple[Axis, ...], term: Term) -> list[Leaf]:
    return [leaves_of(axes)[leaf] for leaf in term.leaves]


def _check_form(action: Action, groups: Mapping[str, Group], sizes: Mapping[str, int]) -> None:
    if action.kind not in ACTION_KINDS:
        raise ValueError(f"unknown kind {action.kind!r}; the known ones are {', '.join(ACTION_KINDS)}")
    if not action.terms:
        raise ValueError("it acts nowhere; list at least one term")
    if (action.layout is not None) != (action.kind == "rotation"):
        raise ValueError("a layout ('half' or 'interleaved') goes with a rotation, and only with one")
    if action.layout not in (None, "half", "interleaved"):
        raise ValueError(f"unknown layout {action.layout!r}; it is 'half' or 'interleaved'")
    if action.kind in MIXING_KINDS and not action.axes:
        raise ValueError("what mixes units needs the axis of these units")
    if action.kind == "rotation" and not isinstance(action.axes[-1], Fixed):
        raise ValueError("the pairs of a rotation are a fixed axis; units that are interchangeable have none")
    seen: set[str] = set()
    for axis in action.axes:
        if isinstance(axis, Perm):
            if axis.group not in groups:
                raise ValueError(f"the group {axis.group!r} is not in the table")
            if axis.role != "out":
                raise ValueError(f"the axis {axis} of a drawn value has a role; write {axis.group!r}")
            parent = groups[axis.group].parent
            if parent is not None and parent not in seen:
                raise ValueError(
                    f"{axis.group!r} is nested under {parent!r}, which must stand left of it among the axes"
                )
            seen.add(axis.group)
        elif axis_size(axis, sizes) < 1:
            raise ValueError("a fixed axis has at least one index")


def _check_term(
    action: Action, term: Term, axes: Mapping[str, tuple[Axis, ...]], sizes: Mapping[str, int]
) -> None:
    if term.entry not in axes:
        raise ValueError(f"it acts on {term.entry!r}, which is not an entry of the spec")
    where = f"entry {term.entry!r}"
    leaves = leaves_of(axes[term.entry])
    if len(term.leaves) != len(action.axes) or len(set(term.leaves)) < len(term.leaves):
        raise ValueError(
            f"{where}: {len(action.axes)} axes need as many different leaves, found {list(term.leaves)}"
        )
    if any(not 0 <= leaf < len(leaves) for leaf in term.leaves):
        raise ValueError(f"{where} has the leaves 0…{len(leaves) - 1}, found {list(term.leaves)}")
    for place, (axis, number) in enumerate(zip(action.axes, term.leaves, strict=True)):
        atom = leaves[number].atom
        if isinstance(axis, Perm):
            fits = isinstance(atom, Perm) and atom.group == axis.group
        else:
            pairs = action.kind == "rotation" and place == len(action.axes) - 1
            fits = atom == Fixed(axis.size * (2 if pairs else 1))
        if not fits:
            raise ValueError(f"{where}: the axis {axis} does not fit the leaf {atom} (number {number})")
    chosen = [leaves[number] for number in term.leaves]
    if apart(chosen, chosen):
        raise ValueError(f"{where}: the leaves {list(term.leaves)} lie in different parts of a concatenation")
    if term.power == 0 or (action.kind in MIXING_KINDS and abs(term.power) != 1):
        allowed = "1 or -1" if action.kind in MIXING_KINDS else "not zero"
        raise ValueError(f"{where}: the power must be {allowed}, found {term.power}")
    if term.eps is not None:
        even = action.kind == "positive_scale" or (action.kind == "scale" and term.power % 2 == 0)
        if not even or term.eps < 0:
            raise ValueError(f"{where}: only a positive factor acts on a variance with eps ≥ 0")


def _check_pair(
    entry: str, axes: tuple[Axis, ...], first: tuple[Action, Term], second: tuple[Action, Term]
) -> None:
    """Raise unless two terms on one entry commute; a shift is looked at elsewhere."""
    (action, term), (other, another) = first, second
    if "shift" in (action.kind, other.kind) or apart(_leaves(axes, term), _leaves(axes, another)):
        return
    problem = None
    if action.kind in MIXING_KINDS and term.leaves[-1] in another.leaves:
        problem = f"'{action}' mixes a leaf along which '{other}' acts too"
    elif other.kind in MIXING_KINDS and another.leaves[-1] in term.leaves:
        problem = f"'{other}' mixes a leaf along which '{action}' acts too"
    elif term.eps != another.eps:
        problem = f"'{action}' and '{other}' act with different eps"
    if problem:
        raise ValueError(f"entry {entry!r}: {problem}, so that they do not commute; give up one of them")


def _factors(leaf: Leaf, groups: Mapping[str, Group]) -> bool:
    """Return whether freedoms of a leaf's group multiply what has the units in this role."""
    if not isinstance(leaf.atom, Perm):
        return False
    role = leaf.atom.role
    for freedom in groups[leaf.atom.group].freedoms:
        if freedom.kind == "phase" and role == "in":
            return True
        if freedom.kind == "even" and role != "in":
            return True
        if freedom.kind in ("sign", "scale", "positive_scale"):
            return True
    return False


def _check_freedoms(
    entry: str,
    axes: tuple[Axis, ...],
    groups: Mapping[str, Group],
    actions: Sequence[Action],
    terms: Sequence[tuple[int, Term]],
) -> None:
    """Raise unless linear actions commute with the freedoms of the groups on an entry."""
    leaves = leaves_of(axes)
    phased = [
        leaf
        for leaf in leaves
        if isinstance(leaf.atom, Perm)
        and leaf.atom.role == "bias"
        and groups[leaf.atom.group].freedom("phase")
    ]
    for number, term in terms:
        action, own = actions[number], _leaves(axes, term)
        if action.kind == "shift":
            continue
        problem = None
        if action.kind in MIXING_KINDS and _factors(own[-1], groups):
            problem = f"mixes the units of {own[-1].atom}, which have freedoms of their own"
        elif term.eps is not None and any(_factors(leaf, groups) for leaf in leaves):
            problem = "acts on a variance that a freedom of a group multiplies too"
        elif any(not apart([leaf], own) for leaf in phased):
            problem = "multiplies a bias that phases shift"
        if problem:
            raise ValueError(f"entry {entry!r}: '{action}' {problem}; give up one of them")


def _check_shift(
    number: int,
    action: Action,
    axes: Mapping[str, tuple[Axis, ...]],
    groups: Mapping[str, Group],
    actions: Sequence[Action],
    by_entry: Mapping[str, Sequence[tuple[int, Term]]],
) -> None:
    """Raise unless everything that multiplies the shifted entries takes shifts to shifts, alike."""
    forms = set()
    for term in action.terms:
        entry = term.entry
        own = _leaves(axes[entry], term)
        for other, another in by_entry[entry]:
            linear = actions[other].kind != "shift" and not apart(own, _leaves(axes[entry], another))
            if linear and (another.eps is not None or not set(another.leaves) <= set(term.leaves)):
                raise ValueError(
                    f"entry {entry!r}: '{actions[other]}' acts where '{action}' shifts, along leaves "
                    "on which the shift does not depend: they make no group together; give up one of them"
                )
        for i, leaf in enumerate(leaves_of(axes[entry])):
            if i not in term.leaves and not apart(own, [leaf]) and _factors(leaf, groups):
                raise ValueError(
                    f"entry {entry!r}: '{action}' is constant along {leaf.atom}, whose units have freedoms "
                    "of their own; give up one of them"
                )
        roles = tuple(str(leaf.atom) for leaf in own)
        forms.add((frozenset(induced(term, axes[entry], actions, by_entry[entry])), roles))
    if len(forms) > 1:
        raise ValueError(
            f"action '{action}': its terms are multiplied in different ways by the other freedoms, so that "
            "no one value fits them all; make them actions of their own"
        )


def _check_ties(ties: Sequence[tuple[str, ...]], by_entry: Mapping[str, Sequence[tuple[int, Term]]]) -> None:
    def acts(entry: str) -> Iterator[tuple[object, ...]]:
        return ((n, t.leaves, t.power, t.eps) for n, t in by_entry.get(entry, ()))

    for tie in ties:
        for other in tie[1:]:
            if sorted(acts(tie[0]), key=repr) != sorted(acts(other), key=repr):
                raise ValueError(
                    f"{tie[0]!r} and {other!r} are one parameter, so every action must list both alike"
                )
