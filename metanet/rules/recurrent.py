"""Recurrent networks: all gates of a layer have the units of its hidden state."""

from __future__ import annotations

from collections.abc import Sequence

from metanet.derivation.dimension import Dim, fixed, join
from metanet.rules.registry import Call, Result, Value, freeze, rule, scalar_of

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*(f"aten.{kind}.input" for kind in GATES))
def recurrent(call: Call) -> Result:
    """Interpret a (bidirectional, multi-layer) recurrent network.

    Per layer and direction: ``weight_ih [gates·h, in]``, ``weight_hh [gates·h, h]``, biases ``[gates·h]``
    and, for a projected LSTM, ``weight_hr [out, h]``; states ``[layers·directions, batch, h]``.
    """
    kind = call.name.split(".")[1]
    x = call.tensor("input")
    states = [value for name, value in call.values() if name == "hx"]
    directions = 2 if call.argument("bidirectional") else 1
    layers = int(call.argument("num_layers"))
    weights = _layers(call, layers * directions)
    below, outs, cells = x.dims[-1], list[Dim](), list[Dim]()
    for layer in range(layers):
        here = []
        for direction in range(directions):
            place = layer * directions + direction
            out, cell = _layer(call, kind, weights[place], below, [s.dims[-1] for s in states])
            here.append(out)
            outs.append(out)
            cells.append(cell)
        below = join(here)
    time, batch = (1, 0) if call.argument("batch_first") else (0, 1)
    dims = [*x.dims[:-1], below]
    if len(x.dims) == 3:
        dims[time], dims[batch] = call.fix(x.dims[time]), x.dims[batch]
        for state in states:
            call.unify(state.dims[1], x.dims[batch])
    else:
        dims[0] = call.fix(x.dims[0])
    for state in states:
        call.fix(state.dims[0])
    named = ("has_biases", "num_layers", "bidirectional")
    roles = _roles(call, layers, directions)
    inputs = [x, *(s for s in states if s.constant is None or scalar_of(s) != 0)]
    output = call.result(kind, dims, attributes=(*named, "batch_first"), inputs=inputs)
    assert output.draft is not None
    output.draft.parameters = tuple(roles)
    finals = []
    for index, units in enumerate([outs, cells][: len(call.shapes) - 1], 1):
        stacked = _stacked(units)
        final = (
            *stacked[:1],
            *(d for i, d in enumerate(x.dims[:-1]) if i != time and len(x.dims) == 3),
            *stacked[1:],
        )
        finals.append(call.result("getitem", final, inputs=[output], extra={"index": freeze(index)}))
    return [output, *finals]


def _layers(call: Call, count: int) -> list[list[Value]]:
    flat = [value for name, value in call.values() if name == "params"]
    each = len(flat) // count
    return [flat[i * each : (i + 1) * each] for i in range(count)]


def _roles(call: Call, layers: int, directions: int) -> list[tuple[str, str]]:
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if call.argument("has_biases") else [])]
    flat = _layers(call, layers * directions)
    names += ["weight_hr"] * (len(flat[0]) - len(names))
    return [
        (f"{name}_l{place // directions}{'_reverse' if place % directions else ''}", value.entry)
        for place, layer in enumerate(flat)
        for name, value in zip(names, layer, strict=True)
        if value.entry is not None
    ]


def _layer(
    call: Call, kind: str, weights: Sequence[Value], below: Dim, states: Sequence[Dim]
) -> tuple[Dim, Dim]:
    """Unify the units of one layer and direction; return those it puts out and those of its cell."""
    count = GATES[kind]
    ih, hh, *rest = weights
    call.unify(ih.dims[1], below)
    biases = [w for w in rest if len(w.dims) == 1]
    size = ih.dims[0].size // count
    gates = [
        gate
        for weight in (ih, hh, *biases)
        for gate in call.cut(weight.dims[0], [size * i for i in range(1, count)])
    ]
    cell = call.unify(*gates)
    projections = [w for w in rest if len(w.dims) == 2]
    out = cell
    for projection in projections:
        call.unify(projection.dims[1], cell)
        out = projection.dims[0]
    out = call.unify(out, hh.dims[1])
    for state, units in zip(states, (out, cell), strict=False):
        call.unify(state, units)
    return out, cell


def _stacked(units: Sequence[Dim]) -> tuple[Dim, ...]:
    """Return a selector of layers and the choice of their units."""
    if len(units) == 1:
        return fixed(1), units[0]
    selector = Dim(len(units), "selector")
    if units[0].size == 1:
        return fixed(len(units)), fixed(1)
    return selector, Dim(units[0].size, "choice", tuple(units), selector=selector)


@rule(
    "aten.lstm_cell.default",
    "aten.gru_cell.default",
    "aten.rnn_tanh_cell.default",
    "aten.rnn_relu_cell.default",
)
def recurrent_cell(call: Call) -> Result:
    """Interpret one step."""
    kind = call.name.split(".")[1]
    x = call.tensor("input")
    states = [value for name, value in call.values() if name == "hx"]
    weights = [call.tensor(name) for name in ("w_ih", "w_hh")]
    weights += [bias for name in ("b_ih", "b_hh") if (bias := call.optional(name)) is not None]
    out, cell = _layer(call, kind.removesuffix("_cell"), weights, x.dims[-1], [s.dims[-1] for s in states])
    batch = call.broadcast([Value(v.dims[:-1]) for v in (x, *states)])
    result = call.result(kind, (*batch, out), parameters=("w_ih", "w_hh", "b_ih", "b_hh"))
    if len(call.shapes) == 1:
        return result
    return [result, call.result("getitem", (*batch, cell), inputs=[result], extra={"index": 1})]
