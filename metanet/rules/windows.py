"""Sliding windows of a dimension, and values put back where a pooling found them."""

from __future__ import annotations

from metanet.derivation.dimension import fixed
from metanet.rules.registry import Call, Value, rule


@rule("aten.unfold.default")
def unfold(call: Call) -> Value:
    """Take the windows of one dimension, which is fixed: ``[…, n, …]`` to ``[…, windows, …, size]``."""
    x = call.tensor("self")
    at = call.dim("dimension", len(x.dims))
    call.fix(x.dims[at])
    dims = (*x.dims[:at], fixed(call.shape[at]), *x.dims[at + 1 :], fixed(call.shape[-1]))
    return call.result("unfold", dims, attributes=("size", "step"), extra={"dim": at})


@rule("aten.max_unpool2d.default", "aten.max_unpool3d.default")
def max_unpool(call: Call) -> Value:
    """Put pooled values where the pooling found them, channel by channel."""
    count = 2 if "2d" in call.name else 3
    dims = call.broadcast([call.tensor("self"), call.tensor("indices")])
    for dim in dims[len(dims) - count :]:
        call.fix(dim)
    kept = dims[: len(dims) - count]
    return call.result(call.name.split(".")[1], (*kept, *map(fixed, call.shape[len(call.shape) - count :])))
