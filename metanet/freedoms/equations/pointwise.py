"""Elementwise operations: sums are equal, products add, functions pass what they commute with."""

from __future__ import annotations

from math import isinf

from metanet.freedoms.equations.registry import Carrier, Row, Step, Unfit, equation

ODD_FUNCTIONS = (
    *("tanh", "sin", "asinh", "atan", "erf", "sinh", "tan", "asin", "atanh"),
    *("softshrink", "hardshrink", "trunc", "round"),
)
"""Nonlinear functions with f(-x) = -f(x)."""
EVEN_FUNCTIONS = ("cos", "cosh")
SYMMETRIC_BOUNDS = {"hardtanh": ("min_val", "max_val"), "clamp": ("min", "max")}
POSITIVE_FUNCTIONS = (
    *("relu", "leaky_relu", "rrelu"),
    *(f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)),
)
"""Functions with f(a x) = a f(x) for a > 0."""
LINEAR_FUNCTIONS = (
    *("neg", "positive", "flip", "roll", "upsample", "tril", "triu", "pixel_shuffle", "pixel_unshuffle"),
    *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)),
)
"""Linear functions of one tensor that do not mix units."""


def kept(step: Step, x: Carrier) -> tuple[Row, ...]:
    """Return the rows of a function that keeps every dimension in its place."""
    if x.hidden or len(x.rows) != len(step.counts):
        raise Unfit
    return x.rows


def _zeros(step: Step) -> tuple[Row, ...]:
    return tuple(step.zeros(count) for count in step.counts)


@equation(*LINEAR_FUNCTIONS)
def linear_function(step: Step) -> tuple[Row, ...]:
    """Linear functions pass."""
    return kept(step, step.function())


@equation(*POSITIVE_FUNCTIONS)
def positive_function(step: Step) -> tuple[Row, ...]:
    """Positively homogeneous functions pass positive factors."""
    return _passing(step, step.function(), in_modes=("positive",))


def _passing(step: Step, x: Carrier, *, in_modes: tuple[str, ...]) -> tuple[Row, ...]:
    if step.mode not in in_modes:
        raise Unfit
    return kept(step, x)


@equation(*ODD_FUNCTIONS)
def odd_function(step: Step) -> tuple[Row, ...]:
    """Odd functions pass signs."""
    return _passing(step, step.function(), in_modes=("sign",))


@equation(*EVEN_FUNCTIONS)
def even_function(step: Step) -> tuple[Row, ...]:
    """Even functions forget signs."""
    _passing(step, step.function(), in_modes=("sign",))
    return _zeros(step)


@equation("sign", "sgn")
def sign(step: Step) -> tuple[Row, ...]:
    """A sign passes signs and forgets positive factors."""
    rows = _passing(step, step.function(), in_modes=("sign", "positive"))
    return rows if step.mode == "sign" else _zeros(step)


@equation("abs")
def absolute(step: Step) -> tuple[Row, ...]:
    """|x| forgets signs and passes positive factors."""
    rows = _passing(step, step.function(), in_modes=("sign", "positive"))
    return rows if step.mode == "positive" else _zeros(step)


@equation(*SYMMETRIC_BOUNDS)
def clamp(step: Step) -> tuple[Row, ...]:
    """Symmetric bounds pass signs; a bound of zero passes positive factors."""
    low, high = (step.op.attribute(name) for name in SYMMETRIC_BOUNDS[step.op.kind])
    rows = kept(step, step.function())
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low == -high <= 0:
        return _passing(step, step.function(), in_modes=("sign",))
    if {low, high} <= {None, 0}:
        return _passing(step, step.function(), in_modes=("positive",))
    step.pin(*rows)
    return rows


@equation("clamp_min", "clamp_max")
def clamp_one(step: Step) -> tuple[Row, ...]:
    """A bound of zero passes positive factors."""
    if step.op.attribute(step.op.kind.removeprefix("clamp_")) != 0:
        raise Unfit
    return _passing(step, step.function(), in_modes=("positive",))


def _power(step: Step, x: Carrier, exponent: float) -> tuple[Row, ...]:
    """Return the exponents of xᵏ; a root knows positive factors alone, and no matrix passes."""
    rows = kept(step, x)
    if exponent == 1:
        return rows
    if step.mode == "linear" or (step.mode != "positive" and not float(exponent).is_integer()):
        raise Unfit
    return tuple(step.times(row, exponent) for row in rows)


@equation("square", "sqrt", "rsqrt", "reciprocal")
def fixed_power(step: Step) -> tuple[Row, ...]:
    """Powers multiply exponents."""
    exponents = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}
    return _power(step, step.function(), exponents[step.op.kind])


@equation("pow")
def power(step: Step) -> tuple[Row, ...]:
    """xᵏ for a number k; a fraction of small denominator for positive factors."""
    exponent = step.op.attribute("scalar")
    if step.op.attribute("reverse") or not isinstance(exponent, (int, float)) or isinf(exponent):
        raise Unfit
    if not float(exponent * 8).is_integer() or abs(exponent) > 64:
        raise Unfit
    return _power(step, step.function(), exponent)


def _sum(step: Step) -> Carrier:
    total = step.sum(step.inputs)
    if step.op.attribute("scalar") not in (None, 0):
        step.pin(total.forms)
    return total


@equation("add", "sub")
def add(step: Step) -> Carrier:
    """What is added has equal exponents; a number other than zero has none."""
    return _sum(step)


@equation("maximum", "minimum")
def extreme(step: Step) -> Carrier:
    """The larger of two positive multiples."""
    if step.mode != "positive":
        raise Unfit
    return _sum(step)


@equation("mul", "div")
def multiply(step: Step) -> tuple[Row, ...]:
    """Exponents add up; those of a divisor are subtracted; what is broadcast stands aside."""
    if step.op.attribute("rounding_mode") is not None:
        raise Unfit
    powers = [1] * len(step.inputs)
    if step.op.kind == "div" and (len(powers) == 2 or step.op.attribute("reverse")):
        powers[-1] = -1
    return step.product(step.inputs, powers)


@equation("where", "masked_fill")
def where(step: Step) -> Carrier:
    """A condition has no exponents; what it chooses from is equal, or zero."""
    choices = list(step.inputs)
    condition = choices.pop(1 if step.op.kind == "masked_fill" else 0)
    numbers = [value for _, value in step.op.attributes]
    blank = all(
        value == 0 or (step.mode == "positive" and isinstance(value, float) and isinf(value))
        for value in numbers
    )
    step.pin(condition.forms)
    chosen = step.sum(choices)
    along = step.mode == "linear" and condition.forms
    if along or not blank:
        step.pin(chosen.forms)
    return chosen


@equation("prelu")
def prelu(step: Step) -> tuple[Row, ...]:
    """Slopes have no exponents."""
    weight = step.parameters.get("weight") or (step.inputs[1] if len(step.inputs) == 2 else None)
    if weight is None or step.mode != "positive":
        raise Unfit
    step.pin(weight.forms)
    return kept(step, step.inputs[0])
