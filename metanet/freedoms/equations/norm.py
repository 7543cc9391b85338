"""Normalisations: what is normalised loses its exponents, gain and bias give new ones."""

from __future__ import annotations

from metanet.freedoms.equations.registry import Carrier, Row, Step, Unfit, equation


def _parts(step: Step, names: tuple[str, ...]) -> tuple[Carrier, dict[str, Row]]:
    """Return the value and the rows of its vectors, all of which are entries."""
    if len(step.inputs) != 1 or step.inputs[0].hidden or set(step.parameters) - set(names):
        raise Unfit
    if any(len(vector.rows) != 1 for vector in step.parameters.values()):
        raise Unfit
    return step.inputs[0], {name: vector.rows[0] for name, vector in step.parameters.items()}


def _affine(step: Step, normal: Row, vectors: dict[str, Row], count: int) -> Row:
    """Return the exponents of gain times a normal value plus bias, and demand the bias's."""
    gain = vectors.get("weight", ())
    if step.mode == "linear":
        step.pin(gain, normal)
    result = step.total(normal, gain) or step.zeros(count)
    if "bias" in vectors:
        step.same(vectors["bias"], result)
    return result


@equation("batch_norm", "instance_norm")
def batch_norm(step: Step) -> list[Row]:
    """``y = (x - m) / sqrt(v + ε) g + b``: v carries twice what is divided out, exactly as v + ε.

    A root is positive, so that a sign passes through it to the gain.
    """
    x, vectors = _parts(step, ("weight", "bias", "running_mean", "running_var"))
    channel = min(1, len(x.rows) - 1)
    step.pin(*(row for dim, row in enumerate(x.rows) if dim != channel))
    row, count = x.rows[channel], step.counts[channel]
    variance, mean = vectors.get("running_var", ()), vectors.get("running_mean", ())
    if step.op.kind == "instance_norm" or step.op.attribute("training") or not mean or not variance:
        step.pin(variance, mean)
        if step.mode != "sign" or mean:
            step.pin(row)
        normal = row
    else:
        step.same(mean, row)
        if step.mode == "positive":
            normal = step.total(row, step.times(variance, -0.5))
        else:
            step.pin(variance)
            normal = row
    rows: list[Row] = [step.zeros(n) for n in step.counts]
    rows[channel] = _affine(step, normal, vectors, count)
    return rows


@equation("layer_norm", "rms_norm")
def layer_norm(step: Step) -> list[Row]:
    """A layer norm keeps no exponent of its input, a root mean square keeps signs."""
    if len(step.inputs) != 1 or step.inputs[0].hidden or set(step.parameters) - {"weight", "bias"}:
        raise Unfit
    shape = step.op.attribute("normalized_shape")
    if not isinstance(shape, tuple):
        raise Unfit
    x, start = step.inputs[0], len(step.counts) - len(shape)
    keeps = step.op.kind == "rms_norm" and step.mode == "sign"
    rows: list[Row] = []
    for dim, (row, count) in enumerate(zip(x.rows, step.counts, strict=True)):
        vectors = {name: vector.rows[dim - start] for name, vector in step.parameters.items() if dim >= start}
        if not keeps or (dim < start and "bias" in step.parameters):
            step.pin(row)
        rows.append(_affine(step, row, vectors, count))
    return rows


@equation("group_norm")
def group_norm(step: Step) -> list[Row]:
    """Channels that are normalised together keep none of their exponents."""
    x, vectors = _parts(step, ("weight", "bias"))
    step.pin(*x.rows)
    rows: list[Row] = [step.zeros(n) for n in step.counts]
    rows[1] = _affine(step, step.zeros(step.counts[1]), vectors, step.counts[1])
    return rows


@equation("weight_norm")
def weight_norm(step: Step) -> list[Row]:
    """``w = g v / |v|``: a positive factor of a row of v is lost, a sign is kept."""
    direction, gain = step.inputs
    if direction.hidden or gain.hidden or step.mode == "linear":
        raise Unfit
    kept = step.op.attribute("dim")
    rows: list[Row] = []
    for dim, row in enumerate(direction.rows):
        other = gain.rows[dim] if dim < len(gain.rows) else ()
        if dim != kept:
            step.pin(other)
            if step.mode != "sign":
                step.pin(row)
            rows.append(row)
        elif step.mode == "positive":
            rows.append(other or step.zeros(len(row)))
        else:
            if step.mode == "scale":
                step.pin(row)
            rows.append(step.total(row, other))
    return rows
