"""Broadcasting by name: tensors laid out over each other's dimensions, along which they do not vary."""

from __future__ import annotations

from metanet.derivation.dimension import Dim, fixed, uniform
from metanet.rules.registry import Call, Result, Value, rule


def _expanded(call: Call, x: Value, shape: tuple[int, ...]) -> Value:
    padded = (fixed(1),) * (len(shape) - len(x.dims)) + x.dims
    dims = [dim if dim.size == size else uniform(size) for dim, size in zip(padded, shape, strict=True)]
    return call.result("expand", dims, inputs=[x])


@rule("aten.broadcast_tensors.default")
def broadcast_tensors(call: Call) -> Result:
    """Expand every tensor to the shape of all."""
    values = [value for _, value in call.values()]
    return [_expanded(call, value, shape) for value, shape in zip(values, call.shapes, strict=True)]


@rule("aten.meshgrid.default", "aten.meshgrid.indexing")
def meshgrid(call: Call) -> Result:
    """Lay every vector along a dimension of its own, the first two exchanged with ``indexing="xy"``."""
    values = [value for _, value in call.values()]
    order = list(range(len(values)))
    if call.argument("indexing") == "xy" and len(values) > 1:
        order[0], order[1] = 1, 0
    results: list[Value] = []
    for value, place, shape in zip(values, order, call.shapes, strict=True):
        dims: list[Dim] = list(map(uniform, shape))
        if value.dims:
            dims[place] = value.dims[0]
        results.append(call.result("expand", dims, inputs=[value]))
    return results


@rule("aten.atleast_1d.default", "aten.atleast_2d.default", "aten.atleast_3d.default")
def atleast(call: Call) -> Value:
    """Add dimensions of size one: in front of a matrix's last, after it for three."""
    x = call.tensor("self")
    missing = len(call.shape) - len(x.dims)
    before = missing if len(call.shape) < 3 else 1 if len(x.dims) < 2 and missing else 0
    dims = (*(fixed(1),) * before, *x.dims, *(fixed(1),) * (missing - before))
    return call.result("reshape", dims, inputs=[x])
