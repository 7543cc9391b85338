"""From the skeleton of a network to the structure of its parameter graph: one method per family.

Every operation with parameters, and every one that joins several values, has units of its own (a *site*); the
steps between two sites (activations, pools, reshapes, …) are words on the edges that read through them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from itertools import product as cartesian
from math import prod

from metanet.axis import Atom, Fixed, Perm, axis_size
from metanet.features import feature_spec
from metanet.graphs.builder import GraphBuilder
from metanet.graphs.schema import EdgeKind, GraphSchema
from metanet.graphs.terms import (
    Flow,
    Pending,
    Term,
    groups_of,
    is_constant,
    is_pending,
    part_words,
    path_words,
)
from metanet.graphs.words import Word, describe_operation
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
PICKS = frozenset({"select", "slice"})
DIAGONAL: dict[str, EdgeKind] = {"weight": "gain", "running_var": "running_var"}
ADDED: dict[str, EdgeKind] = {"bias": "bias", "running_mean": "running_mean"}
_RECURRENT_ROLE = re.compile(r"(weight|bias)_(ih|hh|hr)_l(\d+)(_reverse)?")


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
    return _Walk(spec.select(feature_spec(spec))).build()


class _Walk(GraphBuilder):
    """One walk over the operations of a skeleton, in order."""

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
        if op.kind.endswith("_cell") and "w_hh" in dict(self.parameters(op)):
            return self.cell(op, flows)
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

    def matrix(self, op: Operation, flows: list[Flow]) -> Flow:
        parameters = dict(self.parameters(op))
        rows_columns = MATRICES[op.kind]
        axis = self.spec.axes[parameters["weight"]][rows_columns[0]]
        if op.axes and op.kind.startswith("conv"):
            axis = op.axes[1] if len(op.axes) > 1 else op.axes[0]
        words = describe_operation(op)
        targets = [self.node("unit", atoms, (*words, *path_words(path))) for path, atoms in self.leaves(axis)]
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
        known = [flow for flow in flows if not is_pending(flow)]
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
            kind: EdgeKind = "gain" if multiplies else "bias" if role == "bias" else "parameter"
            readers = [term for flow in flows for term in flow]
            self.put_vector(op, role, entry, targets, kind, sources, readers=readers)
        return tuple(map(Term, targets))

    def join_flow(self, op: Operation, flow: Flow, targets: Sequence[int], slot: int) -> None:
        words = (*describe_operation(op), Word(0, "slot", slot))
        kind: EdgeKind = "residual" if op.kind in ("add", "sub", "mul", "div", "cat") else "structure"
        flow = tuple(self.resolve(t, ()) if is_constant(t) else t for t in flow)
        if len(flow) == len(targets):
            for term, target in zip(flow, targets, strict=True):
                self.connect(term, target, kind, words)
            return
        for term in flow:
            for target in targets:
                self.connect(term, target, kind, words)

    def template(self, op: Operation, flows: list[Flow]) -> list[tuple[Atom, ...]]:
        """Return the axes of the units an operation has of its own, one set per part of its result."""
        known = [flow for flow in flows if not is_pending(flow)]
        written = self.written(op)
        shapes = [[self.atoms(term) for term in flow] for flow in known]
        if any(map(groups_of, written)):
            wanted = [groups_of(atoms) for atoms in written]
            fits = [s for s in shapes if [groups_of(atoms) for atoms in s] in (wanted, wanted * len(s))]
            return max(fits, key=lambda s: (len(s), sum(map(len, s)))) if fits else written
        vanished = written and any(groups_of(atoms) for shape in shapes for atoms in shape)
        if shapes and not vanished:
            return max(shapes, key=lambda s: (len(s), sum(map(len, s))))
        entries = [self.blocks(entry) for _, entry in self.parameters(op)]
        if vanished:
            fixed = [a for e in entries for _, _, leaf in e[0][1] for a in leaf if isinstance(a, Fixed)]
            return [(max(fixed, key=lambda atom: atom.size),) if fixed else ()]
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

    def cell(self, op: Operation, flows: list[Flow]) -> Flow:
        """Give one step of a recurrent network its units."""
        parameters = dict(self.parameters(op))
        columns = self.leaves(self.spec.axes[parameters["w_hh"]][1])
        sites = [self.node("unit", columns[0][1], describe_operation(op))]
        for role, entry in self.parameters(op):
            if role == "w_ih":
                self.put_matrix(op, role, entry, flows[0], sites, (0, 1), "weight")
            elif role == "w_hh":
                self.put_matrix(op, role, entry, flows[1], sites, (0, 1), "recurrent")
            else:
                self.put_vector(op, role, entry, sites, "bias")
        for slot, flow in enumerate(flows[2:], 2):
            self.join_flow(op, flow, sites, slot)
        return tuple(map(Term, sites))

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
            here = bool(groups_of([a for _, atoms in self.leaves(op.axes[dim]) for a in atoms]))
            return here or not any(
                groups_of([a for _, atoms in self.leaves(axis) for a in atoms]) for axis in op.axes
            )
        return True

    def pick(self, op: Operation, flow: Flow) -> Flow:
        """Return the parts of a value that an operation with one input keeps or adds."""
        written = self.written(op)
        if op.kind == "pad" and len(written) > len(flow):
            left = dict(enumerate(flow))
            result = []
            for atoms in written:
                found = next(
                    (n for n, t in left.items() if groups_of(self.atoms(t)) == groups_of(atoms)), None
                )
                padding = Term(Pending(self.position, "constant"))
                result.append(padding if found is None else left.pop(found))
            return tuple(result)
        dim = op.attribute("dim")
        read = self.spec.operations[op.inputs[0]].axes
        if len(flow) == 1 or op.kind not in PICKS or not isinstance(dim, int) or not -1 < dim < len(read):
            return flow
        if op.kind == "select":
            index = op.attribute("index")
            parts = read[dim] == Fixed(len(flow)) and len(written) == 1
            return (flow[index],) if parts and isinstance(index, int) else flow
        start, stop = op.attribute("start"), op.attribute("stop")
        sizes = [prod(self.shape(self.atoms(term))) for term in flow]
        if not (isinstance(start, int) and isinstance(stop, int)):
            return flow
        if axis_size(read[dim], self.spec.sizes) != sum(sizes):
            return flow
        ends = list(accumulate(sizes))
        inside = [t for t, n, end in zip(flow, sizes, ends, strict=True) if start < end and end - n < stop]
        return tuple(inside) if inside else flow

    def written(self, op: Operation) -> list[tuple[Atom, ...]]:
        """Return the units on an operation's result, one set per part of a concatenated axis.

        Fixed indices count along the concatenated axis only: elsewhere they are positions.
        """
        parts = [[atoms for _, atoms in self.leaves(axis)] for axis in op.axes]
        if not parts:
            return []
        return [
            tuple(
                atom
                for leaf, options in zip(choice, parts, strict=True)
                for atom in leaf
                if isinstance(atom, Perm) or len(options) > 1
            )
            for choice in cartesian(*parts)
        ]

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
                words = (Word(0, "role", "unused"), *part_words(parts))
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
