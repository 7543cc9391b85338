"""Contractions: rows pass on to the result, what is summed over cancels, a bias equals the result."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from metanet.axis import Axis, Product, axis_size
from metanet.freedoms.equations.registry import Carrier, Row, Step, Unfit, equation


def letters(prefix: str, count: int) -> list[str]:
    """Return labels for broadcast dimensions, which are counted from the right."""
    return [f"{prefix}{place}" for place in range(count, 0, -1)]


def _operands(step: Step) -> tuple[Carrier, Carrier, list[Carrier]]:
    """Return the value, the weight (an entry or computed) and what is added."""
    inputs = list(step.inputs)
    left = inputs.pop(0)
    weight = step.parameters.get("weight") or inputs.pop(0)
    bias = step.parameters.get("bias")
    if set(step.parameters) - {"weight", "bias"} or len(inputs) > (bias is None):
        raise Unfit
    return left, weight, [bias] if bias is not None else inputs


def _plus(step: Step, rows: Sequence[Row], added: Sequence[Carrier]) -> Carrier:
    return step.sum([Carrier(tuple(rows)), *added]) if added else Carrier(tuple(rows))


def visible(*carriers: Carrier) -> None:
    """Refuse stacked tensors."""
    if any(carrier.hidden for carrier in carriers):
        raise Unfit


@equation("linear")
def linear(step: Step) -> Carrier:
    """``y = x Wᵀ + b``."""
    x, weight, added = _operands(step)
    visible(x, weight)
    batch = letters("b", len(x.rows) - 1)
    out = ["o"] if len(weight.rows) == 2 else []
    rows = step.contract([([*batch, "i"], x.rows), ([*out, "i"], weight.rows)], [*batch, *out])
    return _plus(step, rows, added)


def _matmul(step: Step, left: Carrier, right: Carrier) -> list[Row]:
    visible(left, right)
    a, b = len(left.rows), len(right.rows)
    depth = max(a, b) - 2
    first = [*letters("b", a - 2), "r", "i"] if a > 1 else ["i"]
    second = [*letters("b", b - 2), "i", "c"] if b > 1 else ["i"]
    kept = [*letters("b", max(depth, 0)), *(["r"] if a > 1 else []), *(["c"] if b > 1 else [])]
    return step.contract([(first, left.rows), (second, right.rows)], kept)


@equation("matmul")
def matmul(step: Step) -> Carrier:
    """``y = x W``."""
    left, right, added = _operands(step)
    return _plus(step, _matmul(step, left, right), added)


@equation("addmm")
def addmm(step: Step) -> Carrier:
    """``y = β b + α x W``; a batch may be summed over."""
    left, right, added = _operands(step)
    rows = _matmul(step, left, right)
    while len(rows) > max(len(step.counts), 1):
        step.pin(rows.pop(0))
    return _plus(step, rows, added)


@equation("einsum")
def einsum(step: Step) -> list[Row]:
    """Letters that are kept multiply, the others cancel."""
    visible(*step.inputs)
    left, arrow, right = str(step.op.attribute("equation")).replace(" ", "").partition("->")
    terms = left.split(",")
    operands: list[tuple[Sequence[str], Sequence[Row]]] = []
    depth = 0
    for term, carrier in zip(terms, step.inputs, strict=True):
        before, dots, after = term.partition("...")
        count = len(carrier.rows) - len(before) - len(after)
        depth = max(depth, count) if dots else depth
        operands.append(([*before, *letters("...", count), *after], carrier.rows))
    if not arrow:
        once = sorted({c for c in left if c.isalpha() and left.count(c) == 1})
        right = ("..." if "..." in left else "") + "".join(once)
    before, dots, after = right.partition("...")
    return step.contract(operands, [*before, *(letters("...", depth) if dots else ()), *after])


@equation("bilinear")
def bilinear(step: Step) -> Carrier:
    """``y_o = x1ᵀ W_o x2 + b_o``."""
    inputs = list(step.inputs)
    weight = step.parameters.get("weight")
    if weight is None or len(inputs) != 2:
        raise Unfit
    visible(*inputs)
    batch = letters("b", len(inputs[0].rows) - 1)
    operands = [([*batch, "i"], inputs[0].rows), ([*batch, "j"], inputs[1].rows), ("oij", weight.rows)]
    bias = step.parameters.get("bias")
    return _plus(step, step.contract(operands, [*batch, "o"]), [] if bias is None else [bias])


@equation("outer")
def outer(step: Step) -> list[Row]:
    """Every index of one vector meets every one of the other."""
    visible(*step.inputs)
    first, second = step.inputs
    return [*first.rows, *second.rows]


@equation("embedding")
def embedding(step: Step) -> list[Row]:
    """Rows of a table by index."""
    weight = step.parameters.get("weight")
    indices = step.inputs[-1]
    table = weight or step.inputs[0]
    if len(step.inputs) != (1 if weight else 2):
        raise Unfit
    step.pin(indices.forms, table.rows[0])
    return [*(() for _ in indices.rows), *table.rows[1:]]


def _halves(step: Step, axis: Axis, row: Row, outer: int) -> tuple[Row, Row]:
    """Split the row of an axis that is a product of ``outer`` groups and what stands in each."""
    factors = axis.axes if isinstance(axis, Product) else (axis,)
    for cut in range(len(factors) + 1):
        if prod(axis_size(factor, step.sizes) for factor in factors[:cut]) == outer:
            count = sum(step.count(factor) for factor in factors[:cut])
            return row[:count], row[count:]
    raise Unfit


def _convolution(step: Step, transposed: bool) -> Carrier:
    x, weight, added = _operands(step)
    visible(x, weight)
    groups = step.integer("groups")
    spatial = len(weight.rows) - 2
    channel = len(x.rows) - spatial - 1
    x_outer, x_inner = _halves(step, x.axes[channel], x.rows[channel], groups)
    w_outer, w_inner = _halves(step, weight.axes[0], weight.rows[0], groups)
    mine = [*("n" * channel), "g", "i", *(f"s{d}" for d in range(spatial))]
    theirs = ["g", *("io" if transposed else "oi"), *(f"k{d}" for d in range(spatial))]
    rows = step.contract(
        [
            (mine, [*x.rows[:channel], x_outer, x_inner, *x.rows[channel + 1 :]]),
            (theirs, [w_outer, w_inner, weight.rows[1], *weight.rows[2:]]),
        ],
        [*("n" * channel), "g", "o"],
    )
    *batch, outer, inner = rows
    out: list[Row] = [*batch, (*outer, *inner)]
    if not added:
        return Carrier((*out, *(() for _ in range(spatial))))
    step.pin(*batch)
    for bias in added:
        if len(bias.rows) != 1 or bias.hidden:
            raise Unfit
        step.same(bias.rows[0], out[channel])
    return Carrier((*out, *(() for _ in range(spatial))))


@equation("conv1d", "conv2d", "conv3d")
def conv(step: Step) -> Carrier:
    """Channels are contracted group by group."""
    return _convolution(step, transposed=False)


@equation("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(step: Step) -> Carrier:
    """The same, with columns first."""
    return _convolution(step, transposed=True)


@equation("grouped_mm")
def grouped_mm(step: Step) -> list[Row]:
    """Blocks of rows times a matrix of each block's expert: experts themselves have no exponents."""
    if len(step.inputs) != 3 or step.parameters:
        raise Unfit
    x, weight, ends = step.inputs
    visible(x, weight, ends)
    step.pin(x.rows[0], weight.rows[0], ends.forms)
    return step.contract([("si", x.rows), ("eio", weight.rows)], ["s", "o"])
