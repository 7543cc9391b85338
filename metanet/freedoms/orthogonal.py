r"""Orthogonal freedoms: O(d) of a residual stream that only its norm and linear maps look at.

Let every matrix that writes the units of a group multiply its rows by Q, and every one that reads them its
columns. A value that carries the group is then a *vector* (Q x), anything else is unchanged, if all
operations agree:

    x + y -> Q (x + y)      |x|² -> |x|²      x / rms(x) -> Q x / rms(x)      W x -> W Qᵀ Q x

A gain per unit in the norm, a bias that is added to the norm, or any function of single units takes the
freedom away; `metanet.freedoms.folding.fold_gains` moves gains into the readers first. Operations that are
not listed here may read no vector.

References:
    Ashkboos et al. 2024, SliceGPT, https://arxiv.org/abs/2401.15024 (computational invariance of RMSNorm
    transformers under orthogonal transformations of the residual stream).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from metanet.action import Action, Term
from metanet.axis import Axis, Perm, atoms
from metanet.closure import compatible
from metanet.freedoms.dataflow import ROWS, Dataflow
from metanet.leaf import leaves_of
from metanet.skeleton import Operation
from metanet.spec import WeightSpec

MOVES = frozenset(
    ("reshape", "transpose", "expand", "repeat", "slice", "select", "cat", "stack", "mean", "sum")
)
NORMS = frozenset(("norm", "linalg_vector_norm"))
SQUARES = frozenset(("pow", "square", "mul", *NORMS, "rms_norm"))
"""Operations through which the length of a vector is taken; a group that meets none has no O(d)."""


class _Broken(Exception):
    """An operation tells the directions of the vectors apart."""


@dataclass(frozen=True, slots=True)
class _State:
    """What a value is: a vector along one of its dimensions, or the products of two vectors' components."""

    dim: int
    square: bool = False


def with_orthogonal(spec: WeightSpec) -> WeightSpec:
    """Return the spec with the orthogonal freedoms that its operations allow.

    Signs of the units, which they contain, are no longer listed.
    """
    flow = Dataflow(spec)
    for name in _candidates(spec):
        try:
            action = _Vectors(flow, name).action()
        except _Broken:
            continue
        groups = tuple(
            replace(g, freedoms=tuple(f for f in g.freedoms if f.kind not in ("sign", "even")))
            if g.name == name
            else g
            for g in spec.groups
        )
        others = tuple(a for a in spec.actions if not (a.kind == "sign" and name in a.groups))
        plain = replace(spec, groups=groups, actions=others)
        if compatible(plain, plain.actions, action):
            spec = replace(plain, actions=(*others, action))
    return spec


def _candidates(spec: WeightSpec) -> list[str]:
    """Return the groups that stand alone on an axis of something whose length may be taken."""
    found = {
        axis.group
        for operation in spec.operations
        if operation.kind in SQUARES
        for source in operation.inputs
        for axis in spec.operations[source].axes
        if isinstance(axis, Perm)
    }
    mixed = {a.axes[-1].group for a in spec.actions if a.kind == "linear" and isinstance(a.axes[-1], Perm)}
    return [g.name for g in spec.groups if g.name in found - mixed and g.parent is None and g.size > 1]


class _Vectors:
    """The analysis for one group."""

    def __init__(self, flow: Dataflow, group: str) -> None:
        self.flow = flow
        self.spec = flow.spec
        self.group = group
        self.states: list[_State | None] = [None] * len(self.spec.operations)
        self.position = 0
        self.lengths = 0

    def action(self) -> Action:
        """Return the action.

        Raises:
            _Broken: there is none.
        """
        due = set(self.flow.meeting[self.group])
        ahead = sorted(due)
        while ahead:
            position = self.position = heappop(ahead)
            op = self.spec.operations[position]
            state = self.states[position] = self.state(op)
            if state is None and op.kind not in ("expand", "output") and self.carries(op.axes):
                raise _Broken
            for reader, _ in self.flow.readers[position] if state is not None else ():
                if reader not in due:
                    due.add(reader)
                    heappush(ahead, reader)
        terms = []
        for entry, axes in self.spec.entries:
            for axis in axes:
                if self.carries((axis,)) and not self.is_units(axis):
                    raise _Broken
            leaves = leaves_of(axes)
            terms += [Term(entry, (i,)) for i, leaf in enumerate(leaves) if self.is_units(leaf.atom)]
        if not self.lengths:
            raise _Broken
        return Action("orthogonal", (Perm(self.group),), tuple(terms))

    def is_units(self, axis: Axis) -> bool:
        return isinstance(axis, Perm) and axis.group == self.group

    def carries(self, axes: Sequence[Axis]) -> bool:
        return any(self.is_units(atom) for axis in axes for atom in atoms(axis))

    def state(self, op: Operation) -> _State | None:
        """Return what the result of an operation is.

        Raises:
            _Broken: it tells directions apart.
        """
        inputs = [self.states[source] for source in op.inputs]
        reads = any(state is not None for state in inputs)
        weighs = any(self.carries(self.spec.axes[entry]) for _, entry in op.parameters)
        if not reads and not weighs:
            return None
        if any(state is not None and state.square for state in inputs):
            return self.reduced(op, inputs)
        if op.kind == "parameter":
            return self.sole(self.spec.axes[op.parameters[0][1]])
        if op.kind == "embedding" and not reads:
            return self.sole(self.spec.axes[op.parameters[0][1]][1:], len(op.axes) - 1)
        if self.flow.plain_matrix(op) or op.kind.startswith("conv"):
            return self.matrix(op, inputs[0])
        if weighs:
            raise _Broken
        if op.kind == "sdpa":
            return self.attention(op, inputs)
        if op.kind == "matmul" and len(inputs) == 2:
            return self.product(op, inputs)
        return self.elementwise(op, inputs)

    def sole(self, axes: Sequence[Axis], dim: int | None = None) -> _State:
        places = [i for i, axis in enumerate(axes) if self.carries((axis,))]
        if len(places) != 1:
            raise _Broken
        return _State(places[0] if dim is None else dim)

    def matrix(self, op: Operation, x: _State | None) -> _State | None:
        """Rows of a matrix or a convolution write vectors, columns read them."""
        weight, bias = op.parameter("weight"), op.parameter("bias")
        axes = self.spec.axes[weight or ""] if weight else ()
        conv = op.kind.startswith("conv")
        channel = 1 if conv else len(op.axes) - 1
        if len(axes) < 2 or len(op.inputs) != 1 or op.kind.startswith("conv_transpose"):
            raise _Broken
        if conv and (op.attribute("groups") != 1 or len(op.axes) != len(axes)):
            raise _Broken
        row = ROWS.get(op.kind, 0)
        if x is not None and x.dim != channel:
            raise _Broken
        if self.carries(axes[1 - row : 2 - row]) != (x is not None) or self.carries(axes[2:]):
            raise _Broken
        if x is not None and not self.vectors(op.inputs[0], x.dim):
            raise _Broken
        writes = self.is_units(axes[row])
        if bias is not None and self.carries(self.spec.axes[bias]) != writes:
            raise _Broken
        return _State(channel) if writes else None

    def vectors(self, position: int, dim: int) -> bool:
        """Return whether the group is all of a dimension of a value."""
        return self.is_units(self.spec.operations[position].axes[dim])

    def reduced(self, op: Operation, inputs: Sequence[_State | None]) -> _State | None:
        """Products of components may only be summed up."""
        [state] = inputs if len(inputs) == 1 else [None]
        if state is None or not state.square:
            raise _Broken
        if op.kind in ("mean", "sum") and op.attribute("dims") == (state.dim,):
            self.lengths += 1
            return None
        if self.flow.scales(op):
            return state
        raise _Broken

    def attention(self, op: Operation, inputs: Sequence[_State | None]) -> _State | None:
        """Scores of two vectors are unchanged, sums of vectors are vectors."""
        last = [
            state is not None and state.dim == self.flow.last(i)
            for state, i in zip(inputs, op.inputs, strict=True)
        ]
        if any(state is not None and not there for state, there in zip(inputs, last, strict=True)):
            raise _Broken
        if last[0] != last[1] or any(last[3:]):
            raise _Broken
        return _State(len(op.axes) - 1) if last[2] else None

    def product(self, op: Operation, inputs: Sequence[_State | None]) -> _State | None:
        """A product of two matrices, neither of which is an entry."""
        (left, right), rank = inputs, len(op.axes)
        a, b = (self.flow.last(i) for i in op.inputs)
        if a < 1 or b < 1:
            raise _Broken
        if left is not None and right is not None:
            if left.dim == a and right.dim == b - 1:
                return None
            raise _Broken
        if left is not None and left.dim == a - 1:
            return _State(rank - 2)
        if right is not None and right.dim == b:
            return _State(rank - 1)
        raise _Broken

    def elementwise(self, op: Operation, inputs: Sequence[_State | None]) -> _State | None:
        vectors = [(slot, state) for slot, state in enumerate(inputs) if state is not None]
        slot, state = vectors[0]
        moved = {self.flow.forward(self.position, s, v.dim) for s, v in vectors}
        if op.kind == "rms_norm":
            gains = [self.spec.operations[i] for i in op.inputs[1:]]
            shape = self.flow.shapes[op.inputs[0]]
            uniform = all(g.kind == "constant" and g.attribute("value") is not None for g in gains)
            if op.attribute("normalized_shape") != (shape[-1],) or not uniform or len(vectors) > 1:
                raise _Broken
            if state.dim != len(shape) - 1:
                raise _Broken
            self.lengths += 1
            return state
        if op.kind in NORMS and op.attribute("dims") == (state.dim,):
            if op.attribute("ord", op.attribute("p", 2)) in (2, None):
                self.lengths += 1
                return None
            raise _Broken
        if op.kind == "square" or (
            op.kind == "pow" and self.flow.number(op) == 2 and not op.attribute("reverse")
        ):
            return _State(state.dim, square=True)
        if None in moved or len(moved) != 1:
            raise _Broken
        [place] = moved
        assert place is not None
        everywhere = len(vectors) == len(inputs)
        if op.kind == "mul" and len(inputs) == 2 and everywhere:
            return _State(place, square=True)
        if op.kind in ("mul", "div") and len(inputs) == 2 and len(vectors) == 1:
            other = op.inputs[1 - slot]
            if (slot == 0 or op.kind == "mul") and self.constant(other, place - len(op.axes)):
                return _State(place)
            raise _Broken
        additive = op.kind in ("add", "sub") and len(inputs) == 2
        if (op.kind in MOVES or additive) and everywhere:
            return _State(place)
        if self.flow.scales(op):
            return _State(place)
        raise _Broken

    def constant(self, position: int, dim: int) -> bool:
        """Return whether a value does not vary along a dimension, counted from the end."""
        shape, op = self.flow.shapes[position], self.spec.operations[position]
        if -dim > len(shape) or shape[dim] == 1:
            return True
        return op.kind == "expand" and self.constant(op.inputs[0], dim)
