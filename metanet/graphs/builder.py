"""Blocks of nodes and edges: sites, connections between them, and parameters as edges.

`GraphBuilder` knows how units are connected; `metanet.graphs.operations` knows which operation asks for what.

- A parameter with a row and a column axis is edges from the units it reads to the units it writes.
- A vector is edges from a node of its own (a bias node), a gain is one edge per unit.
- Two sites without a parameter between them are connected where they agree on all common axes (a residual:
  the identity); where each has an axis the other lacks, through nodes for the common axes (heads), or one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product as cartesian

from metanet.axis import Atom, Axis, Fixed, Perm
from metanet.blocks import entry_blocks
from metanet.graphs.schema import EdgeBlock, EdgeKind, NodeBlock, NodeKind
from metanet.graphs.terms import (
    Flow,
    Part,
    Pending,
    Term,
    common,
    counts_groups,
    find,
    groups_of,
    kind_word,
    part_words,
    plain,
)
from metanet.graphs.words import Word, describe, describe_operation
from metanet.skeleton import Operation
from metanet.spec import WeightSpec


class GraphBuilder:
    """Blocks of nodes and edges of one spec, and where the walk over its operations stands.

    Args:
        spec: without counters.
    """

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

    def parameters(self, op: Operation) -> list[tuple[str, str]]:
        """Return role and entry of an operation's parameters; tied entries by their first name."""
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
        """Add a node block and return its number."""
        units = plain(atoms)
        self.nodes.append(
            NodeBlock(
                kind, units, self.shape(units), self.order.get(self.position, 0), (*words, kind_word(kind))
            )
        )
        return len(self.nodes) - 1

    def shape(self, atoms: Iterable[Atom]) -> tuple[int, ...]:
        """Return the sizes of atoms."""
        return tuple(a.size if isinstance(a, Fixed) else self.spec.sizes[a.group] for a in atoms)

    def resolve(self, term: Term, atoms: Sequence[Atom]) -> Term:
        """Give a pending input the units that its reader names."""
        if not isinstance(term.node, Pending):
            return term
        key = (term.node, plain(atoms))
        if key not in self.sites:
            now, self.position = self.position, term.node.position
            self.sites[key] = self.node(term.node.kind, atoms, self.source_words(term.node.position))
            self.position = now
        return replace(term, node=self.sites[key])

    def source_words(self, position: int) -> tuple[Word, ...]:
        """Return the words of an input or constant: an input is called by its place, not by its name."""
        operations = self.spec.operations
        op = operations[position]
        if op.kind != "input":
            return describe_operation(op)
        place = sum(other.kind == "input" for other in operations[:position])
        return (*describe("input"), Word(0, "slot", place))

    def atoms(self, term: Term) -> tuple[Atom, ...]:
        """Return the atoms of a term's units; none yet if they are pending."""
        return () if isinstance(term.node, Pending) else self.nodes[term.node].atoms

    def leaves(self, axis: Axis) -> list[tuple[tuple[int, ...], tuple[Atom, ...]]]:
        """Return the parts of an axis: their places in its Concats, and their atoms."""
        return [(block.path, plain(block.atoms)) for block in entry_blocks("", (axis,))]

    # Edges without a parameter

    def connect(self, term: Term, target: int, kind: EdgeKind, words: tuple[Word, ...]) -> None:
        """Connect two sites where they agree on their common axes, through nodes for those if need be."""
        if isinstance(term.node, Pending):
            units = self.nodes[target].atoms
            term = self.resolve(term, () if groups_of(units) else units)
        assert isinstance(term.node, int)
        source_atoms, target_atoms = self.atoms(term), self.nodes[target].atoms
        pairs = common(source_atoms, target_atoms)
        if len(pairs) not in (len(source_atoms), len(target_atoms)):
            shared = tuple(source_atoms[i] for i, _ in pairs)
            key = (self.position, target, shared)
            if key not in self.hubs:
                hub = self.node("hub", shared, describe_operation(self.spec.operations[self.position]))
                self.hubs[key] = hub
                self.connect(Term(hub), target, "structure", (Word(0, "role", "hub"),))
            self.connect(term, self.hubs[key], kind, words)
            return
        if len(source_atoms) >= len(target_atoms):
            atoms, source_dims = source_atoms, tuple(range(len(source_atoms)))
            target_dims = tuple(i for i, _ in sorted(pairs, key=lambda pair: pair[1]))
        else:
            atoms, target_dims = target_atoms, tuple(range(len(target_atoms)))
            source_dims = tuple(j for _, j in sorted(pairs))
        described = (*words, kind_word(kind), *term.words())
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
                (*words, kind_word(kind), *source.words()),
            )
        )  # fmt: skip

    def blocks(self, entry: str) -> list[tuple[str, list[Part]]]:
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
            words = (*describe_operation(op), Word(0, "role", role), *part_words(parts), *extra)
            target = targets[parts[row][0] % len(targets)]
            named = [atoms[i] for i in columns]
            if grouped and op.inputs and len(channels := self.spec.operations[op.inputs[0]].axes) > 1:
                named = [a for _, leaf in self.leaves(channels[1]) for a in leaf]
            read = sources[parts[column][0]]
            if grouped and len(flow) == len(self.leaves(self.spec.axes[entry][row])) > len(sources):
                read = flow[parts[row][0]]
            source = self.resolve(read, named)
            shared = [i for i in rows if grouped and counts_groups(atoms, i, op)]
            both = (columns, shared)
            source, source_dims = self.reach(source, atoms, both)
            target, target_dims = self.reach_target(
                target,
                atoms,
                (rows, [i for i in columns if grouped and counts_groups(atoms, i, op)]),
                extra=words,
            )
            self.edge(key, atoms, source, target, (source_dims, target_dims), kind, words)

    def reach(
        self, source: Term, atoms: tuple[Atom, ...], places: tuple[list[int], list[int]]
    ) -> tuple[Term, tuple[int, ...]]:
        """Return source units whose axes all index the parameter, regrouping them if need be."""
        found = find(self.atoms(source), atoms, places)
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
        found = find(self.nodes[target].atoms, atoms, places)
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
        readers: Sequence[Term] = (),
    ) -> list[int]:
        """Add a parameter that acts on units one by one.

        Its edges start at the same unit's ``sources`` if given and fitting; else at the one of ``readers``
        that has its further axes; else at a node of the parameter. Returns the numbers of the targets that
        got edges from their sources.
        """
        description = (*describe_operation(op), Word(0, "role", role), *extra)
        own: Term | None = None
        direct: list[int] = []
        for key, parts in self.blocks(entry):
            atoms = tuple(atom for _, _, leaf in parts for atom in leaf)
            number = self.choose(parts, atoms, targets)
            everywhere: tuple[list[int], list[int]] = (list(range(len(atoms))), [])
            words = (*description, *part_words(parts))
            source = sources[number] if sources is not None else None
            if source is not None:
                found = find(self.atoms(source), atoms, everywhere)
                aimed = find(self.nodes[targets[number]].atoms, atoms, everywhere)
                if None not in found and None not in aimed:
                    dims = tuple(i for i in found if i is not None), tuple(i for i in aimed if i is not None)
                    self.edge(key, atoms, source, targets[number], dims, kind, words)
                    direct.append(number)
                    continue
            target, target_dims = self.reach_target(targets[number], atoms, everywhere, extra=words)
            free = [i for i in range(len(atoms)) if i not in target_dims]
            source = self.reader(readers, [atoms[i] for i in free])
            if source is not None:
                source, source_dims = self.reach(source, atoms, (free, []))
            else:
                source = own = own or Term(self.node("bias", (), description))
                source_dims = ()
            self.edge(key, atoms, source, target, (source_dims, target_dims), kind, words)
        return direct

    def reader(self, readers: Sequence[Term], atoms: Sequence[Atom]) -> Term | None:
        """Return the value whose units index most of the groups that are left of a parameter."""
        shared = [len(common([a for a in self.atoms(t) if isinstance(a, Perm)], atoms)) for t in readers]
        return readers[shared.index(max(shared))] if any(shared) else None

    def choose(
        self,
        parts: list[Part],
        atoms: tuple[Atom, ...],
        targets: Sequence[int],
    ) -> int:
        """Return the number of the target that a block of a vector acts on."""
        if len(targets) == 1:
            return 0
        several = [n for n, path, _ in parts if path]
        if several and several[-1] < len(targets):
            return several[-1]
        fits = [len(common(self.nodes[target].atoms, atoms)) for target in targets]
        return fits.index(max(fits))

    def align(self, flow: Flow, axis: Axis) -> list[Term]:
        """Return, for every part of an axis, the term of the value it reads."""
        leaves = self.leaves(axis)
        if len(flow) == len(leaves) == 1:
            return [flow[0]]
        if len(flow) == len(leaves) and all(
            isinstance(term.node, Pending) or groups_of(self.atoms(term)) <= groups_of(atoms)
            for term, (_, atoms) in zip(flow, leaves, strict=True)
        ):
            return list(flow)
        left = list(flow)
        result: list[Term] = []
        for number, (_, atoms) in enumerate(leaves):
            last = number == len(leaves) - 1
            fits = [t for t in left if groups_of(self.atoms(t)) == groups_of(atoms)] or left or list(flow)
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
