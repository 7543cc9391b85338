"""From the skeleton of a network to the structure of its parameter graph.

Every operation with parameters, and every one that joins several values, has units of its own (a *site*); the
steps between two sites (activations, pools, reshapes, …) are words on the edges that read through them.

- A parameter with a row and a column axis is edges from the units it reads to the units it writes.
- A vector is edges from a node of its own (a bias node), a gain is one edge per unit.
- Two sites without a parameter between them are connected where they agree on all common axes (a residual:
  the identity); where each has an axis the other lacks, through nodes for the common axes (heads), or one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from itertools import product as cartesian
from math import prod

from metanet.axis import Atom, Axis, Fixed, Perm
from metanet.blocks import entry_blocks
from metanet.features import feature_spec
from metanet.graph_schema import EdgeBlock, EdgeKind, GraphSchema, NodeBlock, NodeKind
from metanet.graph_words import Word, describe_operation
from metanet.skeleton import Operation
from metanet.spec import WeightSpec

MATRICES: dict[str, tuple[int, int]] = {
    "linear": (0, 1),
    "conv1d": (0, 1),
    "conv2d": (0, 1),
    "conv3d": (0, 1),
    "conv_transpose1d": (1, 0),
    "conv_transpose2d": (1, 0),
    "conv_transpose3d": (1, 0),
    "embedding": (1, 0),
    "addmm": (1, 0),
    "matmul": (1, 0),
    "mm": (1, 0),
}
"""Operations with a weight that has a row and a column dimension: which they are."""
NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu", "rnn"})
PICKS = frozenset({"getitem", "split", "chunk", "unbind", "select", "slice", "narrow", "index"})
DIAGONAL: dict[str, EdgeKind] = {"weight": "gain", "running_var": "running_var"}
ADDED: dict[str, EdgeKind] = {"bias": "bias", "running_mean": "running_mean"}
_RECURRENT_ROLE = re.compile(r"(weight|bias)_(ih|hh|hr)_l(\d+)(_reverse)?")


@dataclass(frozen=True, slots=True)
class Pending:
    """An input or constant whose units are named by its first reader."""

    position: int
    kind: NodeKind


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a value: units, and the steps it has passed since."""

    node: int | Pending
    path: tuple[tuple[Word, ...], ...] = ()

    def step(self, words: tuple[Word, ...]) -> Term:
        """Return the term after a further step."""
        return replace(self, path=(*self.path, words))

    def words(self) -> tuple[Word, ...]:
        """Return the steps as words, the latest having order 1."""
        steps = enumerate(reversed(self.path), 1)
        return tuple(replace(word, order=order) for order, step in steps for word in step)


Flow = tuple[Term, ...]
"""A value: one term, or one per part of a concatenated feature axis."""


def build_schema(spec: WeightSpec) -> GraphSchema:
    """Return the structure of the parameter graph of a spec.

    Args:
        spec: with its operations.

    Raises:
        ValueError: the spec has no operations, so nothing says how its entries are connected.
    """
    if not spec.operations:
        raise ValueError(
            "this spec has no operations, so nothing says how its entries are connected; a spec that was "
            "parsed from its notation has lost them. Derive it (metanet.spec_of) or read it from JSON"
        )
    return _Builder(spec.select(feature_spec(spec))).build()


class _Builder:
    def __init__(self, spec: WeightSpec) -> None:
        self.spec = spec
        self.first = {name: tie[0] for tie in spec.ties for name in tie if tie[0] in spec.axes}
        self.nodes: list[NodeBlock] = []
        self.edges: list[EdgeBlock] = []
        self.flows: dict[int, Flow] = {}
        self.sites: dict[tuple[Pending, tuple[Atom, ...]], int] = {}
        self.hubs: dict[tuple[int, int, tuple[Atom, ...]], int] = {}
        self.position = 0
        self.order: dict[int, int] = {}

    def build(self) -> GraphSchema:
        operations = self.spec.operations
        needed = _ancestors(operations)
        with_nodes = [i for i in needed if not self.is_step(operations[i])]
        self.order = {position: order for order, position in enumerate(with_nodes)}
        for position in needed:
            self.position = position
            self.flows[position] = self.visit(operations[position])
        self.position = with_nodes[-1] if with_nodes else 0
        self.leave_unused()
        return GraphSchema(tuple(self.nodes), tuple(self.edges))

    def visit(self, op: Operation) -> Flow:
        flows = [self.flows.get(i, (Term(Pending(i, "constant")),)) for i in op.inputs]
        if not op.inputs and not self.parameters(op):
            return (Term(Pending(self.position, "input" if op.kind == "input" else "constant")),)
        if op.kind == "output":
            return self.output(op, flows)
        if self.is_step(op):
            words = describe_operation(op)
            return tuple(term.step(words) for term in self.pick(op, flows[0]))
        if op.kind in RECURRENT:
            return self.recurrent(op, flows)
        if op.kind in MATRICES and "weight" in dict(self.parameters(op)) and flows:
            return self.matrix(op, flows)
        if op.kind in NORMS and flows:
            return self.norm(op, flows)
        if op.kind == "cat" and not self.parameters(op) and self.joins_features(op, flows):
            words = describe_operation(op)
            return tuple(
                term.step((*words, Word(0, "slot", slot))) for slot, flow in enumerate(flows) for term in flow
            )
        return self.join(op, flows)

    def parameters(self, op: Operation) -> list[tuple[str, str]]:
        return [
            (role, self.first.get(entry, entry))
            for role, entry in op.parameters
            if self.first.get(entry, entry) in self.spec.axes
        ]

    def is_step(self, op: Operation) -> bool:
        """Whether an operation is a step between two sites: one input, no parameters."""
        return len(op.inputs) == 1 and not self.parameters(op) and op.kind != "output"

    # Nodes

    def node(self, kind: NodeKind, atoms: Iterable[Atom], words: tuple[Word, ...]) -> int:
        plain = tuple(Perm(atom.group) if isinstance(atom, Perm) else atom for atom in atoms)
        self.nodes.append(
            NodeBlock(kind, plain, self.shape(plain), self.order.get(self.position, 0), (*words, _kind(kind)))
        )
        return len(self.nodes) - 1

    def shape(self, atoms: Iterable[Atom]) -> tuple[int, ...]:
        return tuple(a.size if isinstance(a, Fixed) else self.spec.sizes[a.group] for a in atoms)

    def resolve(self, term: Term, atoms: Sequence[Atom]) -> Term:
        """Give a pending input the units that its reader names."""
        if not isinstance(term.node, Pending):
            return term
        key = (term.node, tuple(Perm(a.group) if isinstance(a, Perm) else a for a in atoms))
        if key not in self.sites:
            op = self.spec.operations[term.node.position]
            now, self.position = self.position, term.node.position
            self.sites[key] = self.node(term.node.kind, atoms, describe_operation(op))
            self.position = now
        return replace(term, node=self.sites[key])

    def atoms(self, term: Term) -> tuple[Atom, ...]:
        return () if isinstance(term.node, Pending) else self.nodes[term.node].atoms

    def leaves(self, axis: Axis) -> list[tuple[tuple[int, ...], tuple[Atom, ...]]]:
        """Return the parts of an axis: their places in its Concats, and their atoms."""
        return [(block.path, _plain(block.atoms)) for block in entry_blocks("", (axis,))]

    # Edges without a parameter

    def connect(self, term: Term, target: int, kind: EdgeKind, words: tuple[Word, ...]) -> None:
        """Connect two sites where they agree on their common axes, through nodes for those if need be."""
        if isinstance(term.node, Pending):
            term = self.resolve(term, self.nodes[target].atoms)
        assert isinstance(term.node, int)
        source_atoms, target_atoms = self.atoms(term), self.nodes[target].atoms
        common = _common(source_atoms, target_atoms)
        if len(common) not in (len(source_atoms), len(target_atoms)):
            shared = tuple(source_atoms[i] for i, _ in common)
            key = (self.position, target, shared)
            if key not in self.hubs:
                hub = self.node("hub", shared, describe_operation(self.spec.operations[self.position]))
                self.hubs[key] = hub
                self.connect(Term(hub), target, "structure", (Word(0, "role", "hub"),))
            self.connect(term, self.hubs[key], kind, words)
            return
        if len(source_atoms) >= len(target_atoms):
            atoms, source_dims = source_atoms, tuple(range(len(source_atoms)))
            target_dims = tuple(i for i, _ in sorted(common, key=lambda pair: pair[1]))
        else:
            atoms, target_dims = target_atoms, tuple(range(len(target_atoms)))
            source_dims = tuple(j for _, j in sorted(common))
        described = (*words, _kind(kind), *term.words())
        self.edges.append(
            EdgeBlock(
                kind, atoms, self.shape(atoms), term.node, target, source_dims, target_dims, None, described
            )
        )

    def bring(self, term: Term, atoms: tuple[Atom, ...]) -> Term:
        """Return the term on nodes for a part of its axes (one node for none)."""
        site = self.node("hub", atoms, describe_operation(self.spec.operations[self.position]))
        self.connect(term, site, "structure", (Word(0, "role", "regroup"),))
        return Term(site)

    # Edges of a parameter

    def edge(
        self,
        key: str,
        atoms: tuple[Atom, ...],
        source: Term,
        target: int,
        dims: tuple[tuple[int, ...], tuple[int, ...]],
        kind: EdgeKind,
        words: tuple[Word, ...],
    ) -> None:
        """Add the edges of one block of a parameter.

        Args:
            key: the block's name.
            atoms: the block's, in the order of the entry.
            source: the units it reads.
            target: the units it writes.
            dims: for the source's and the target's axes, the dimensions of the block that index them.
            kind: of the edges.
            words: operation and role.
        """
        assert isinstance(source.node, int)
        order = sorted(range(len(atoms)), key=lambda i: isinstance(atoms[i], Fixed))
        place = {dim: position for position, dim in enumerate(order)}
        ordered = tuple(atoms[i] for i in order)
        source_dims, target_dims = (tuple(place[d] for d in side) for side in dims)
        self.edges.append(
            EdgeBlock(
                kind, ordered, self.shape(ordered), source.node, target, source_dims, target_dims, key,
                (*words, _kind(kind), *source.words()),
            )
        )  # fmt: skip

    def blocks(self, entry: str) -> list[tuple[str, list[tuple[int, tuple[int, ...], tuple[Atom, ...]]]]]:
        """Return the blocks of an entry: name, and per dimension (number of part, its path, its atoms)."""
        parts = [list(enumerate(self.leaves(axis))) for axis in self.spec.axes[entry]]
        result = []
        for choice in cartesian(*parts):
            path = [i for _, (inner, _) in choice for i in inner]
            result.append(
                (entry + "".join(f"[{i}]" for i in path), [(n, inner, a) for n, (inner, a) in choice])
            )
        return result

    def put_matrix(
        self,
        op: Operation,
        role: str,
        entry: str,
        flow: Flow,
        targets: Sequence[int],
        rows_columns: tuple[int, int],
        kind: EdgeKind,
        extra: tuple[Word, ...] = (),
    ) -> None:
        """Add a parameter whose columns read a value and whose rows write units."""
        row, column = rows_columns
        sources = self.align(flow, self.spec.axes[entry][column])
        grouped = op.attribute("groups", 1) not in (1, None)
        for key, parts in self.blocks(entry):
            atoms = tuple(atom for _, _, leaf in parts for atom in leaf)
            owner = [dim for dim, (_, _, leaf) in enumerate(parts) for _ in leaf]
            columns = [i for i, dim in enumerate(owner) if dim == column]
            rows = [i for i, dim in enumerate(owner) if dim == row]
            words = (*describe_operation(op), Word(0, "role", role), *_parts(parts), *extra)
            target = targets[parts[row][0] % len(targets)]
            source = self.resolve(sources[parts[column][0]], [atoms[i] for i in columns])
            both = (columns, rows if grouped else [])
            source, source_dims = self.reach(source, atoms, both)
            target, target_dims = self.reach_target(
                target, atoms, (rows, columns if grouped else []), extra=words
            )
            self.edge(key, atoms, source, target, (source_dims, target_dims), kind, words)

    def reach(
        self, source: Term, atoms: tuple[Atom, ...], places: tuple[list[int], list[int]]
    ) -> tuple[Term, tuple[int, ...]]:
        """Return source units whose axes all index the parameter, regrouping them if need be."""
        found = _find(self.atoms(source), atoms, places)
        if all(i is not None for i in found):
            return source, tuple(i for i in found if i is not None)
        kept = [(atom, i) for atom, i in zip(self.atoms(source), found, strict=True) if i is not None]
        return self.bring(source, tuple(atom for atom, _ in kept)), tuple(i for _, i in kept)

    def reach_target(
        self,
        target: int,
        atoms: tuple[Atom, ...],
        places: tuple[list[int], list[int]],
        extra: tuple[Word, ...],
    ) -> tuple[int, tuple[int, ...]]:
        """Return target units whose axes all index the parameter; they pass it on to the others."""
        found = _find(self.nodes[target].atoms, atoms, places)
        if all(i is not None for i in found):
            return target, tuple(i for i in found if i is not None)
        kept = [(a, i) for a, i in zip(self.nodes[target].atoms, found, strict=True) if i is not None]
        site = self.node("hub", tuple(atom for atom, _ in kept), extra)
        self.connect(Term(site), target, "structure", (Word(0, "role", "broadcast"),))
        return site, tuple(i for _, i in kept)

    def put_vector(
        self,
        op: Operation,
        role: str,
        entry: str,
        targets: Sequence[int],
        kind: EdgeKind,
        sources: Sequence[Term] | None = None,
        extra: tuple[Word, ...] = (),
    ) -> list[int]:
        """Add a parameter that acts on units one by one.

        Its edges start at the same unit's ``sources`` if given and fitting, else at a node of the parameter.
        Returns the numbers of the targets that got edges from their sources.
        """
        description = (*describe_operation(op), Word(0, "role", role), *extra)
        own: Term | None = None
        direct: list[int] = []
        for key, parts in self.blocks(entry):
            atoms = tuple(atom for _, _, leaf in parts for atom in leaf)
            number = self.choose(parts, atoms, targets)
            everywhere: tuple[list[int], list[int]] = (list(range(len(atoms))), [])
            words = (*description, *_parts(parts))
            source = sources[number] if sources is not None else None
            if source is not None:
                found = _find(self.atoms(source), atoms, everywhere)
                aimed = _find(self.nodes[targets[number]].atoms, atoms, everywhere)
                if None not in found and None not in aimed:
                    dims = tuple(i for i in found if i is not None), tuple(i for i in aimed if i is not None)
                    self.edge(key, atoms, source, targets[number], dims, kind, words)
                    direct.append(number)
                    continue
            own = own or Term(self.node("bias", (), description))
            target, target_dims = self.reach_target(targets[number], atoms, everywhere, extra=words)
            self.edge(key, atoms, own, target, ((), target_dims), kind, words)
        return direct

    def choose(
        self,
        parts: list[tuple[int, tuple[int, ...], tuple[Atom, ...]]],
        atoms: tuple[Atom, ...],
        targets: Sequence[int],
    ) -> int:
        """Return the number of the target that a block of a vector acts on."""
        if len(targets) == 1:
            return 0
        several = [n for n, path, _ in parts if path]
        if several and several[-1] < len(targets):
            return several[-1]
        fits = [len(_common(self.nodes[target].atoms, atoms)) for target in targets]
        return fits.index(max(fits))

    def align(self, flow: Flow, axis: Axis) -> list[Term]:
        """Return, for every part of an axis, the term of the value it reads."""
        leaves = self.leaves(axis)
        if len(flow) == len(leaves) == 1:
            return [flow[0]]
        if len(flow) == len(leaves) and all(
            isinstance(term.node, Pending) or _groups(self.atoms(term)) <= _groups(atoms)
            for term, (_, atoms) in zip(flow, leaves, strict=True)
        ):
            return list(flow)
        left = list(flow)
        result: list[Term] = []
        for number, (_, atoms) in enumerate(leaves):
            last = number == len(leaves) - 1
            fits = [t for t in left if _groups(self.atoms(t)) == _groups(atoms)] or left or list(flow)
            if len(fits) == 1 or (len(left) >= len(leaves) - number and not last):
                result.append(fits[0])
                if fits[0] in left:
                    left.remove(fits[0])
                continue
            site = self.node("hub", atoms, describe_operation(self.spec.operations[self.position]))
            for slot, term in enumerate(fits):
                self.connect(self.resolve(term, ()), site, "structure", (Word(0, "slot", slot),))
            result.append(Term(site))
        return result

    # Families of operations

    def matrix(self, op: Operation, flows: list[Flow]) -> Flow:
        parameters = dict(self.parameters(op))
        rows_columns = MATRICES[op.kind]
        axis = self.spec.axes[parameters["weight"]][rows_columns[0]]
        if op.axes and op.kind.startswith("conv"):
            axis = op.axes[1] if len(op.axes) > 1 else op.axes[0]
        words = describe_operation(op)
        targets = [self.node("unit", atoms, (*words, *_path(path))) for path, atoms in self.leaves(axis)]
        kind: EdgeKind = "embedding" if op.kind == "embedding" else "weight"
        self.put_matrix(op, "weight", parameters["weight"], flows[0], targets, rows_columns, kind)
        for role, entry in self.parameters(op):
            if role != "weight":
                self.put_vector(op, role, entry, targets, "bias" if role == "bias" else "parameter")
        for slot, flow in enumerate(flows[1:], 1):
            self.join_flow(op, flow, targets, slot)
        return tuple(map(Term, targets))

    def norm(self, op: Operation, flows: list[Flow]) -> Flow:
        words = describe_operation(op)
        parameters = self.parameters(op)
        template = self.template(op, flows)
        flow = flows[0]
        if len(flow) == len(template):
            flow = tuple(self.resolve(t, atoms) for t, atoms in zip(flow, template, strict=True))
        targets = [self.node("norm", atoms, words) for atoms in template]
        aligned = len(flow) == len(targets)
        reached: set[int] = set()
        for role, entry in parameters:
            if role in DIAGONAL and aligned:
                reached |= set(self.put_vector(op, role, entry, targets, DIAGONAL[role], flow))
            else:
                self.put_vector(op, role, entry, targets, ADDED.get(role, "parameter"))
        for number, target in enumerate(targets):
            if number not in reached:
                for term in [flow[number]] if aligned else flow:
                    self.connect(term, target, "structure", words)
        for slot, other in enumerate(flows[1:], 1):
            self.join_flow(op, other, targets, slot)
        return tuple(map(Term, targets))

    def join(self, op: Operation, flows: list[Flow]) -> Flow:
        """Give an operation that reads several values, or parameters, units of its own."""
        parameters = self.parameters(op)
        known = [flow for flow in flows if not _pending(flow)]
        words = describe_operation(op)
        if not known and not parameters:
            inputs = [
                f for f in flows if any(t.node.kind == "input" for t in f if isinstance(t.node, Pending))
            ]
            return tuple(term.step(words) for flow in (inputs or flows)[:1] for term in flow) or (
                Term(self.node("join", (), words)),
            )
        template = self.template(op, flows)
        targets = [self.node("join", atoms, words) for atoms in template]
        for slot, flow in enumerate(flows):
            self.join_flow(op, flow, targets, slot)
        multiplies = op.kind in ("mul", "div", "prelu")
        sources = known[0] if multiplies and known and len(known[0]) == len(targets) else None
        for role, entry in parameters:
            self.put_vector(op, role, entry, targets, "gain" if multiplies else "parameter", sources)
        return tuple(map(Term, targets))

    def join_flow(self, op: Operation, flow: Flow, targets: Sequence[int], slot: int) -> None:
        words = (*describe_operation(op), Word(0, "slot", slot))
        kind: EdgeKind = "residual" if op.kind in ("add", "sub", "mul", "div", "cat") else "structure"
        if _pending(flow) and any(t.node.kind == "constant" for t in flow if isinstance(t.node, Pending)):
            return
        if len(flow) == len(targets):
            for term, target in zip(flow, targets, strict=True):
                self.connect(term, target, kind, words)
            return
        for term in flow:
            for target in targets:
                self.connect(term, target, kind, words)

    def template(self, op: Operation, flows: list[Flow]) -> list[tuple[Atom, ...]]:
        """Return the axes of the units an operation has of its own, one set per part of its result."""
        known = [flow for flow in flows if not _pending(flow)]
        written = _result_atoms(op, self.leaves) if op.axes else None
        shapes = [[self.atoms(term) for term in flow] for flow in known]
        if written and any(map(_groups, written)):
            wanted = [_groups(atoms) for atoms in written]
            fits = [s for s in shapes if [_groups(atoms) for atoms in s] == wanted]
            return max(fits, key=lambda s: sum(map(len, s))) if fits else written
        if shapes:
            return max(shapes, key=lambda s: (len(s), sum(map(len, s))))
        entries = [self.blocks(entry) for _, entry in self.parameters(op)]
        if not entries:
            return [()]
        largest = max(entries, key=lambda e: sum(len(leaf) for _, _, leaf in e[0][1]))
        dim = max(range(len(largest[0][1])), key=lambda d: len({parts[d][0] for _, parts in largest}))
        found = {parts[dim][0]: [a for _, _, leaf in parts for a in leaf] for _, parts in largest}
        return [tuple(a for a in atoms if a != Fixed(1)) for atoms in found.values()]

    def recurrent(self, op: Operation, flows: list[Flow]) -> Flow:
        layers: dict[tuple[int, bool], list[tuple[str, str, str]]] = {}
        other: list[tuple[str, str]] = []
        for role, entry in self.parameters(op):
            match = _RECURRENT_ROLE.fullmatch(role)
            if match is None:
                other.append((role, entry))
            else:
                where = (int(match[3]), match[4] is not None)
                layers.setdefault(where, []).append((f"{match[1]}_{match[2]}", role, entry))
        flow, above = flows[0], dict[int, list[Term]]()
        for (layer, reverse), found in sorted(layers.items()):
            if layer and not reverse:
                flow = tuple(above[layer - 1])
            above.setdefault(layer, []).append(self.recurrent_layer(op, flow, found, layer, reverse))
        result = tuple(above[max(above)]) if above else flow
        targets = [term.node for term in result if isinstance(term.node, int)]
        for role, entry in other:
            self.put_vector(op, role, entry, targets, "parameter")
        for slot, state in enumerate(flows[1:], 1):
            self.join_flow(op, state, targets, slot)
        return result

    def recurrent_layer(
        self, op: Operation, flow: Flow, found: list[tuple[str, str, str]], layer: int, reverse: bool
    ) -> Term:
        place = (Word(0, "layer", layer), Word(0, "reverse", reverse))
        by_name = {name: (role, entry) for name, role, entry in found}
        words = (*describe_operation(op), *place)
        role, entry = by_name["weight_ih"]
        rows = self.leaves(self.spec.axes[entry][0])
        units: tuple[Atom, ...] = tuple(a for a in rows[0][1] if isinstance(a, Perm))
        if not units:
            units = self.leaves(self.spec.axes[by_name["weight_hh"][1]][1])[0][1]
        site = self.node("unit", units, words)
        out = site
        if "weight_hr" in by_name:
            projected = self.spec.axes[by_name["weight_hr"][1]][0]
            out = self.node("unit", self.leaves(projected)[0][1], words)
            self.put_matrix(op, *by_name["weight_hr"], (Term(site),), [out], (0, 1), "recurrent", place)
        self.put_matrix(op, role, entry, flow, [site], (0, 1), "weight", place)
        for name, (role, entry) in by_name.items():
            if name == "weight_hh":
                self.put_matrix(op, role, entry, (Term(out),), [site], (0, 1), "recurrent", place)
            elif name.startswith("bias"):
                self.put_vector(op, role, entry, [site], "bias", extra=place)
        return Term(out)

    def output(self, op: Operation, flows: list[Flow]) -> Flow:
        for slot, flow in enumerate(flows):
            for part, term in enumerate(flow):
                words = (Word(0, "slot", slot), Word(0, "part", part))
                site = self.node("output", self.atoms(term), (*describe_operation(op), *words))
                self.connect(term, site, "structure", words)
        return ()

    def joins_features(self, op: Operation, flows: list[Flow]) -> bool:
        """Whether a concatenation is along the units and not along positions."""
        dim = op.attribute("dim", 0)
        if op.axes and isinstance(dim, int) and -len(op.axes) <= dim < len(op.axes):
            here = bool(_groups([a for _, atoms in self.leaves(op.axes[dim]) for a in atoms]))
            return here or not any(
                _groups([a for _, atoms in self.leaves(axis) for a in atoms]) for axis in op.axes
            )
        return True

    def pick(self, op: Operation, flow: Flow) -> Flow:
        """Return the terms of a value that an operation on parts of it keeps."""
        if op.kind not in PICKS or len(flow) == 1:
            return flow
        sizes = [prod(self.shape(self.atoms(term))) for term in flow]
        window = _window(op, sizes)
        if window is not None:
            starts = list(accumulate(sizes, initial=0))
            inside = [
                t for t, s, n in zip(flow, starts, sizes, strict=False) if s < window[1] and s + n > window[0]
            ]
            return tuple(inside) if inside else flow
        if not op.axes:
            return flow
        wanted = [_groups(a) for a in _result_atoms(op, self.leaves)]
        fits = [term for term in flow if _groups(self.atoms(term)) in wanted]
        return tuple(fits) if fits else flow

    def leave_unused(self) -> None:
        """Give a place to entries that no operation reads, apart from the rest."""
        used = {edge.parameter for edge in self.edges}
        again = {name for tie in self.spec.ties for name in tie[1:]}
        for entry in self.spec:
            if entry in again:
                continue
            for key, parts in self.blocks(entry):
                if key in used:
                    continue
                words = (Word(0, "role", "unused"), *_parts(parts))
                atoms = tuple(atom for _, _, leaf in parts for atom in leaf)
                source = Term(self.node("unused", (), words))
                target = self.node("unused", atoms[:1], words)
                self.edge(key, atoms, source, target, ((), tuple(range(len(atoms[:1])))), "unused", words)


def _ancestors(operations: Sequence[Operation]) -> list[int]:
    """Return the operations that an output depends on, in order; all of them if none is an output."""
    needed = {i for i, op in enumerate(operations) if op.kind == "output"}
    if not needed:
        return list(range(len(operations)))
    for position in range(len(operations) - 1, -1, -1):
        if position in needed:
            needed.update(operations[position].inputs)
    return sorted(needed | {i for i, op in enumerate(operations) if op.kind == "input"})


def _plain(atoms: Iterable[Atom]) -> tuple[Atom, ...]:
    """Return the atoms without roles and without sizes of one."""
    return tuple(Perm(a.group) if isinstance(a, Perm) else a for a in atoms)


def _groups(atoms: Iterable[Atom]) -> frozenset[str]:
    return frozenset(atom.group for atom in atoms if isinstance(atom, Perm))


def _pending(flow: Flow) -> bool:
    return all(isinstance(term.node, Pending) for term in flow)


def _common(first: Sequence[Atom], second: Sequence[Atom]) -> list[tuple[int, int]]:
    """Return pairs of positions of equal atoms, each position once."""
    left = list(range(len(second)))
    pairs = []
    for i, atom in enumerate(first):
        j = next((j for j in left if second[j] == atom), None)
        if j is not None:
            left.remove(j)
            pairs.append((i, j))
    return pairs


def _find(
    units: Sequence[Atom], atoms: Sequence[Atom], places: tuple[list[int], list[int]]
) -> list[int | None]:
    """Return, for every axis of some units, the dimension of a parameter that indexes it.

    Args:
        units: axes of the units.
        atoms: of the parameter's block.
        places: its dimensions to look at first; then those to look at for groups only.
    """
    left = (list(places[0]), list(places[1]))
    result: list[int | None] = []
    for atom in units:
        found = next((i for i in left[0] if atoms[i] == atom), None)
        if found is None and isinstance(atom, Perm):
            found = next((i for i in left[1] if atoms[i] == atom), None)
        for side in left:
            if found in side:
                side.remove(found)
        result.append(found)
    return result


def _result_atoms(op: Operation, leaves: object) -> list[tuple[Atom, ...]]:
    """Return the groups on an operation's result, one set per part of its concatenated axis."""
    parts = [[_plain(block.atoms) for block in entry_blocks("", (axis,))] for axis in op.axes]
    return [
        tuple(atom for leaf in choice for atom in leaf if isinstance(atom, Perm))
        for choice in cartesian(*parts)
    ]


def _window(op: Operation, sizes: Sequence[int]) -> tuple[int, int] | None:
    """Return the half-open range of units that an operation keeps, if its attributes say so."""
    start, stop, index = (
        op.attribute("start"),
        op.attribute("stop", op.attribute("end")),
        op.attribute("index"),
    )
    if isinstance(start, int) and isinstance(stop, int):
        total = sum(sizes)
        return start % total if start < 0 else start, stop % total if stop < 0 else stop
    parts = op.attribute("sizes")
    if isinstance(index, int) and isinstance(parts, tuple) and all(isinstance(n, int) for n in parts):
        ends = list(accumulate((n for n in parts if isinstance(n, int)), initial=0))
        return ends[index], ends[index + 1]
    return None


def _kind(kind: str) -> Word:
    return Word(0, "site", kind)


def _path(path: tuple[int, ...]) -> tuple[Word, ...]:
    return tuple(Word(0, f"part.{level}" if level else "part", part) for level, part in enumerate(path))


def _parts(parts: list[tuple[int, tuple[int, ...], tuple[Atom, ...]]]) -> tuple[Word, ...]:
    return tuple(
        Word(0, f"part.{dim}.{level}", part)
        for dim, (_, path, _) in enumerate(parts)
        for level, part in enumerate(path)
    )
