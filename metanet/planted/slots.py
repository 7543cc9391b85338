"""Random networks together with the group that they were built to have: an oracle for derivations.

While a network is drawn, every index of every feature dimension is written down as a *unit*, and every
operation says which units it makes one (a residual sum, a gate) or takes apart (heads times widths). Units
that take the same places in the parameters are interchangeable; which ones do is found by colour refinement
over the finished network. Nothing here knows about dimension variables, so that a rule that fixes too
much, or too little, gives another partition than this one.

    network = random_network(seed)                        # metanet.planted.operations
    spec = spec_of(network, *network.inputs)
    assert_planted(spec, network.planted())

References:
    Weisfeiler and Leman 1968, The reduction of a graph to canonical form and the algebra which appears
    therein (colour refinement).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from metanet.axis import Axis, Concat, Fixed, Perm, Product
from metanet.spec import WeightSpec

Label: TypeAlias = tuple["Unit", ...]
"""What one index of a dimension stands for: a unit, or one unit per factor of a product."""
Slots: TypeAlias = Mapping[str, tuple[tuple[tuple[str, ...], ...], ...]]
"""Entry -> dimension -> index -> the group of every factor that has one."""


class Unit:
    """One unit: alone, made one with another, or made of several factors.

    Args:
        fixed: whether its index has a meaning of its own.
    """

    __slots__ = ("_link", "bundle", "cut", "fixed")

    def __init__(self, *, fixed: bool = False) -> None:
        self.fixed = fixed
        self.cut = False
        self.bundle: list[Unit] = []
        self._link: Label | None = None

    def resolve(self) -> Label:
        """Return the units that stand for this one."""
        if self._link is None:
            return (self,)
        return tuple(unit for part in self._link for unit in part.resolve())

    def link(self, label: Label) -> None:
        """Let others stand for this one."""
        self._link = label


def fresh(size: int, *, fixed: bool = False) -> list[Label]:
    """Return labels of new units, which nothing tells apart yet."""
    bundle = [Unit(fixed=fixed) for _ in range(size)]
    for unit in bundle:
        unit.bundle = bundle
    return [(unit,) for unit in bundle]


def grid(*factors: Sequence[Label]) -> list[Label]:
    """Return the labels of a row-major product."""
    labels: list[Label] = [()]
    for factor in factors:
        labels = [(*a, *b) for a in labels for b in factor]
    return labels


def resolve(label: Label) -> Label:
    """Return the units that a label stands for by now."""
    return tuple(unit for part in label for unit in part.resolve())


def whole(labels: Sequence[Label]) -> bool:
    """Return whether a dimension is one bundle of units from which nothing was cut."""
    units = [resolve(label) for label in labels]
    if any(len(unit) != 1 or unit[0].cut or unit[0].fixed for unit in units):
        return False
    return [unit[0] for unit in units] == units[0][0].bundle


def factored(labels: Sequence[Label], outer: int) -> tuple[list[Label], list[Label]] | None:
    """Factor a dimension into a product with a given number of outer units; None if it has other factors."""
    inner = len(labels) // outer
    if whole(labels):
        factors = fresh(outer), fresh(inner)
        for label, pair in zip(labels, grid(*factors), strict=True):
            resolve(label)[0].link(pair)
        return factors
    units = [resolve(label) for label in labels]
    first, second = [u[:1] for u in units[::inner]], [u[1:] for u in units[:inner]]
    return (first, second) if units == grid(first, second) and all(map(len, second)) else None


def alike(first: Sequence[Label], second: Sequence[Label]) -> bool:
    """Return whether two dimensions can be made one without cutting a product apart."""
    a, b = [resolve(x) for x in first], [resolve(x) for x in second]
    if all(len(x) == 1 for x in (*a, *b)):
        return True
    if [len(x) for x in a] == [len(x) for x in b]:
        return all(len({x[i] for x in a}) == len({x[i] for x in b}) for i in range(min(map(len, a))))
    return whole(first) or whole(second)


def unite(first: Sequence[Label], second: Sequence[Label]) -> None:
    """Make two dimensions one, index by index."""
    if whole(first) != whole(second):
        cut(first)
        cut(second)
    for left, right in zip(first, second, strict=True):
        a, b = resolve(left), resolve(right)
        if len(b) < len(a):
            a, b = b, a
        if len(a) < len(b):
            a[0].link(b)
            continue
        for x, y in zip(a, b, strict=True):
            [x], [y] = x.resolve(), y.resolve()
            if x is not y:
                y.fixed, y.cut = x.fixed or y.fixed, x.cut or y.cut
                x.link((y,))


def cut(labels: Sequence[Label]) -> None:
    """Note that units are told apart from others of their bundle."""
    for label in labels:
        for unit in resolve(label):
            unit.cut = True


@dataclass(frozen=True)
class Planted:
    """The group that a network was built to have.

    Args:
        slots: which groups every index of every entry belongs to.
        parents: group -> those that it is nested under.
    """

    slots: Slots
    parents: Mapping[str, frozenset[str]]


def planted(
    entries: Mapping[str, Sequence[Sequence[Label]]],
    beside: Mapping[tuple[str, int], Sequence[Label]],
    mixed: Sequence[tuple[Sequence[Label], Sequence[Label]]],
) -> Planted:
    """Return the groups that the units of a network form, by what places of its entries they take.

    A group is nested under another if it never occurs without it, and if nothing reads its units at one
    index of the other.

    Args:
        entries: name -> for every dimension the label of every index; marks are entries that do not exist.
        beside: (entry, dimension) -> units that choose which ones of a nested group that dimension holds.
        mixed: units of a parent, and those that are read together for every single one of them.
    """
    colours = _colours(entries)
    sizes = Counter(colours.values())

    def groups(label: Label) -> tuple[str, ...]:
        return tuple(str(colours[u]) for u in resolve(label) if sizes[colours[u]] > 1)

    real = {name: dims for name, dims in entries.items() if not name.startswith("mark:")}
    slots = {name: tuple(tuple(map(groups, labels)) for labels in dims) for name, dims in real.items()}
    parents: dict[str, set[str]] = {}
    for name, dims in slots.items():
        for dim, labels in enumerate(dims):
            context = {group for label in beside.get((name, dim), ()) for group in groups(label)}
            for label in labels:
                for group in label:
                    found = {*label, *context} - {group}
                    parents[group] = parents[group] & found if group in parents else found
    for outer, inner in mixed:
        for one in outer:
            for other in inner:
                for group in groups(one):
                    parents.get(group, set()).difference_update(groups(other))
    return Planted(slots, {group: frozenset(found) for group, found in parents.items()})


def _colours(entries: Mapping[str, Sequence[Sequence[Label]]]) -> dict[Unit, int]:
    """Colour the units alike that take the same places."""
    places = [
        ((name, dim), resolve(label))
        for name, dims in entries.items()
        for dim, labels in enumerate(dims)
        for label in labels
    ]
    units = dict.fromkeys(unit for _, label in places for unit in label)
    fixed = {unit: number for number, unit in enumerate((u for u in units if u.fixed), 1)}
    colours = {unit: fixed.get(unit, 0) for unit in units}
    count = 0
    while count < len(set(colours.values())):
        count = len(set(colours.values()))
        seen: dict[Unit, Counter[object]] = {unit: Counter() for unit in colours}
        for place, label in places:
            for at, unit in enumerate(label):
                others = tuple(colours[other] for i, other in enumerate(label) if i != at)
                seen[unit][(place, at, others)] += 1
        refined = {unit: (colours[unit], frozenset(seen[unit].items())) for unit in colours}
        numbers = {colour: number for number, colour in enumerate(dict.fromkeys(refined.values()))}
        colours = {unit: numbers[refined[unit]] for unit in colours}
    return colours


def spec_slots(spec: WeightSpec) -> Slots:
    """Return which groups every index of every entry of a spec belongs to."""
    sizes = spec.sizes

    def expand(axis: Axis) -> list[tuple[str, ...]]:
        match axis:
            case Fixed(size):
                return [()] * size
            case Perm(group):
                return [(group,)] * sizes[group]
            case Concat(axes):
                return [label for part in axes for label in expand(part)]
            case Product(axes):
                labels: list[tuple[str, ...]] = [()]
                for part in axes:
                    labels = [(*a, *b) for a in labels for b in expand(part)]
                return labels

    return {name: tuple(tuple(expand(axis)) for axis in axes) for name, axes in spec.entries}


def assert_planted(spec: WeightSpec, known: Planted) -> None:
    """Raise unless a spec's groups are, up to their names, those that a network was built to have.

    Args:
        spec: derived.
        known: of the network.
    """
    __tracebackhide__ = True
    found = spec_slots(spec)
    names: dict[str, str] = {}
    back: dict[str, str] = {}
    for entry, dims in known.slots.items():
        for dim, (expected, actual) in enumerate(zip(dims, found[entry], strict=True)):
            for index, (mine, theirs) in enumerate(zip(expected, actual, strict=True)):
                agree = len(mine) == len(theirs) and all(
                    names.setdefault(a, b) == b and back.setdefault(b, a) == a
                    for a, b in zip(mine, theirs, strict=True)
                )
                if not agree:
                    raise AssertionError(
                        f"{entry}, dimension {dim}, index {index}: built to carry {_say(mine, names)}, the "
                        f"spec says {theirs or 'fixed'}\n{spec}\nlost: {spec.lost}"
                    )
    _assert_nested(spec, known, names)


def _assert_nested(spec: WeightSpec, known: Planted, names: Mapping[str, str]) -> None:
    """Compare what groups are nested under.

    Two that nothing tells to be parent and child (rows and columns of a table that is only turned) are one
    group of all pairs, of which the spec gives one nesting or the other.
    """
    __tracebackhide__ = True
    above: dict[str, set[str]] = {}
    parents = {group.name: group.parent for group in spec.groups}
    for child in parents:
        above[child] = set()
        parent = parents[child]
        while parent is not None:
            above[child].add(parent)
            parent = parents[parent]
    for mine, name in names.items():
        wanted = {names[parent] for parent in known.parents[mine]}
        either = {names[parent] for parent in known.parents[mine] if mine in known.parents[parent]}
        chosen = {other for other in either if other in above[name] or name in above[other]}
        if above[name] - either != wanted - either or chosen != either:
            raise AssertionError(
                f"{name} was built to carry units of their own for each of {sorted(wanted) or 'nothing'}, "
                f"the spec nests it under {sorted(above[name]) or 'nothing'}\n{spec}"
            )


def _say(label: Sequence[str], names: Mapping[str, str]) -> object:
    return tuple(names.get(name, "a group of its own") for name in label) or "fixed"
