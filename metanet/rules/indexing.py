"""Operations that tell indices apart by where they are."""

from __future__ import annotations

from metanet.dimension import Dim, fixed, uniform
from metanet.rules.registry import Call, Value, rule


@rule("aten.index_select.default")
def index_select(call: Call) -> Value:
    """Take listed indices of a dimension."""
    x = call.tensor("self")
    at = call.dim("dim", len(x.dims))
    call.fix(x.dims[at])
    for dim in call.tensor("index").dims:
        call.fix(dim)
    dims = (*x.dims[:at], fixed(call.shape[at]), *x.dims[at + 1 :])
    return call.result("index", dims, extra={"dim": at})


@rule("aten.index.Tensor")
def index(call: Call) -> Value:
    """Take the indices that tensors list; dimensions that are not indexed stay as they are."""
    x = call.tensor("self")
    listed = list(call.argument("indices"))
    indexed = [i for i, item in enumerate(listed) if isinstance(item, Value)]
    for i in indexed:
        call.fix(x.dims[i])
    indices = [listed[i] for i in indexed]
    for value in indices:
        for dim in value.dims:
            call.fix(dim)
    new: list[Dim] = [fixed(dim.size) for dim in call.broadcast(indices)]
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    before = [dim for i, dim in enumerate(x.dims) if i not in indexed and (together and i < indexed[0])]
    after = [dim for i, dim in enumerate(x.dims) if i not in indexed and not (together and i < indexed[0])]
    dims = [*before, *new, *after]
    if [dim.size for dim in dims] != list(call.shape):  # an index of truth values
        for dim in x.dims:
            call.fix(dim)
        dims = list(map(fixed, call.shape))
    return call.result("index", dims)


@rule("aten.gather.default", "aten.take_along_dim.default")
def gather(call: Call) -> Value:
    """Take an index of one dimension for every position of the others."""
    x, places = call.tensor("self"), next(v for name, v in call.values() if name in ("index", "indices"))
    at = call.dim("dim", len(x.dims))
    dims = []
    for i, (mine, theirs) in enumerate(zip(x.dims, places.dims, strict=True)):
        if i != at and mine.size == theirs.size:
            dims.append(call.unify(mine, theirs))
        else:
            call.fix(mine)
            dims.append(call.fix(theirs))
    return call.result("gather", dims, extra={"dim": at})


@rule("aten.flip.default", "aten.roll.default")
def reorder(call: Call) -> Value:
    """Reorder the indices of some dimensions."""
    x = call.tensor("self")
    moved = call.dims("dims", len(x.dims))
    dims = [call.fix(dim) if i in moved else dim for i, dim in enumerate(x.dims)]
    extra = {"dims": moved}
    names = ("shifts",) if "shifts" in call.arguments else ()
    return call.result(call.name.split(".")[1], dims, attributes=names, extra=extra)


@rule("aten.tril.default", "aten.triu.default")
def triangle(call: Call) -> Value:
    """Keep a triangle of the last two dimensions."""
    x = call.tensor("self")
    dims = (*x.dims[:-2], call.fix(x.dims[-2]), call.fix(x.dims[-1]))
    return call.result(call.name.split(".")[1], dims, attributes=("diagonal",))


@rule(
    "aten.zeros_like.default",
    "aten.ones_like.default",
    "aten.full_like.default",
    "aten.new_zeros.default",
    "aten.new_ones.default",
    "aten.new_full.default",
)
def constant_like(call: Call) -> Value:
    """Make a constant of a tensor's shape: it depends on no value."""
    return Value(tuple(map(uniform, call.shape)))


@rule("aten.copy.default")
def copy(call: Call) -> Value:
    """Write a tensor over another, broadcast to its shape."""
    shape = Value(tuple(map(uniform, call.shape)))
    return call.result("expand", call.broadcast([shape, call.tensor("src")]), inputs=[call.tensor("src")])


@rule("aten.select_scatter.default", "aten.slice_scatter.default")
def scatter(call: Call) -> Value:
    """Write a tensor into a part of another, which fixes the dimension that has the part."""
    x, source = call.tensor("self"), call.tensor("src")
    at = call.dim("dim", len(x.dims))
    theirs = list(source.dims)
    if call.name.startswith("aten.select"):
        theirs.insert(at, fixed(1))
    dims = [
        call.unify(mine, other) if i != at else mine
        for i, (mine, other) in enumerate(zip(x.dims, theirs, strict=True))
    ]
    dims[at] = call.fix(dims[at])
    call.fix(theirs[at])
    names = tuple(name for name in ("index", "start", "end", "step") if name in call.arguments)
    return call.result(call.name.split(".")[1], dims, attributes=names, extra={"dim": at})
