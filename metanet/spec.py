"""WeightSpec: which changes of a network's weights leave its function unchanged.

A spec is a small immutable value without tensors. It maps every state-dict entry to one axis per dimension
(`metanet.axis`) and lists the groups whose units these axes index, with the freedoms that act on the units
beside permutation, and the actions (`metanet.action`): freedoms with a table of where they act. It prints in
a notation (`metanet.notation`) that `WeightSpec.parse` reads back::

    groups         h1: 32 sign phase(30)   h2: 32 sign phase(30)
    seq.0.weight   h1 2
    seq.0.bias     h1+
    seq.1.weight   h2 h1'
    ...
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import lgamma, log, prod
from typing import Any, TypeAlias

from metanet.action import ACTION_KINDS, Action, ActionKind, Term
from metanet.axis import (
    GROUP_NAME,
    Axis,
    Fixed,
    Perm,
    atoms,
    axis_blocks,
    axis_size,
    bound_to,
    map_perms,
    normalise,
    parse_axes,
)
from metanet.closure import check_actions, terms_by_entry
from metanet.notation import action_from_dict, action_to_dict, format_spec, parse_group, parse_spec
from metanet.skeleton import Operation
from metanet.units import FREEDOM_KINDS, Freedom, FreedomKind, Group

__all__ = ["FREEDOM_KINDS", "KINDS", "Freedom", "FreedomKind", "Group", "Kind", "LostFreedom", "WeightSpec"]

Kind: TypeAlias = FreedomKind | ActionKind
"""What an element may have beside permutations: a freedom of groups, an action, or both of one name."""

KINDS: tuple[Kind, ...] = tuple(dict.fromkeys((*FREEDOM_KINDS, *ACTION_KINDS)))


@dataclass(frozen=True, slots=True)
class LostFreedom:
    """A freedom that an operation without a (sufficient) rule cost: the axes it touched became fixed."""

    operation: str
    entries: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class WeightSpec:
    """The symmetry of a network's weights, derived once and consumed by every other part.

    Args:
        groups: the groups, each name once.
        entries: ``(name, axes)`` for every state-dict entry, parameters and persistent buffers alike.
        operations: the skeleton, operations in topological order; graphs need it. Not part of equality.
        ties: sets of entry names that are one parameter under several names. Not part of equality.
        unused: entries that no output depends on. Not part of equality.
        lost: what operations without a rule cost. Not part of equality.
        actions: freedoms with a table of where they act.

    Raises:
        ValueError: an axis names an unknown group, a name is given twice, a nested group lacks its parent, an
            action does not fit its entries or makes no group together with another.
    """

    groups: tuple[Group, ...]
    entries: tuple[tuple[str, tuple[Axis, ...]], ...]
    operations: tuple[Operation, ...] = field(default=(), compare=False, repr=False)
    ties: tuple[tuple[str, ...], ...] = field(default=(), compare=False, repr=False)
    unused: tuple[str, ...] = field(default=(), compare=False, repr=False)
    lost: tuple[LostFreedom, ...] = field(default=(), compare=False, repr=False)
    actions: tuple[Action, ...] = ()

    def __post_init__(self) -> None:
        _unique("group", [group.name for group in self.groups])
        _unique("entry", [name for name, _ in self.entries])
        by_name = {group.name: group for group in self.groups}
        for group in self.groups:
            if not GROUP_NAME.fullmatch(group.name):
                raise ValueError(
                    f"{group.name!r} is no group name: use letters, digits, '_' and '.', no digit first"
                )
            if group.size < 1:
                raise ValueError(f"group {group.name!r} has size {group.size}; a group has at least one unit")
            if group.parent is not None and group.parent not in by_name:
                raise ValueError(
                    f"group {group.name!r} is nested under {group.parent!r}, which is not a group"
                )
            if group.name in self.ancestors(group.name):
                raise ValueError(f"group {group.name!r} is nested under itself")
        plain = {Perm(g.name, r): Perm(g.name) for g in self.groups if not g.freedoms for r in ("in", "bias")}
        entries = tuple(
            (name, tuple(map_perms(normalise(axis), plain) for axis in axes)) for name, axes in self.entries
        )
        object.__setattr__(self, "entries", entries)
        for name, axes in entries:
            for axis in axes:
                _check_axis(name, axis, by_name)
            _check_nesting(name, axes, by_name)
        if self.actions:
            check_actions(by_name, dict(entries), self.actions, self.ties)

    @cached_property
    def axes(self) -> Mapping[str, tuple[Axis, ...]]:
        """Axes by entry name."""
        return dict(self.entries)

    @cached_property
    def group(self) -> Mapping[str, Group]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Sizes by group name."""
        return {group.name: group.size for group in self.groups}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes by entry name."""
        return {name: tuple(axis_size(axis, self.sizes) for axis in axes) for name, axes in self.entries}

    def ancestors(self, name: str) -> tuple[str, ...]:
        """Return the groups that a group is nested under, outermost first."""
        chain: list[str] = []
        parent = self.group[name].parent
        while parent is not None and parent not in chain:
            chain.append(parent)
            parent = self.group[parent].parent
        return tuple(reversed(chain))

    def copies(self, name: str) -> int:
        """Return how many permutations a group has: one per unit of its ancestors, one without any."""
        return prod(self.sizes[ancestor] for ancestor in self.ancestors(name))

    @cached_property
    def terms(self) -> Mapping[str, Sequence[tuple[int, Term]]]:
        """Terms that act on an entry, with the numbers of their actions."""
        return terms_by_entry(self.actions)

    @property
    def axes_to_group(self) -> dict[tuple[str, int], tuple[str, ...]]:
        """``(entry, dimension) -> names of the groups on it``, Git Re-Basin's view."""
        return {
            (name, dim): tuple(atom.group for atom in atoms(axis) if isinstance(atom, Perm))
            for name, axes in self.entries
            for dim, axis in enumerate(axes)
        }

    @property
    def group_to_axes(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """``group -> ((entry, dimension), …)`` wherever the group occurs."""
        where: dict[str, list[tuple[str, int]]] = {group.name: [] for group in self.groups}
        for place, names in self.axes_to_group.items():
            for name in dict.fromkeys(names):
                where[name].append(place)
        return {name: tuple(places) for name, places in where.items()}

    @property
    def num_parameters(self) -> int:
        """Number of values in all entries."""
        return sum(prod(shape) for shape in self.shapes.values())

    def log2_size(self) -> float:
        """Return the size of the finite part of the group in bits: permutations, signs and even units.

        Phases (ℤ per unit) and scales (continuous) are infinite; `phase_rank` and `dimension` count them.
        """
        bits = 0.0
        for group in self.groups:
            copies = self.copies(group.name)
            flips = sum(f.kind in ("sign", "even") for f in group.freedoms)
            bits += copies * (lgamma(group.size + 1) / log(2) + flips * group.size)
        return bits + sum(prod(a.shape(self.sizes)) for a in self.actions if a.kind == "sign")

    def phase_rank(self) -> int:
        """Return the number of units with a phase: the rank of the group's ℤⁿ part."""
        return sum(g.size * self.copies(g.name) for g in self.groups if g.freedom("phase"))

    def dimension(self) -> int:
        """Return the dimension of the continuous part: one per unit with a scale, and every action's."""
        scaled = [g for g in self.groups if g.freedom("scale") or g.freedom("positive_scale")]
        scales = sum(g.size * self.copies(g.name) for g in scaled)
        return scales + sum(action.dimension(self.sizes) for action in self.actions)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        return format_spec(self.groups, self.entries, self.actions)

    def __repr__(self) -> str:
        return (
            f"WeightSpec({len(self.entries)} entries, {len(self.groups)} groups, {self.log2_size():.0f} bits)"
        )

    @classmethod
    def parse(cls, text: str) -> WeightSpec:
        """Read a spec in the notation that ``str(spec)`` prints; blank lines and ``#`` comments are skipped.

        Raises:
            ValueError: naming the line that cannot be read.
        """
        groups, entries, actions = parse_spec(text)
        return cls(groups, entries, actions=actions)

    def to_json(self) -> str:
        """Return everything, skeleton included, as JSON text."""
        data = {
            "format": "metanet.spec",
            "version": 1,
            "groups": [str(group) for group in self.groups],
            "entries": {name: " ".join(map(str, axes)) for name, axes in self.entries},
            "actions": [action_to_dict(action) for action in self.actions],
            "operations": [operation.to_dict() for operation in self.operations],
            "ties": [list(tie) for tie in self.ties],
            "unused": list(self.unused),
            "lost": [
                {"operation": lost.operation, "entries": list(lost.entries), "reason": lost.reason}
                for lost in self.lost
            ],
        }
        return json.dumps(data, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> WeightSpec:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is not JSON of this format.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data["format"] != "metanet.spec" or data["version"] != 1:
                raise ValueError(f"format {data['format']!r} version {data['version']!r}")
            return cls(
                groups=tuple(parse_group(group) for group in data["groups"]),
                entries=tuple((name, parse_axes(axes)) for name, axes in data["entries"].items()),
                operations=tuple(Operation.from_dict(operation) for operation in data["operations"]),
                ties=tuple(tuple(tie) for tie in data["ties"]),
                unused=tuple(data["unused"]),
                lost=tuple(
                    LostFreedom(lost["operation"], tuple(lost["entries"]), lost["reason"])
                    for lost in data["lost"]
                ),
                actions=tuple(action_from_dict(action) for action in data.get("actions", ())),
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is no spec in JSON (metanet.spec, version 1): {error!r}") from None

    def select(self, names: Iterable[str]) -> WeightSpec:
        """Return the spec of some of the entries; groups and actions that no longer occur are dropped."""
        kept = set(names)
        if unknown := kept - set(self.axes):
            raise KeyError(f"not entries of this spec: {sorted(unknown)}")
        entries = tuple((name, axes) for name, axes in self.entries if name in kept)
        used = {
            atom.group
            for _, axes in entries
            for axis in axes
            for atom in atoms(axis)
            if isinstance(atom, Perm)
        }
        used |= {ancestor for name in used for ancestor in self.ancestors(name)}
        ties = [tuple(name for name in tie if name in kept) for tie in self.ties]
        return replace(
            self,
            groups=tuple(g for g in self.groups if g.name in used),
            entries=entries,
            actions=_restricted(self.actions, kept),
            ties=tuple(tie for tie in ties if len(tie) > 1),
        )

    def check(self, shapes: Mapping[str, tuple[int, ...]], *, leading: int | None = 0) -> None:
        """Raise unless the shapes are those of this spec's entries.

        Args:
            shapes: entry name -> shape.
            leading: number of leading dimensions before the axes (stacked models); None allows any.

        Raises:
            ValueError: naming entries that are missing, unexpected or of another shape.
        """
        missing = [name for name in self.axes if name not in shapes]
        unexpected = [name for name in shapes if name not in self.axes]
        wrong = []
        for name, expected in self.shapes.items():
            if name in shapes:
                shape = tuple(shapes[name])
                extra = len(shape) - len(expected)
                if extra < 0 or shape[extra:] != expected or (leading is not None and extra != leading):
                    wrong.append(
                        f"{name}: found {list(shape)}, expected {['…'] * bool(leading) + list(expected)}"
                    )
        problems = [
            f"missing {_some(missing)}" if missing else "",
            f"unexpected {_some(unexpected)}" if unexpected else "",
            f"wrong shapes: {_some(wrong)}" if wrong else "",
        ]
        if any(problems):
            raise ValueError(
                "these weights do not fit the spec: "
                + "; ".join(p for p in problems if p)
                + ". Derive the spec from the model that wrote them (metanet.spec_of) or pass the right file."
            )


def _restricted(actions: Iterable[Action], kept: set[str]) -> tuple[Action, ...]:
    left = (replace(a, terms=tuple(t for t in a.terms if t.entry in kept)) for a in actions)
    return tuple(action for action in left if action.terms)


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _unique(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{what} names must be unique; given twice: {', '.join(twice)}")


def _check_axis(name: str, axis: Axis, groups: Mapping[str, Group]) -> None:
    for atom in atoms(axis):
        if isinstance(atom, Perm) and atom.group not in groups:
            raise ValueError(
                f"entry {name!r}: axis {axis} names the group {atom.group!r}, which is not in the table"
            )
        if isinstance(atom, Fixed) and atom.size < 0:
            raise ValueError(f"entry {name!r}: axis {axis} has a negative size")


def _check_nesting(name: str, axes: tuple[Axis, ...], groups: Mapping[str, Group]) -> None:
    nested = {a.group for axis in axes for a in atoms(axis) if isinstance(a, Perm) and groups[a.group].parent}
    if not nested:
        return
    for _, block, dims in axis_blocks(axes):
        for at, atom in enumerate(block):
            parent = groups[atom.group].parent if isinstance(atom, Perm) and atom.group in nested else None
            if parent is not None and bound_to(at, parent, block, dims) is None:
                count = sum(isinstance(other, Perm) and other.group == parent for other in block)
                raise ValueError(
                    f"entry {name!r}: {atom} is nested under {parent!r}, which must stand left of it in a "
                    f"product, or once beside it; found {' '.join(map(str, axes))}, where it stands "
                    f"{count} times"
                )
