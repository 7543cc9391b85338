"""Distances between vectors: the coordinates are summed over."""

from __future__ import annotations

from metanet.derivation.dimension import fixed
from metanet.rules.registry import Call, Value, rule


@rule("aten.cdist.default", "aten._cdist_forward.default", "aten._euclidean_dist.default")
def pairwise(call: Call) -> Value:
    """Distances ``[…, p, r]`` of the rows of ``[…, p, m]`` and ``[…, r, m]``."""
    first, second = call.tensor("x1"), call.tensor("x2")
    call.unify(first.dims[-1], second.dims[-1])
    batch = call.broadcast([Value(first.dims[:-2]), Value(second.dims[:-2])]) if len(call.shape) > 2 else ()
    return call.result("cdist", (*batch, first.dims[-2], second.dims[-2]), attributes=("p",))


@rule("aten.pairwise_distance.default")
def paired(call: Call) -> Value:
    """Distances of the rows of two tensors, one by one."""
    *rows, _ = call.broadcast([value for _, value in call.values()])
    dims = (*rows, fixed(1)) if call.argument("keepdim", False) else rows
    return call.result("pairwise_distance", dims, attributes=("p", "eps"))
