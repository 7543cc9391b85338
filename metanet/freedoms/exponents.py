"""Freedoms of a network: the solutions of the equations that its operations set for every group.

Four questions are asked of the units of a group (`metanet.freedoms.equations.Mode`), each a linear system
over the skeleton: which powers of one matrix, of any factor a ≠ 0, of a factor a > 0, and which signs (modulo
two) may multiply the places where the group stands so that no output changes. What a stronger freedom
contains is not listed again: sign ⊂ scale ⊂ linear, and what acts on the units of a parent is contained in
what acts independently on the units nested under it. Among the bases of what is left one of small support is
chosen, which gives one action per freedom that a person would name: rows and columns of a gated MLP's values,
gain and bias of a norm against its readers, a convolution and its batch norm's mean against the gain.

A freedom that acts on every place of its group by its role stays with the group (`metanet.units.Freedom`),
any other becomes an `metanet.action.Action`. For units of a nested group each copy has values of its own.

References:
    Hecht-Nielsen 1990, On the algebraic structure of feedforward network weight spaces (tanh: signs).
    Neyshabur, Salakhutdinov & Srebro 2015, Path-SGD, https://arxiv.org/abs/1506.02617 (ReLU: scales).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from metanet.action import Action, ActionKind, Term
from metanet.axis import Axis, Perm, Role, atoms, map_perms
from metanet.freedoms.chain import beside, chain_of, unit_leaves
from metanet.freedoms.equations import Mode
from metanet.freedoms.linear_forms import LinearSystem, independent, sparse
from metanet.freedoms.phases import phase_of
from metanet.freedoms.propagation import Network, Place, Propagation
from metanet.freedoms.roles import roles_of
from metanet.leaf import apart, leaves_of
from metanet.spec import WeightSpec
from metanet.units import Freedom, FreedomKind, Group

Vector = Mapping[Place, int]
"""The power with which a factor acts at every place; places that are left out stay as they are."""

KINDS: tuple[tuple[Mode, ActionKind], ...] = (
    ("linear", "linear"),
    ("scale", "scale"),
    ("positive", "positive_scale"),
    ("sign", "sign"),
)

LARGEST: Mapping[ActionKind, ActionKind] = {
    "linear": "linear",
    "rotation": "linear",
    "orthogonal": "sign",
    "scale": "scale",
    "positive_scale": "positive_scale",
    "sign": "sign",
}
"""The largest of the kinds above that is contained in an action of another kind."""


@dataclass(slots=True)
class Found:
    """The freedoms of one group.

    Args:
        vectors: by kind, what becomes an action.
        freedoms: what stays with the group.
        plain: the vectors of these, by the kind of action that they would be.
    """

    vectors: dict[ActionKind, list[Vector]] = field(default_factory=lambda: {kind: [] for _, kind in KINDS})
    freedoms: list[Freedom] = field(default_factory=list)
    plain: dict[ActionKind, list[Vector]] = field(default_factory=lambda: {kind: [] for _, kind in KINDS})

    def of(self, *kinds: ActionKind) -> list[Vector]:
        """Return all vectors of some kinds."""
        return [v for kind in kinds for v in (*self.vectors[kind], *self.plain[kind])]


def with_freedoms(spec: WeightSpec, other: Iterable[str] = ()) -> WeightSpec:
    """Return the spec with the freedoms that its operations allow, and the roles these need.

    Args:
        spec: groups and entries with their skeleton, no freedoms yet.
        other: entries that are no real numbers (integers, truth values); they take no factor and no shift.
    """
    network = Network(spec)
    rigid = {network.entry(name) for name in other}
    found: dict[str, Found] = {}
    roles: dict[str, Mapping[Place, Role]] = {}
    for group in _innermost_first(spec.groups):
        mine = roles_of(network, group.name)
        found[group.name] = _freedoms(network, group, mine, rigid, found)
        if found[group.name].freedoms:
            roles[group.name] = mine
    return replace(
        spec,
        groups=tuple(replace(group, freedoms=tuple(found[group.name].freedoms)) for group in spec.groups),
        entries=_marked(network, roles),
        actions=(*spec.actions, *_actions(network, found)),
    )


def _innermost_first(groups: Sequence[Group]) -> list[Group]:
    depth: dict[str, int] = {}
    by_name = {group.name: group for group in groups}

    def depth_of(name: str) -> int:
        if name not in depth:
            parent = by_name[name].parent
            depth[name] = 0 if parent is None else depth_of(parent) + 1
        return depth[name]

    return sorted(groups, key=lambda group: -depth_of(group.name))


def solve(network: Network, group: str, mode: Mode, rigid: Iterable[str] = ()) -> list[dict[Place, int]]:
    """Return a basis of the exponents that keep every output.

    Args:
        network: the operations.
        group: the group that is asked about.
        mode: what is asked.
        rigid: entries that must stay as they are.
    """
    system = LinearSystem(binary=mode == "sign")
    places = network.places.get(group, ())
    forms = {place: system.unknown() for place in places}
    still = set(rigid)
    for entry, leaf in places:
        if entry in still or network.mixed(entry) or entry not in network.uses:
            system.zero(forms[entry, leaf])
    propagation = Propagation(network, group, mode, system, forms)
    propagation.run()
    return system.solutions(forms)


def _freedoms(
    network: Network,
    group: Group,
    roles: Mapping[Place, Role],
    rigid: set[str],
    inner: Mapping[str, Found],
) -> Found:
    found = Found()
    contained = _contained(network, group, inner)
    positive = solve(network, group.name, "positive", rigid)
    scale = solve(network, group.name, "scale", rigid) if positive else []
    linear = solve(network, group.name, "linear", rigid) if scale and not contained["linear"] else []
    signs = solve(network, group.name, "sign", rigid)
    spaces: dict[ActionKind, list[dict[Place, int]]] = {
        "linear": [vector for vector in linear if set(vector.values()) <= {1, -1}],
        "scale": scale,
        "positive_scale": positive,
        "sign": signs,
    }
    stiff = any(role == "bias" and entry in rigid for (entry, _), role in roles.items())
    phase = None if stiff else phase_of(network, group.name, roles)
    shifted = {place for place, role in roles.items() if role == "bias"} if phase is not None else set()
    gains = {p for p, role in roles.items() if role == "out" and len(network.spec.axes[p[0]]) == 1}
    for place, (_, kind) in enumerate(KINDS):
        larger = [other for _, other in KINDS[:place] if kind != "sign" or other != "positive_scale"]
        known = [v for other in (*larger, kind) for v in contained[other]]
        known += found.of(*larger)
        names: tuple[FreedomKind, ...] = ()
        if kind == "sign":
            names = ("sign", "even") if phase is not None or not scale else ("sign",)
        elif kind != "linear" and not found.vectors["linear"]:
            names = (kind,)  # type: ignore[assignment]
        _choose(found, kind, names, spaces[kind], known, roles, gains)
        mixed = {place for vector in found.vectors["linear"] for place in vector}
        if kind != "linear":
            found.vectors[kind] = [v for v in found.vectors[kind] if not v.keys() & (mixed | shifted)]
    if phase is not None:
        found.freedoms.append(Freedom("phase", phase))
    return found


def _choose(
    found: Found,
    kind: ActionKind,
    names: Sequence[FreedomKind],
    space: Sequence[Vector],
    known: Sequence[Vector],
    roles: Mapping[Place, Role],
    gains: set[Place],
) -> None:
    """Split a space of solutions into what is known, what the roles say, and a sparse basis of the rest.

    Signs leave alone what scales multiply in passing, for instance the gains of norms.
    """
    binary = kind == "sign"
    if not space:
        return
    left = list(space)
    for name in names:
        vector = _plain(name, roles)
        fresh = independent([*known, *found.plain[kind]], [vector], binary=binary)
        if vector and fresh and _contains(space, vector, binary):
            found.freedoms.append(Freedom(name))
            found.plain[kind].append(vector)
    base = [*known, *found.plain[kind]]
    avoided = gains & {place for vector in found.of("scale") for place in vector} if binary else set()
    chosen = sparse([left[i] for i in independent(base, left, binary=binary)], base, avoided, binary=binary)
    found.vectors[kind] = [vector if binary else _upright(vector, roles, gains) for vector in chosen]


def _upright(vector: Vector, roles: Mapping[Place, Role], gains: set[Place]) -> Vector:
    """Return a vector or its negative, so that gains and rows rather than readers have positive powers."""
    written = sum(power for place, power in vector.items() if place in gains)
    written = written or sum(power for place, power in vector.items() if roles[place] != "in")
    return {place: -power for place, power in vector.items()} if written < 0 else vector


def _plain(kind: FreedomKind, roles: Mapping[Place, Role]) -> Vector:
    """Return the powers with which a freedom of the group acts by the roles."""
    reader = {"even": 0, "sign": 1}.get(kind, -1)
    return {place: power for place, role in roles.items() if (power := reader if role == "in" else 1)}


def _contains(space: Sequence[Vector], vector: Vector, binary: bool) -> bool:
    return not independent(space, [vector], binary=binary)


def _contained(network: Network, group: Group, inner: Mapping[str, Found]) -> dict[ActionKind, list[Vector]]:
    """Return what is known already: the actions of the spec, and the freedoms of groups nested under it.

    Their matrices and factors may be the same for all units of each unit of the group.
    """
    result: dict[ActionKind, list[Vector]] = {kind: [] for _, kind in KINDS}
    for action in network.spec.actions:
        kind = LARGEST.get(action.kind)
        for place, axis in enumerate(action.axes):
            if kind is not None and isinstance(axis, Perm) and axis.group == group.name:
                terms = dict.fromkeys(
                    (network.entry(term.entry), term.leaves, term.power) for term in action.terms
                )
                powers = (((entry, leaves[place]), power) for entry, leaves, power in terms)
                result[kind].append(_gathered(powers, kind))
    for name, found in inner.items():
        chain = chain_of(network.spec.group, name)
        if group.name not in chain[:-1]:
            continue
        for _, known in KINDS:
            for vector in found.of(known):
                lift: Vector | None = vector
                for parent in reversed(chain[chain.index(group.name) : -1]):
                    lift = None if lift is None else _lifted(network, lift, parent, known)
                if lift is not None:
                    result[known].append(lift)
    return result


def _lifted(network: Network, vector: Vector, parent: str, kind: ActionKind) -> Vector | None:
    """Return a vector at the places of a parent that go with those of a group nested under it.

    None if there is none: a factor of one part of what a unit of the parent holds is no factor of the unit.
    """
    powers: list[tuple[Place, int]] = []
    for (entry, leaf), power in vector.items():
        found = beside(network.spec.axes[entry], leaf, parent)
        leaves = leaves_of(network.spec.axes[entry])
        if found is None or any(
            apart([leaves[leaf]], [other]) and not apart([leaves[found]], [other]) for other in leaves
        ):
            return None
        powers.append(((entry, found), power))
    return _gathered(powers, kind)


def _gathered(powers: Iterable[tuple[Place, int]], kind: ActionKind) -> Vector:
    """Return the total power at every place: units may stand twice beside one unit of their parent."""
    total: dict[Place, int] = {}
    for place, power in powers:
        total[place] = total.get(place, 0) + power
    return {place: power % 2 if kind == "sign" else power for place, power in total.items()}


def _actions(network: Network, found: Mapping[str, Found]) -> list[Action]:
    """Return the actions in the order of the groups, the largest kinds first."""
    spec = network.spec
    order = network.order
    actions = []
    for group in spec.groups:
        chain = chain_of(spec.group, group.name)
        for _, kind in KINDS:
            for vector in sorted(found[group.name].vectors[kind], key=lambda v: min(order[e] for e, _ in v)):
                terms = _terms(network, vector, chain)
                if terms is not None:
                    actions.append(Action(kind, tuple(map(Perm, chain)), terms))
    return actions


def _terms(network: Network, vector: Vector, chain: tuple[str, ...]) -> tuple[Term, ...] | None:
    """Return the terms of an action, or None if a parent cannot be told apart beside the units."""
    terms = []
    for name in network.sorted({entry for entry, _ in vector}):
        entry, axes = network.entry(name), network.spec.axes[name]
        for leaf in range(len(leaves_of(axes))):
            if power := vector.get((entry, leaf)):
                leaves = unit_leaves(axes, leaf, chain)
                if leaves is None:
                    return None
                terms.append(Term(name, leaves, power, network.eps(entry)))
    return tuple(terms)


def _marked(
    network: Network, roles: Mapping[str, Mapping[Place, Role]]
) -> tuple[tuple[str, tuple[Axis, ...]], ...]:
    """Return the entries with the roles of groups that have freedoms by role."""
    entries = []
    for name, axes in network.spec.entries:
        first = network.entry(name)
        marked: list[Axis] = []
        start = 0
        for axis in axes:
            found = list(atoms(axis))
            marks: dict[Perm, Axis] = {}
            for number, atom in enumerate(found, start):
                if isinstance(atom, Perm) and atom.group in roles:
                    marks[atom] = Perm(atom.group, roles[atom.group][first, number])
            start += len(found)
            marked.append(map_perms(axis, marks))
        entries.append((name, tuple(marked)))
    return tuple(entries)
