"""Dataflow of a skeleton: who reads what, and where a dimension goes that an operation leaves whole."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import prod

from metanet.axis import Perm, atoms, axis_size
from metanet.skeleton import Operation
from metanet.spec import WeightSpec

ROWS: Mapping[str, int] = {"matmul": 1, "addmm": 1}
"""The dimension of an operation's weight that it writes, where that is not the first."""
MATRICES = ("linear", "matmul", "addmm")
POINTWISE = ("neg", "positive", "cast")


class Dataflow:
    """The operations of a spec, with their readers.

    Args:
        spec: a derived spec.
    """

    def __init__(self, spec: WeightSpec) -> None:
        self.spec = spec
        self.operations = spec.operations
        self.first = {name: tie[0] for tie in spec.ties for name in tie}

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of every operation's result."""
        sizes = self.spec.sizes
        return [tuple(axis_size(axis, sizes) for axis in op.axes) for op in self.operations]

    @cached_property
    def readers(self) -> list[list[tuple[int, int]]]:
        """For every operation, ``(reader, slot)`` wherever its result is read."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.operations]
        for position, operation in enumerate(self.operations):
            for slot, source in enumerate(operation.inputs):
                found[source].append((position, slot))
        return found

    @cached_property
    def meeting(self) -> dict[str, list[int]]:
        """For every group, the operations whose results or parameters carry it, in order."""
        found: dict[str, list[int]] = {group.name: [] for group in self.spec.groups}
        for position, op in enumerate(self.operations):
            met = [op.axes, *(self.spec.axes[entry] for _, entry in op.parameters)]
            carried = [atom for axes in met for axis in axes for atom in atoms(axis)]
            for name in {atom.group for atom in carried if isinstance(atom, Perm)}:
                found[name].append(position)
        return found

    @cached_property
    def uses(self) -> dict[str, list[tuple[int, str]]]:
        """For every entry, ``(operation, role)`` wherever it is used; tied entries under their first name."""
        found: dict[str, list[tuple[int, str]]] = {}
        for position, operation in enumerate(self.operations):
            for role, entry in operation.parameters:
                found.setdefault(self.first.get(entry, entry), []).append((position, role))
        return found

    @cached_property
    def weightless(self) -> list[bool]:
        """For every operation, whether its result depends on inputs and constants alone."""
        found: list[bool] = []
        for op in self.operations:
            found.append(not op.parameters and all(found[source] for source in op.inputs))
        return found

    def names(self, entry: str) -> tuple[str, ...]:
        """Return all names of the parameter that an entry is, the entry's own first."""
        return next((tie for tie in self.spec.ties if entry in tie), (entry,))

    def plain_matrix(self, op: Operation) -> bool:
        """Return whether an operation is ``x W (+ b)``, all parameters being entries as they are."""
        return op.kind in MATRICES and op.parameter("weight") is not None and len(op.inputs) == 1

    def forward(self, reader: int, slot: int, dim: int) -> int | None:
        """Return where a dimension of a value goes that an operation leaves whole and in order, or None.

        For operations that only move or select along other dimensions, and for elementwise ones.

        Args:
            reader: the operation.
            slot: which of its inputs the value is.
            dim: dimension of the value, of more than one index.
        """
        op = self.operations[reader]
        mine, result = self.shapes[op.inputs[slot]], self.shapes[reader]
        at = op.attribute("dim")
        if op.kind == "reshape":
            inner = prod(mine[dim + 1 :])
            return next(
                (d for d, n in enumerate(result) if n == mine[dim] and prod(result[d + 1 :]) == inner), None
            )
        if op.kind == "transpose":
            dims = op.attribute("dims")
            assert isinstance(dims, tuple)
            return dims.index(dim)
        if op.kind in ("slice", "cat") and isinstance(at, int):
            return dim if dim != at else None
        if op.kind == "select" and isinstance(at, int):
            return None if dim == at else dim - (dim > at)
        if op.kind == "stack" and isinstance(at, int):
            return dim + (dim >= at)
        if op.kind in ("mean", "sum"):
            dims = op.attribute("dims")
            if not isinstance(dims, tuple) or dim in dims:
                return None
            return dim if op.attribute("keepdim") else dim - sum(d < dim for d in dims if isinstance(d, int))
        if op.kind in ("expand", "repeat", "add", "sub", "mul", "div", *POINTWISE):
            moved = dim + len(result) - len(mine)
            return moved if result[moved] == mine[dim] else None
        return None

    def split(self, reader: int, dim: int) -> list[int]:
        """Return the dimensions of more than one index into which a reshape splits one, or none."""
        before, after = self.shapes[self.operations[reader].inputs[0]], self.shapes[reader]
        inner, places, size, product = prod(before[dim + 1 :]), list[int](), 1, 1
        for d in reversed(range(len(after))):
            if product == inner * size and size < before[dim] and after[d] > 1:
                places.insert(0, d)
                size *= after[d]
            product *= after[d]
        return places if size == before[dim] else []

    def number(self, op: Operation) -> float | None:
        """Return the number that an elementwise operation on one tensor takes, or None."""
        scalar = op.attribute("scalar")
        plain = len(op.inputs) == 1 and isinstance(scalar, (int, float)) and not isinstance(scalar, bool)
        return float(scalar) if plain else None  # type: ignore[arg-type]

    def scales(self, op: Operation) -> bool:
        """Return whether an operation multiplies a tensor by a number, or leaves it as it is."""
        if op.kind in ("positive", "neg"):
            return True
        if op.kind == "cast":
            return str(op.attribute("dtype")).startswith(("float", "bfloat", "complex"))
        divides = op.kind == "div" and not op.attribute("reverse") and op.attribute("rounding_mode") is None
        return self.number(op) is not None and (op.kind == "mul" or divides)

    def last(self, position: int) -> int:
        """Return the last dimension of an operation's result."""
        return len(self.operations[position].axes) - 1
