"""Writing to listed places: an index that is a label of the dimension keeps it, any other one fixes it."""

from __future__ import annotations

from collections.abc import Sequence

from metanet.derivation.dimension import Dim, fixed
from metanet.rules.indexing import address, is_mask
from metanet.rules.registry import Call, Result, Value, is_range, rule


def _beside(call: Call, dims: Sequence[Dim], other: Sequence[Dim], at: int) -> list[Dim]:
    """Unify two tensors' dimensions beside one; of a shorter one only the first indices are met."""
    result = list(dims)
    for i, (mine, theirs) in enumerate(zip(dims, other, strict=True)):
        if i != at:
            same = mine.size == theirs.size
            result[i] = call.unify(mine, theirs) if same else call.fix(mine)
            if not same:
                call.fix(theirs)
    return result


@rule(
    *(f"aten.scatter.{overload}" for overload in ("src", "value", "reduce", "value_reduce")),
    *("aten.scatter_add.default", "aten.scatter_reduce.two"),
    labels="read",
)
def scatter(call: Call) -> Value:
    """``y[i][index[i, j]] = source[i, j]``, or a sum of them."""
    x, index, source = call.tensor("self"), call.tensor("index"), call.optional("src")
    call.forget(*(value for value in (x, source) if value is not None))
    at = call.dim("dim", len(x.dims))
    dims = _beside(call, x.dims, index.dims, at)
    if source is not None:
        dims = _beside(call, dims, source.dims, at)
        _beside(call, index.dims, source.dims, -1)
    dims[at] = address(call, dims[at], index)
    return call.result("scatter", dims, attributes=("reduce", "value"), extra={"dim": at})


@rule("aten.index_add.default", "aten.index_copy.default", "aten.index_fill.int_Scalar", labels="read")
def index_add(call: Call) -> Value:
    """Add whole slices to, or write them over, listed ones."""
    x, index, source = call.tensor("self"), call.tensor("index"), call.optional("source")
    call.forget(*(value for value in (x, source) if value is not None))
    at = call.dim("dim", len(x.dims))
    dims = list(x.dims)
    if source is not None:
        dims = _beside(call, dims, source.dims, at)
        if index.dims:
            call.unify(source.dims[at], index.dims[0])
    dims[at] = address(call, dims[at], index)
    return call.result(call.name.split(".")[1], dims, extra={"dim": at})


@rule("aten.index_put.default", "aten._unsafe_index_put.default", labels="read")
def index_put(call: Call) -> Value:
    """Write values to listed places; dimensions that are not listed stay as they are.

    Places that are a permutation, written with 0, 1, …, give the inverse permutation: the values are labels
    of the places' own dimension.
    """
    x, values = call.tensor("self"), call.tensor("values")
    listed = list(call.argument("indices"))
    indexed = [i for i, item in enumerate(listed) if isinstance(item, Value)]
    indices = [listed[i] for i in indexed]
    call.forget(x)
    if len(indexed) == 1 and len(x.dims) == 1 and is_range(values) and values.shape == indices[0].shape:
        [row] = indices[0].dims
        result = call.result("index_put", [address(call, x.dims[0], indices[0])])
        result.labels = row.root() if row.root().state in ("sorted", "plain", "product", "concat") else None
        return result
    call.forget(values)
    if any(is_mask(call, place) for place in range(len(indices))):
        return _masked(call, x, values, indices)
    dims = list(x.dims)
    for i, index in zip(indexed, indices, strict=True):
        dims[i] = address(call, dims[i], index)
    new = list(call.broadcast(indices))
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    rest = [i for i in range(len(dims)) if i not in indexed]
    first = indexed[0] if together else 0
    written = call.broadcast(
        [Value((*(dims[i] for i in rest[:first]), *new, *(dims[i] for i in rest[first:]))), values]
    )
    for i, dim in zip(rest, (*written[:first], *written[first + len(new) :]), strict=True):
        dims[i] = dim
    return call.result("index_put", dims)


def _masked(call: Call, x: Value, values: Value, indices: Sequence[Value]) -> Value:
    """Write where a mask says; the dimensions right of it stay as they are."""
    covered = sum(len(index.dims) for index in indices)
    for dim in (dim for index in indices for dim in index.dims):
        call.fix(dim)
    rest = x.dims[covered:]
    wide = values.dims[-len(rest) :] if rest else ()
    dims = call.broadcast([Value(rest), Value(wide)]) if rest else ()
    for dim in values.dims[: len(values.dims) - len(wide)]:
        call.fix(dim)
    return call.result("index_put", (*map(call.fix, x.dims[:covered]), *dims))


@rule(
    "aten.nonzero.default", "aten.masked_select.default", "aten.where.default", "aten.nonzero_numpy.default"
)
def nonzero(call: Call) -> Result:
    """List places, or what is there, in order: how many there are depends on the values."""
    for _, value in call.values():
        for dim in value.dims:
            call.fix(dim)
    first = call.result(call.name.split(".")[1], tuple(map(fixed, call.shape)))
    if len(call.shapes) == 1 and not isinstance(call.node.meta["val"], (list, tuple)):
        return first
    others = range(1, len(call.shapes))
    return [first, *(call.result("getitem", first.dims, inputs=[first], extra={"index": i}) for i in others)]


@rule("aten.masked_scatter.default")
def masked_scatter(call: Call) -> Value:
    """Fill the masked places in turn; where whole rows are masked, their last dimension stays as it is."""
    x, mask, source = call.tensor("self"), call.tensor("mask"), call.tensor("source")
    last = mask.dims[-1].root()
    uniform = last.state == "any" or last.size == 1
    rows = uniform and len(source.dims) > 1 and source.dims[-1].size == x.dims[-1].size
    if rows:
        call.unify(x.dims[-1], source.dims[-1])
    for dim in (*x.dims[: -1 if rows else None], *source.dims[: -1 if rows else None], *mask.dims):
        call.fix(dim)
    return call.result("masked_scatter", (*map(fixed, x.shape[:-1]), x.dims[-1]))
