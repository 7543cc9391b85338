"""Explanation of a spec: what made each group one group, what acts on it, and what each lost freedom cost.

The skeleton of operations tells it all, so a spec that was saved as JSON explains itself as well as one that
was just derived. Entries that carry a group start apart; an operation that meets two of them joins them, by
reading the units that the other writes, adding, normalising, comparing queries with keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metanet.axis import Axis, Perm, atoms
from metanet.skeleton import Operation
from metanet.spec import LostFreedom, WeightSpec

CARRIERS = frozenset(("reshape", "transpose", "expand", "slice", "select", "getitem"))
"""Operations behind which a value is the same units, even where an axis shows them as numbers for a while."""
MEANINGS: Mapping[str, str] = {
    "sign": "each unit may change sign: its row and bias, and the columns that read it",
    "even": "each unit may change the sign of its row and bias alone: the activation is even",
    "phase": "each unit's bias may move by half periods: its readers change sign with odd ones",
    "scale": "each unit may be scaled by any factor but zero: its readers undo it",
    "positive_scale": "each unit may be scaled by a positive factor: its readers undo it",
    "shift": "a number may be added that what follows takes out again",
    "linear": "the units may be mixed by any invertible matrix: its readers undo it",
    "orthogonal": "the units may be mixed by any orthogonal matrix: its readers undo it",
    "rotation": "each pair of indices may be rotated and scaled: its readers undo it",
}
"""What a freedom or an action does, by its kind."""


@dataclass(frozen=True, slots=True)
class Joint:
    """An operation that made entries share units.

    Args:
        position: of the operation in the skeleton.
        kind: of the operation.
        entries: one of each set of entries that were apart before, in the order in which they came.
    """

    position: int
    kind: str
    entries: tuple[str, ...]

    def __str__(self) -> str:
        first, *others = self.entries
        return f"{self.kind} (operation {self.position}) joins {', '.join(others)} to {first}"


@dataclass(frozen=True, slots=True)
class GroupExplanation:
    """Where a group comes from and what acts on it.

    Args:
        name: of the group.
        size: number of its units, of one parent unit if it is nested.
        parent: the group under which it is nested.
        writer: the entry that wrote its units first, and the kind of operation that it did so in.
        joints: what tied further entries to it, in the order of the network.
        acts: what acts on its units, one sentence each, permutations first.
        occurs: ``(entry, dimension)`` wherever it stands.
    """

    name: str
    size: int
    parent: str | None
    writer: tuple[str, str] | None
    joints: tuple[Joint, ...]
    acts: tuple[str, ...]
    occurs: tuple[tuple[str, int], ...]

    def joined(self) -> dict[str, tuple[str, ...]]:
        """Return, for every kind of operation, the entries that it tied to the group."""
        found: dict[str, dict[str, None]] = {}
        for joint in self.joints:
            found.setdefault(joint.kind, {}).update(dict.fromkeys(joint.entries[1:]))
        return {kind: tuple(entries) for kind, entries in found.items()}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that is to be said of a spec.

    Args:
        groups: one by one, in the spec's order.
        lost: what an operation cost, and how to help.
        unused: entries that no output depends on.
    """

    groups: tuple[GroupExplanation, ...]
    lost: tuple[tuple[LostFreedom, str], ...]
    unused: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "groups": [
                {
                    "name": group.name,
                    "size": group.size,
                    "parent": group.parent,
                    "written_by": group.writer and {"entry": group.writer[0], "operation": group.writer[1]},
                    "joined": [
                        {"operation": j.position, "kind": j.kind, "entries": list(j.entries)}
                        for j in group.joints
                    ],
                    "acts": list(group.acts),
                    "occurs": [list(place) for place in group.occurs],
                }
                for group in self.groups
            ],
            "lost": [
                {
                    "operation": lost.operation,
                    "entries": list(lost.entries),
                    "reason": lost.reason,
                    "help": advice,
                }
                for lost, advice in self.lost
            ],
            "unused": list(self.unused),
        }


def explain(spec: WeightSpec) -> Explanation:
    """Say where every group of a spec comes from, what acts on it, and what was lost on the way.

    Args:
        spec: derived, or read from JSON; in the notation alone there are no operations, so no origins.

    Returns:
        The explanation, in time linear in the operations and in the places where groups stand.

    Example:
        >>> from torch import nn, zeros
        >>> from metanet import spec_of
        >>> network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> [group] = explain(spec_of(network, zeros(1, 2))).groups
        >>> group.writer, [str(joint) for joint in group.joints]
        (('0.weight', 'linear'), ['linear (operation 1) joins 0.bias to 0.weight', \
'linear (operation 3) joins 2.weight to 0.weight'])
    """
    origins = _Origins(spec)
    for position, operation in enumerate(spec.operations):
        origins.meet(position, operation)
    where, acts = spec.group_to_axes, _acts(spec)
    groups = tuple(
        GroupExplanation(
            group.name,
            group.size,
            group.parent,
            origins.writers.get(group.name),
            tuple(origins.joints.get(group.name, ())),
            tuple(acts[group.name]),
            where[group.name],
        )
        for group in spec.groups
    )
    lost = tuple((cost, advice(cost)) for cost in spec.lost)
    return Explanation(groups, lost, spec.unused)


def advice(lost: LostFreedom) -> str:
    """Return how to win a lost freedom back."""
    if "no rule" in lost.reason:
        return (
            f"give {lost.operation} a rule (metanet.rules.rule: one function that says which dimensions it "
            "keeps), or write the freedom into a spec by hand and prove it with --spec FILE --verify"
        )
    if "does not cover" in lost.reason:
        return (
            f"the rule of {lost.operation} knows other forms of it: rewrite the call in one of them, or "
            "register a rule of your own under the same name"
        )
    if any(word in lost.reason for word in ("align", "cut within", "factor alike")):
        return (
            "two reshapes or cuts disagree on how the dimension is made up: cut it where its parts meet, or "
            "reshape it into the same factors in the same order on both sides"
        )
    return "write the freedom into a spec by hand and prove it with --spec FILE --verify"


@dataclass
class _Origins:
    """Which entries of each group are joined already, while the operations go by."""

    spec: WeightSpec
    writers: dict[str, tuple[str, str]] = field(default_factory=dict)
    joints: dict[str, list[Joint]] = field(default_factory=dict)
    values: list[dict[str, str]] = field(default_factory=list)
    """For every operation, group -> an entry whose units its result carries."""
    links: dict[tuple[str, str], str] = field(default_factory=dict)

    def meet(self, position: int, operation: Operation) -> None:
        """Join what an operation brings together, and note what its result carries."""
        met: dict[str, dict[str, None]] = {}
        for source in operation.inputs:
            for group, entry in self.values[source].items():
                met.setdefault(group, {})[entry] = None
        for _, entry in operation.parameters:
            for group in _groups(self.spec.axes.get(entry, ())):
                if group not in self.writers:
                    self.writers[group] = (entry, operation.kind)
                met.setdefault(group, {})[entry] = None
        for group, entries in met.items():
            self.join(position, operation.kind, group, entries)
        kept = met if operation.kind in CARRIERS else _groups(operation.axes)
        self.values.append({group: next(iter(met[group])) for group in kept if group in met})

    def join(self, position: int, kind: str, group: str, entries: Iterable[str]) -> None:
        """Make entries of a group one set, and record it where they were several."""
        roots = list(dict.fromkeys(self.root(group, entry) for entry in entries))
        if len(roots) < 2:
            return
        first = self.writers[group][0]
        roots.sort(key=lambda root: root != self.root(group, first))
        for root in roots[1:]:
            self.links[group, root] = roots[0]
        self.joints.setdefault(group, []).append(Joint(position, kind, tuple(roots)))

    def root(self, group: str, entry: str) -> str:
        """Return the entry that stands for all that are joined to this one."""
        path = []
        while (group, entry) in self.links:
            path.append(entry)
            entry = self.links[group, entry]
        for passed in path:
            self.links[group, passed] = entry
        return entry


def _acts(spec: WeightSpec) -> dict[str, list[str]]:
    """Return what acts on each group, permutations first."""
    acts: dict[str, list[str]] = {}
    for group in spec.groups:
        apart = f", independently for every unit of {group.parent}" if group.parent else ""
        acts[group.name] = [f"permutations of its {group.size} units{apart}"]
        acts[group.name] += [f"{freedom}: {MEANINGS[freedom.kind]}" for freedom in group.freedoms]
    for action in spec.actions:
        entries = list(dict.fromkeys(term.entry for term in action.terms))
        more = f" and {len(entries) - 4} more" if len(entries) > 4 else ""
        for name in dict.fromkeys(action.groups):
            acts[name].append(f"{action}: {MEANINGS[action.kind]}; it acts on {', '.join(entries[:4])}{more}")
    return acts


def _groups(axes: Sequence[Axis]) -> dict[str, None]:
    return {atom.group: None for axis in axes for atom in atoms(axis) if isinstance(atom, Perm)}
