"""Look-up tables: rows are told apart by their index."""

from __future__ import annotations

from metanet.derivation.dimension import fixed, join
from metanet.rules.indexing import address
from metanet.rules.registry import Call, Result, Value, rule


@rule("aten.embedding.default", labels="read")
def embedding(call: Call) -> Value:
    """Take rows of ``[vocabulary, width]`` by index; those of a codebook are interchangeable."""
    weight, indices = call.tensor("weight"), call.tensor("indices")
    address(call, weight.dims[0], indices)
    return call.result(
        "embedding", (*indices.dims, *weight.dims[1:]), parameters=("weight",), attributes=("padding_idx",)
    )


@rule("aten.embedding_bag.padding_idx", "aten.embedding_bag.default", "aten._embedding_bag.default")
def embedding_bag(call: Call) -> Result:
    """Reduce rows of ``[vocabulary, width]`` in bags."""
    weight = call.tensor("weight")
    for name, value in call.values():
        for dim in value.dims if name != "weight" else weight.dims[:1]:
            call.fix(dim)
    dims = (fixed(call.shape[0]), weight.dims[1])
    bag = call.result("embedding_bag", dims, parameters=("weight",), attributes=("mode",))
    return [bag, *(Value(tuple(map(fixed, shape))) for shape in call.shapes[1:])]


@rule("aten.one_hot.default", labels="read")
def one_hot(call: Call) -> Value:
    """Write indices as unit vectors: labels give the dimension that they are labels of."""
    x = call.tensor("self")
    extra = call.shape[-1] - (x.labels.size if x.labels is not None else 0)
    if x.labels is None or extra < 0:
        call.forget(x)
        return call.result("one_hot", (*x.dims, fixed(call.shape[-1])))
    return call.result("one_hot", (*x.dims, join([x.labels, *map(fixed, [1] * extra)])))
