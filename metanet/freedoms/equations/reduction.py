"""Reductions: what is taken away has exponent zero, or disappears; the rest passes."""

from __future__ import annotations

from metanet.freedoms.equations.registry import Row, Step, Unfit, equation

POWERS = {
    **dict.fromkeys(("mean", "sum"), ("linear", 1)),
    **dict.fromkeys(("amax", "amin", "max", "min", "std"), ("positive", 1)),
    "var": ("scale", 2),
    **dict.fromkeys(("norm", "linalg_vector_norm"), ("norm", 1)),
}
"""Kind to what passes, and with which power."""


@equation(*POWERS)
def reduce(step: Step) -> list[Row]:
    """Means and sums are linear, variances quadratic, extrema and deviations positively homogeneous.

    A norm or a variance forgets the signs of what it is taken over; a mean does not.
    """
    x = step.function()
    gone = step.op.attribute("dims")
    if x.hidden or not isinstance(gone, tuple):
        raise Unfit
    passes, power = POWERS[step.op.kind]
    if 0 in (step.op.attribute("ord"), step.op.attribute("p")):
        raise Unfit
    blind = step.mode == "sign" and passes == "norm"
    fits = {
        "linear": True,
        "scale": step.mode != "linear",
        "positive": step.mode == "positive",
        "norm": step.mode in ("positive", "sign"),
    }[passes]
    rows: list[Row] = []
    for dim, row in enumerate(x.rows):
        if dim in gone:
            if not blind:
                step.pin(row)
            if step.op.attribute("keepdim"):
                rows.append(())
            continue
        if not fits:
            step.pin(row)
        rows.append(step.zeros(len(row)) if blind else step.times(row, power))
    return rows


@equation("cumsum")
def cumsum(step: Step) -> list[Row]:
    """Sums along a dimension whose indices are told apart."""
    x = step.function()
    dim = step.integer("dim")
    if x.hidden:
        raise Unfit
    step.pin(x.rows[dim])
    return list(x.rows)


@equation("glu")
def glu(step: Step) -> list[Row]:
    """``a · sigmoid(b)``: the gate has no exponents."""
    x = step.function()
    dim = step.integer("dim")
    row = x.rows[dim]
    if x.hidden or len(row) % 2:
        raise Unfit
    half = len(row) // 2
    step.pin(row[half:])
    if step.mode == "linear":
        step.pin(row)
    others = [other if place != dim else row[:half] for place, other in enumerate(x.rows)]
    if step.op.axes and any(len(other) != count for other, count in zip(others, step.counts, strict=True)):
        raise Unfit
    return others
