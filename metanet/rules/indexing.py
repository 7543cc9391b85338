"""Operations that tell indices apart by where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from metanet.derivation.dimension import Dim, fixed, uniform
from metanet.rules.registry import Call, Value, rule


def address(call: Call, dim: Dim, index: Value) -> Dim:
    """Make a dimension the one whose indices are listed as labels, or fix it; return it."""
    if index.labels is not None and index.labels.size == dim.size:
        return call.unify(dim, index.labels)
    call.forget(index)
    return call.fix(dim)


def is_mask(call: Call, place: int) -> bool:
    """Return whether one of the indices is a mask of truth values."""
    listed: Any = call.node.args[1]
    return bool([item for item in listed if item is not None][place].meta["val"].dtype == torch.bool)


@rule("aten.index_select.default", labels="read")
def index_select(call: Call) -> Value:
    """Take listed indices of a dimension."""
    x, index = call.tensor("self"), call.tensor("index")
    at = call.dim("dim", len(x.dims))
    address(call, x.dims[at], index)
    taken = index.dims[0] if index.dims else fixed(1)
    result = call.result("index", (*x.dims[:at], taken, *x.dims[at + 1 :]), extra={"dim": at})
    result.labels = x.labels
    return result


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor", labels="read")
def index(call: Call) -> Value:
    """Take the indices that tensors list; dimensions that are not indexed stay as they are."""
    x = call.tensor("self")
    listed = list(call.argument("indices"))
    indexed = [i for i, item in enumerate(listed) if isinstance(item, Value)]
    indices = [listed[i] for i in indexed]
    if any(is_mask(call, place) for place in range(len(indices))):
        return _masked(call, x, indexed, indices)
    for i, value in zip(indexed, indices, strict=True):
        address(call, x.dims[i], value)
    new = list(call.broadcast(indices))
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    rest = [dim for i, dim in enumerate(x.dims) if i not in indexed]
    first = indexed[0] if together else 0
    result = call.result("index", (*rest[:first], *new, *rest[first:]))
    result.labels = x.labels
    return result


def _masked(call: Call, x: Value, indexed: Sequence[int], indices: Sequence[Value]) -> Value:
    """Take what a mask of the first dimensions says; the others stay as they are."""
    [mask] = indices
    covered = range(indexed[0], indexed[0] + len(mask.dims))
    for i, dim in zip(covered, mask.dims, strict=True):
        call.fix(dim)
        call.fix(x.dims[i])
    dims = (*x.dims[: indexed[0]], fixed(call.shape[indexed[0]]), *x.dims[covered.stop :])
    result = call.result("index", dims)
    result.labels = x.labels
    return result


@rule("aten.gather.default", "aten.take_along_dim.default", labels="read")
def gather(call: Call) -> Value:
    """``y[i, j] = x[i, index[i, j]]``."""
    x, index = call.tensor("self"), next(v for name, v in call.values() if name in ("index", "indices"))
    at = call.dim("dim", len(x.dims))
    dims = []
    for i, (mine, theirs) in enumerate(zip(x.dims, index.dims, strict=True)):
        if i == at:
            address(call, mine, index)
            dims.append(theirs)
        elif mine.size == theirs.size or call.name.startswith("aten.take"):
            dims.append(call.dimensions.broadcast(mine, theirs))
        else:
            call.fix(mine)
            dims.append(call.fix(theirs))
    result = call.result("gather", dims, extra={"dim": at})
    result.labels = x.labels
    return result


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
    labels="read",
)
def constant_like(call: Call) -> Value:
    """Make a constant of a tensor's shape: it depends on no value."""
    return Value(tuple(map(uniform, call.shape)))


@rule(
    *(f"aten.{name}.default" for name in ("empty_like", "new_empty", "rand_like", "randn_like")),
    "aten.randint_like.default",
    labels="read",
)
def arbitrary_like(call: Call) -> Value:
    """Make a tensor of arbitrary values of a tensor's shape: they differ from index to index."""
    return Value(tuple(map(fixed, call.shape)))


@rule("aten.new_empty.default", "aten.new_empty_strided.default", "aten.empty_like.default")
def uninitialised(call: Call) -> Value:
    """Make room of a tensor's shape: nothing is known of what is there, and none of it is the tensor's."""
    return Value(tuple(map(fixed, call.shape)))


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
