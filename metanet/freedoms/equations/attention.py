"""Scaled dot-product attention: widths of queries and keys cancel, values pass."""

from __future__ import annotations

from metanet.freedoms.equations.contraction import letters, visible
from metanet.freedoms.equations.registry import Row, Step, Unfit, equation


@equation("sdpa")
def attention(step: Step) -> list[Row]:
    """Attention weights are no linear function of scores, so that these keep exponent zero."""
    if len(step.inputs) not in (3, 4) or step.parameters:
        raise Unfit
    q, k, v, *mask = step.inputs
    visible(q, k, v)
    for carrier in mask:
        step.pin(carrier.forms)
    heads = [letters("h", len(carrier.rows) - 2) for carrier in (q, k, v)]
    batch = max(heads, key=len)
    scores = step.contract(
        [([*heads[0], "l", "e"], q.rows), ([*heads[1], "s", "e"], k.rows)], [*batch, "l", "s"]
    )
    step.pin(*scores)
    if step.mode == "linear":
        step.pin(*v.rows[:-1])
    step.pin(v.rows[-2])
    out: list[Row] = []
    for place, count in enumerate(step.counts):
        at = place - (len(step.counts) - len(v.rows))
        row = v.rows[at] if at >= 0 and place != len(step.counts) - 2 else ()
        if len(row) not in (0, count):
            raise Unfit
        out.append(row or step.zeros(count))
    return out
