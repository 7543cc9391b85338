"""Look-up tables: rows are told apart by their index."""

from __future__ import annotations

from metanet.dimension import fixed
from metanet.rules.registry import Call, Value, rule


@rule("aten.embedding.default")
def embedding(call: Call) -> Value:
    """Take rows of ``[vocabulary, width]`` by index."""
    weight, indices = call.tensor("weight"), call.tensor("indices")
    call.fix(weight.dims[0])
    return call.result(
        "embedding", (*indices.dims, *weight.dims[1:]), parameters=("weight",), attributes=("padding_idx",)
    )


@rule("aten.one_hot.default")
def one_hot(call: Call) -> Value:
    """Write indices as unit vectors."""
    x = call.tensor("self")
    return call.result("one_hot", (*x.dims, fixed(call.shape[-1])))
