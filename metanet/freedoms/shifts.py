r"""Shifts: what may be added to parameters because every reader takes it away again.

Say that a value *tolerates* a dimension d if any change of it that is constant along d leaves the outputs as
they are. Normalisation does so along what it normalises, softmax along what it sums over, keys along their
positions (a change adds the same to all scores of a query):

    LN(x + a·1) = LN(x)        softmax_s(q·(k_s + a)) = softmax_s(q·k_s)

Going back through the operations, a value tolerates d if all its readers do; adding, moving and scaling pass
the question on. The test is closed under changes of several values at once: where an operation multiplies
two of them, one has to stay as it is. Then

* a matrix, an embedding or a bare parameter whose result tolerates its last dimension may add a vector of
  equal numbers there: one number per column (row of an embedding), and one for the bias;
* a bias whose result tolerates another dimension, say the positions of keys, may be anything.

An operation that is not listed here tolerates nothing.

References:
    Ba, Kiros & Hinton 2016, Layer normalization, https://arxiv.org/abs/1607.06450 (invariance to shifts).
    Namazifar et al. 2023, Role of bias terms in dot-product attention, https://arxiv.org/abs/2302.08626
    (a key bias is redundant).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metanet.action import Action, Term
from metanet.axis import Atom, Axis, Concat, Fixed, Perm, Product, axis_size
from metanet.closure import compatible
from metanet.freedoms.dataflow import ROWS, Dataflow
from metanet.leaf import Leaf, leaves_of
from metanet.skeleton import Operation
from metanet.spec import WeightSpec

MOVES = frozenset(
    ("reshape", "transpose", "expand", "repeat", "slice", "cat", "select", "stack", "mean", "sum")
)
WRITERS = frozenset(("linear", "matmul", "addmm", "embedding", "parameter", "conv1d", "conv2d", "conv3d"))
NORMS = frozenset(("layer_norm", "batch_norm"))


def with_shifts(spec: WeightSpec, other: Iterable[str] = ()) -> WeightSpec:
    """Return the spec with the shifts that its operations allow, where they agree with its other actions.

    The ``other`` entries, which are no real numbers (integers, truth values), are left alone.
    """
    actions = list(spec.actions)
    rigid = set(other)
    for action in _Tolerance(spec).shifts():
        real = not any(term.entry in rigid for term in action.terms)
        if real and compatible(spec, actions, action):
            actions.append(action)
    return replace(spec, actions=tuple(actions)) if len(actions) > len(spec.actions) else spec


class _Tolerance:
    """Dimensions along which every value tolerates constant changes."""

    def __init__(self, spec: WeightSpec) -> None:
        self.spec = spec
        self.flow = Dataflow(spec)
        self.dims: list[frozenset[int]] = [frozenset()] * len(spec.operations)
        for position in reversed(range(len(spec.operations))):
            shape = self.flow.shapes[position]
            allowed = {d for d, size in enumerate(shape) if size > 1}
            readers = self.flow.readers[position]
            for reader, slot in readers if spec.operations[position].kind != "output" else ():
                allowed &= self.allowed(reader, slot, allowed)
            self.dims[position] = frozenset(allowed if readers else ())

    def allowed(self, reader: int, slot: int, dims: set[int]) -> set[int]:
        """Return the dimensions along which an operation tolerates changes of one of its inputs."""
        op = self.flow.operations[reader]
        shape = self.flow.shapes[op.inputs[slot]]
        last = len(shape) - 1
        if op.kind == "layer_norm":
            return {last} if op.attribute("normalized_shape") == (shape[last],) and slot == 0 else set()
        if op.kind in ("softmax", "log_softmax"):
            return {d for d in dims if d == op.attribute("dim")}
        if op.kind in ("var", "std"):
            return {d for d in dims if op.attribute("dims") == (d,)}
        if op.kind == "mean" and (centred := self.centred(reader)) is not None:
            return dims if centred in dims else set()
        if op.kind == "sub" and slot == 0 and self.subtracts_mean(op):
            along = self.mean_dim(op.inputs[1])
            return {d for d in dims if d == along} | self.passed(reader, slot, dims)
        if op.kind == "sdpa":
            return self.attention(reader, slot, dims)
        if self.flow.plain_matrix(op):
            return {d for d in dims - {last} if d in self.dims[reader]}
        if op.kind == "matmul" and len(op.inputs) == 2 and len(shape) > 1:
            # the right factor alone may change, along its columns
            return dims & {last} if slot == 1 and self.flow.last(reader) in self.dims[reader] else set()
        if op.kind == "mul" and len(op.inputs) == 2:
            other = op.inputs[1 - slot]
            if not self.flow.weightless[other]:
                return set()
            passed = self.passed(reader, slot, dims)
            return {d for d in passed if self.size_at(other, d - len(shape)) == 1}
        additive = op.kind in ("add", "sub") and (len(op.inputs) == 2 or not op.attribute("reverse"))
        if additive or op.kind in MOVES or self.flow.scales(op):
            return self.passed(reader, slot, dims)
        return set()

    def passed(self, reader: int, slot: int, dims: set[int]) -> set[int]:
        """Return the dimensions that go where the operation's result tolerates changes."""
        return {d for d in dims if self.dims[reader].intersection(self.goes(reader, slot, d))}

    def goes(self, reader: int, slot: int, dim: int) -> list[int]:
        """Return along which dimensions of a result a change is constant that was along one of a value."""
        if self.flow.operations[reader].kind == "reshape":
            return self.flow.split(reader, dim)
        moved = self.flow.forward(reader, slot, dim)
        return [] if moved is None else [moved]

    def size_at(self, position: int, dim: int) -> int:
        """Return the size of a dimension counted from the end; missing ones have size one."""
        shape = self.flow.shapes[position]
        return shape[dim] if -dim <= len(shape) else 1

    def attention(self, reader: int, slot: int, dims: set[int]) -> set[int]:
        shape = self.flow.shapes[self.flow.operations[reader].inputs[slot]]
        if slot == 1:
            return dims & {len(shape) - 2}
        if slot == 2:
            return dims & {len(shape) - 1} if self.flow.last(reader) in self.dims[reader] else set()
        return set()

    # x - mean(x), written by hand

    def mean_dim(self, position: int) -> int | None:
        """Return the one dimension of more than one index over which an operation takes the mean."""
        op = self.flow.operations[position]
        dims = op.attribute("dims")
        if op.kind != "mean" or not isinstance(dims, tuple) or len(dims) != 1:
            return None
        return dims[0] if isinstance(dims[0], int) and op.attribute("keepdim") else None

    def centred(self, position: int) -> int | None:
        """Return the dimension along which a mean is taken that is only ever subtracted from its input."""
        readers = self.flow.readers[position]
        subtracted = all(s == 1 and self.subtracts_mean(self.flow.operations[r]) for r, s in readers)
        return self.mean_dim(position) if readers and subtracted else None

    def subtracts_mean(self, op: Operation) -> bool:
        """Return whether an operation is ``x - mean(x)``."""
        if op.kind != "sub" or len(op.inputs) != 2 or op.attribute("alpha") is not None:
            return False
        source, mean = op.inputs
        same = self.flow.operations[mean].inputs[:1] == (source,)
        return same and self.mean_dim(mean) is not None and not op.attribute("reverse")

    # Entries

    def shifts(self) -> Iterator[Action]:
        """Yield the shifts of every entry."""
        for entry in self.spec:
            uses = self.flow.uses.get(entry)
            if not uses or self.flow.first.get(entry, entry) != entry:
                continue
            kept = [self.kept(position, role, entry) for position, role in uses]
            for dims in set.intersection(*map(set, kept)):
                leaves = [
                    i for i, leaf in enumerate(leaves_of(self.spec.axes[entry])) if leaf.dim not in dims
                ]
                yield self.action(entry, leaves)
            if not any(kept):
                yield from self.parts(entry, uses)

    def kept(self, position: int, role: str, entry: str) -> set[tuple[int, ...]]:
        """Return along which dimensions of an entry a shift in one of its uses may be constant.

        The empty tuple stands for any change at all; where it is allowed it is the only one.
        """
        op, tolerated = self.flow.operations[position], self.dims[position]
        if not tolerated or (op.kind not in WRITERS and not (op.kind in NORMS and role == "bias")):
            return set()
        rank = len(self.spec.axes[entry])
        if op.kind == "parameter":
            return {(d,) for d in tolerated}
        channel = 1 if op.kind.startswith(("conv", "batch")) else self.flow.last(position)
        if op.kind.startswith("conv") and (
            len(op.axes) != int(op.kind[4]) + 2 or op.attribute("groups") != 1
        ):
            return set()
        if role == "bias":
            if op.attribute("beta", 1) != 1 or rank != 1:
                return set()
            return {()} if tolerated - {channel} else {(0,)}
        if role != "weight" or channel not in tolerated or op.kind in NORMS:
            return set()
        if op.kind == "embedding":
            return {(1,)}
        return {(ROWS.get(op.kind, 0),)} if rank > 1 else set()

    def action(self, entry: str, leaves: Sequence[int]) -> Action:
        """Return the shift of an entry, under all its names, that varies along some of its leaves."""
        known = leaves_of(self.spec.axes[entry])
        leaves = [leaf for leaf in leaves if known[leaf].atom != Fixed(1)]
        atoms = tuple(_plain(known[leaf].atom) for leaf in leaves)
        terms = tuple(Term(name, tuple(leaves)) for name in self.flow.names(entry))
        return Action("shift", atoms, terms)

    # Parts of a bias

    def parts(self, entry: str, uses: Sequence[tuple[int, str]]) -> Iterator[Action]:
        """Yield shifts of the parts of a bias of fused projections."""
        axes = self.spec.axes[entry]
        if len(axes) != 1 or any(
            role != "bias"
            or self.flow.operations[p].attribute("beta", 1) != 1
            or not self.flow.plain_matrix(self.flow.operations[p])
            for p, role in uses
        ):
            return
        for leaves, support in _parts(axes[0], self.spec):
            if all(self.vanishes(position, support) for position, _ in uses):
                yield self.action(entry, leaves)

    def vanishes(self, position: int, support: Tensor) -> bool:
        """Return whether a change of one part of the last dimension, the same everywhere else, is tolerated.

        Args:
            position: the operation whose result changes.
            support: ``[n]`` truth values, true at the indices of the last dimension that change.
        """
        shape = self.flow.shapes[position]
        alike = {d for d in range(len(shape) - 1) if shape[d] > 1}
        masks = {len(shape) - 1: support}
        todo = [(position, alike, masks)]
        while todo:
            value, alike, masks = todo.pop()
            if alike & self.dims[value]:
                continue
            for reader, slot in self.flow.readers[value]:
                moved = self.restrict(reader, slot, alike, masks)
                if moved is None:
                    return False
                if all(bool(mask.any()) for mask in moved[1].values()):
                    todo.append((reader, *moved))
        return True

    def restrict(
        self, reader: int, slot: int, alike: set[int], masks: dict[int, Tensor]
    ) -> tuple[set[int], dict[int, Tensor]] | None:
        """Return along which dimensions a change is constant after an operation, and what it touches."""
        op = self.flow.operations[reader]
        at = op.attribute("dim")
        if op.kind not in ("reshape", "transpose", "slice", "select") and not self.flow.scales(op):
            return None
        moved = {d: self.flow.forward(reader, slot, d) for d in masks}
        kept = {place for d in alike for place in self.goes(reader, slot, d)}
        result: dict[int, Tensor] = {}
        for d, mask in masks.items():
            place = moved[d]
            if place is not None:
                result[place] = mask
            elif op.kind == "slice" and d == at:
                bounds = [op.attribute(name) for name in ("start", "stop", "step")]
                result[d] = mask[slice(*bounds)]
            elif op.kind == "select" and d == at:
                index = op.attribute("index")
                assert isinstance(index, int)
                if not bool(mask[index]):
                    return kept, {0: mask[:0]}
            elif op.kind == "reshape":
                result |= self.unfolded(reader, d, mask)
        return kept, result

    def unfolded(self, reader: int, dim: int, mask: Tensor) -> dict[int, Tensor]:
        """Return the masks of the dimensions that a reshape makes of one; none where they do not factor."""
        after, places = self.flow.shapes[reader], self.flow.split(reader, dim)
        if not places:
            return {}
        cube = mask.reshape([after[d] for d in places])
        found = {d: cube.movedim(i, 0).flatten(1).any(1) for i, d in enumerate(places)}
        outer = torch.ones((), dtype=torch.bool)
        for mask_ in found.values():
            outer = outer[..., None] & mask_
        return found if torch.equal(outer, cube) else {}


def _plain(atom: Atom) -> Atom:
    return Perm(atom.group) if isinstance(atom, Perm) else atom


def _parts(axis: Axis, spec: WeightSpec) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the leaves and the indices of every part of an axis that Concats make."""
    found: dict[tuple[tuple[int, ...], ...], list[tuple[int, Leaf]]] = {}
    leaves = leaves_of((axis,))
    if not any(leaf.parts for leaf in leaves):
        return
    for number, leaf in enumerate(leaves):
        if leaf.parts:
            found.setdefault(tuple((leaf.path[: depth + 1]) for depth, _ in leaf.parts), []).append(
                (number, leaf)
            )
    for steps, members in found.items():
        inside = [n for n, _ in members]
        shared = [n for n, leaf in enumerate(leaves) if not leaf.parts]
        chosen = sorted({*inside, *shared})
        yield chosen, _indices(axis, steps[-1], spec)


def _indices(axis: Axis, path: tuple[int, ...], spec: WeightSpec) -> Tensor:
    """Return ``[size]`` truth values: which indices of an axis lie in the part that a path leads to."""
    if not path:
        return torch.ones(axis_size(axis, spec.sizes), dtype=torch.bool)
    assert isinstance(axis, (Product, Concat))
    inner = [
        _indices(part, path[1:], spec)
        if i == path[0]
        else torch.full((axis_size(part, spec.sizes),), not isinstance(axis, Concat))
        for i, part in enumerate(axis.axes)
    ]
    if isinstance(axis, Concat):
        return torch.cat(inner)
    result = inner[0]
    for part in inner[1:]:
        result = (result[:, None] & part).flatten()
    return result
