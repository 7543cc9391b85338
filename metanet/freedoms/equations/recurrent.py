"""Recurrent networks: gates have no exponents; signs pass tanh, positive factors pass ReLU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from metanet.freedoms.equations.registry import Carrier, Row, Step, Unfit, equation

CANDIDATE = {
    "lstm": (4, 2, "sign"),
    "gru": (3, 2, "sign"),
    "rnn_tanh": (1, 0, "sign"),
    "rnn_relu": (1, 0, "positive"),
}
"""Number of gates, the one that writes the state, and what its activation passes."""


class _Layer(NamedTuple):
    out: Row
    cell: Row


def _layer(
    step: Step, kind: str, weights: Mapping[str, Carrier], below: Row, states: Sequence[Row]
) -> _Layer:
    """Return the exponents of what one layer puts out, and of its cells."""
    gates, candidate, passes = CANDIDATE[kind]
    if not {"weight_ih", "weight_hh"} <= weights.keys():
        raise Unfit
    read, recurrent = weights["weight_ih"], weights["weight_hh"]
    step.cancel(read.rows[1], below)
    cell: Row | None = None
    for name, weight in weights.items():
        if name == "weight_hr":
            continue
        row = weight.rows[0]
        if len(row) % gates:
            raise Unfit
        width = len(row) // gates
        for gate in range(gates):
            part = row[gate * width : (gate + 1) * width]
            if gate != candidate or step.mode != passes:
                step.pin(part)
            elif cell is None:
                cell = part
            else:
                step.same(part, cell)
    units = len(read.rows[0]) // gates
    cell = cell if cell is not None else step.zeros(units)
    out = cell
    if "weight_hr" in weights:
        step.cancel(weights["weight_hr"].rows[1], cell)
        out = weights["weight_hr"].rows[0]
    step.cancel(recurrent.rows[1], out)
    for state, row in zip(states, (out, cell), strict=False):
        step.same(state, row)
    return _Layer(out, cell)


@equation("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(step: Step) -> list[Row]:
    """Layers and directions one after the other; initial states that are given go with those of one layer."""
    x, *states = step.inputs
    if any(carrier.hidden for carrier in step.inputs):
        raise Unfit
    directions = 2 if step.op.attribute("bidirectional") else 1
    layers = step.integer("num_layers")
    step.pin(*x.rows[:-1])
    below, found = x.rows[-1], list[_Layer]()
    for layer in range(layers):
        here = []
        for direction in range(directions):
            suffix = f"_l{layer}{'_reverse' if direction else ''}"
            weights = {
                role.removesuffix(suffix): carrier
                for role, carrier in step.parameters.items()
                if role.endswith(suffix)
            }
            here.append(_layer(step, step.op.kind, weights, below, []))
        below = tuple(form for one in here for form in one.out)
        found += here
    for place, state in enumerate(states):
        step.pin(*state.rows[:-1])
        for one in found:
            if state.rows[-1] and len(found) == 1:
                step.same(state.rows[-1], one[place])
            else:
                step.pin(state.rows[-1], one[place])
    for index, rows in ((1, [one.out for one in found]), (2, [one.cell for one in found])):
        step.finals[index] = _stacked(rows)
    return [*(step.zeros(count) for count in step.counts[:-1]), below]


def _stacked(rows: Sequence[Row]) -> Carrier:
    """Return final states ``[layers, …, units]`` as a stacked tensor."""
    flat = tuple(form for row in rows for form in row)
    return Carrier((), hidden=flat, alternatives=lambda number: rows if number == len(rows) else None)


@equation("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def recurrent_cell(step: Step) -> list[Row]:
    """One step; its states are values."""
    names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    weights = {names[role]: carrier for role, carrier in step.parameters.items()}
    x, *states = step.inputs
    if len(weights) not in (2, 4) or any(carrier.hidden for carrier in step.inputs):
        raise Unfit
    for carrier in step.inputs:
        step.pin(*carrier.rows[:-1])
    last = [state.rows[-1] for state in states]
    layer = _layer(step, step.op.kind.removesuffix("_cell"), weights, x.rows[-1], last)
    step.finals[1] = Carrier((*(() for _ in step.counts[:-1]), layer.cell))
    return [*(step.zeros(count) for count in step.counts[:-1]), layer.out]
