"""Rows of experts: what is sorted into blocks of rows, one per expert, carries the experts along its rows.

A grouped matrix product multiplies every block of rows by a matrix of its own. Between two of them that read
the same blocks a row belongs to one expert: hidden units may be permuted in every expert on their own, and
stand in a parameter graph as units of every expert.
"""

from __future__ import annotations

from dataclasses import replace

from metanet.axis import Perm
from metanet.rules.pointwise import BINARY, UNARY
from metanet.skeleton import Operation
from metanet.spec import WeightSpec

ROWWISE = frozenset((*UNARY, *(kind.strip("_") for kind in BINARY), "where", "cast"))
PARTS = frozenset(("slice", "glu"))
Mark = tuple[str, int]
"""The group of experts, and the operation that says where their blocks end."""


def with_expert_rows(spec: WeightSpec) -> WeightSpec:
    """Return the spec with the group of experts as the axis of rows that are sorted into their blocks.

    In such a value the axis stands for the expert of every row, whatever the number of rows. A spec in which
    rows of different blocks meet is returned as it is.
    """
    marks: dict[int, Mark] = {}
    operations = list(spec.operations)
    for number, op in enumerate(spec.operations):
        read = {marks[i] for i in op.inputs if i in marks}
        mark = _own(spec, op) if op.kind == "grouped_mm" else None
        if mark is None and read and _keeps_rows(spec, op, [i for i in op.inputs if i in marks]):
            mark = next(iter(read))
        if mark is None:
            continue
        if read - {mark}:
            return spec
        marks[number] = mark
        operations[number] = replace(op, axes=(Perm(mark[0]), *op.axes[1:]))
    return replace(spec, operations=tuple(operations)) if marks else spec


def _own(spec: WeightSpec, op: Operation) -> Mark | None:
    """Return the blocks by which a grouped product multiplies, if they are of interchangeable experts."""
    if len(op.inputs) != 3 or op.parameters:
        return None
    experts = spec.operations[op.inputs[1]].axes[0]
    return (experts.group, op.inputs[2]) if isinstance(experts, Perm) else None


def _keeps_rows(spec: WeightSpec, op: Operation, marked: list[int]) -> bool:
    """Return whether an operation has the rows of its operands as its own."""
    if op.kind not in ROWWISE | PARTS or (op.kind in PARTS and op.attribute("dim") == 0):
        return False
    like = [spec.operations[i].axes for i in marked]
    return all(len(axes) == len(op.axes) and axes[0] == op.axes[0] for axes in like)
