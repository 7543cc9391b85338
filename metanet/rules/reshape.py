"""Views: row-major reshapes refine dimensions into products, transpositions reorder them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx

from metanet.derivation.dimension import Dim, factors, fixed, fuse, uniform
from metanet.rules.registry import Call, Value, rule


@rule(
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.view_as.default",
    "aten.reshape_as.default",
    "aten.ravel.default",
    stacked=True,
    labels="kept",
)
def reshape(call: Call) -> Value:
    """Regroup the factors of dimensions, row-major.

    Where a new dimension is afterwards only picked from (``qkv`` as ``[…, 3, heads, width]``), what comes
    right of it in the same old dimension may differ from index to index: the old one is a concatenation.
    """
    x = call.tensor("self")
    for at, size in enumerate(call.shape):
        if size > 1 and _only_picked(call.node, at):
            stacked = _stack(call, x.dims, at)
            if stacked is not None:
                return call.result("reshape", stacked, inputs=[x])
    return call.result("reshape", call.dimensions.reshape(x.dims, call.shape), inputs=[x])


def _stack(call: Call, dims: Sequence[Dim], at: int) -> list[Dim] | None:
    """Return the dimensions of a reshape with a selector at one place, or None if nothing is gained."""
    shape, old = call.shape, [dim.size for dim in dims]
    first, last = _own_section(old, shape, at)
    if first is None or last is None:
        return None
    source, (start, stop) = dims[first[0] : first[1]], last
    if (
        start <= at < stop - 1
        and len(source) == 1
        and source[0].root().state in ("plain", "concat", "product")
    ):
        outer = list(shape[start:at])
        inner = list(shape[at + 1 : stop])
        whole = 1
        for size in inner:
            whole *= size
        count = shape[at]
        *heads, rest = call.dimensions.reshape(source, [*outer, count * whole])
        parts = call.cut(rest, [whole * i for i in range(1, count)])
        options = [call.dimensions.reshape([part], inner) for part in parts]
        selector = Dim(count, "selector")
        choices = [
            Dim(size, "choice", tuple(option[i] for option in options), selector=selector)
            if size > 1
            else fixed(1)
            for i, size in enumerate(inner)
        ]
        before = call.dimensions.reshape(dims[: first[0]], shape[:start])
        after = call.dimensions.reshape(dims[first[1] :], shape[stop:])
        return [*before, *heads, selector, *choices, *after]
    return None


def _own_section(
    old: Sequence[int], new: Sequence[int], at: int
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Return the old and the new dimensions of the smallest section of a reshape that holds a new one."""
    i = j = 0
    while j < len(new):
        start_i, start_j = i, j
        mine, theirs = 1, new[j]
        j += 1
        while mine != theirs:
            if mine < theirs and i < len(old):
                mine, i = mine * old[i], i + 1
            elif j < len(new):
                theirs, j = theirs * new[j], j + 1
            else:
                return None, None
        if start_j <= at < j:
            return (start_i, i), (start_j, j)
    return None, None


_MOVES = (
    "transpose",
    "permute",
    "unsqueeze",
    "squeeze",
    "contiguous",
    "clone",
    "alias",
    "detach",
    "to.",
    "_to_copy",
)


def _only_picked(node: fx.Node, at: int) -> bool:
    """Return whether a dimension of a node is only ever picked from, one index at a time."""
    if not node.users:
        return False
    for user in node.users:
        name = str(user.target).removeprefix("aten.")
        if user.args[:1] != (node,) or user.op != "call_function" or user.target is operator.getitem:
            return False
        rank = len(node.meta["val"].shape)
        if name.startswith(("select.int", "unbind.int")):
            dim: Any = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim", 0)
            if int(dim) % rank != at:
                return False
            continue
        if not name.startswith(_MOVES):
            return False
        place = _moved(user, rank).index(at) if at in _moved(user, rank) else None
        if place is None or not _only_picked(user, place):
            return False
    return True


def _moved(node: fx.Node, rank: int) -> list[int | None]:
    """Return, for every dimension of a moving operation's result, the dimension it was before."""
    name = str(node.target).removeprefix("aten.").split(".")[0]
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    numbers: list[Any] = [*node.args[1:], *node.kwargs.values()]
    places: list[int | None] = list(range(rank))
    if name == "transpose":
        a, b = (int(n) % rank for n in numbers[:2])
        places[a], places[b] = places[b], places[a]
    elif name == "permute":
        places = [int(n) % rank for n in numbers[0]]
    elif name == "unsqueeze":
        places.insert(int(numbers[0]) % (rank + 1), None)
    elif name == "squeeze":
        wanted = numbers[0] if numbers else list(range(rank))
        listed = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        gone = {int(n) % rank for n in listed if shape[int(n)] == 1}
        places = [p for p in places if p not in gone]
    return places


@rule("aten.transpose.int", "aten.permute.default", "aten.t.default", "aten.numpy_T.default",
      "aten.swapaxes.default", "aten.swapdims.default", "aten.movedim.int", "aten.movedim.intlist",
      "aten.mT.default", "aten.adjoint.default", stacked=True, labels="kept")  # fmt: skip
def transpose(call: Call) -> Value:
    """Reorder the dimensions."""
    x = call.tensor("self")
    order = _order(call, len(x.dims))
    return call.result("transpose", [x.dims[i] for i in order], inputs=[x], extra={"dims": tuple(order)})


def _order(call: Call, rank: int) -> list[int]:
    name = call.name.removeprefix("aten.").split(".")[0]
    order = list(range(rank))
    if name == "permute":
        return [int(n) % rank for n in call.argument("dims")]
    if name == "numpy_T" or (name == "t" and rank == 2):
        return order[::-1]
    if name == "t":
        return order
    if name == "movedim":
        sources, targets = call.argument("source"), call.argument("destination")
        listed = [v if isinstance(v, (list, tuple)) else [v] for v in (sources, targets)]
        moves = sorted((int(b) % rank, int(a) % rank) for a, b in zip(*listed, strict=True))
        order = [i for i in order if i not in {a for _, a in moves}]
        for target, source in moves:
            order.insert(target, source)
        return order
    if name in ("mT", "adjoint"):
        a, b = rank - 2, rank - 1
    else:
        names = ("axis0", "axis1") if name == "swapaxes" else ("dim0", "dim1")
        a, b = (call.dim(n, rank) for n in names)
    order[a], order[b] = order[b], order[a]
    return order


@rule("aten.unsqueeze.default", stacked=True, labels="kept")
def unsqueeze(call: Call) -> Value:
    """Insert a dimension of size one."""
    x = call.tensor("self")
    at = call.dim("dim", len(x.dims) + 1)
    return call.result("reshape", (*x.dims[:at], fixed(1), *x.dims[at:]), inputs=[x])


@rule("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims", stacked=True, labels="kept")
def squeeze(call: Call) -> Value:
    """Remove dimensions of size one."""
    x = call.tensor("self")
    gone = call.dims("dim", len(x.dims))
    kept = [dim for i, dim in enumerate(x.dims) if not (i in gone and dim.size == 1)]
    return call.result("reshape", kept, inputs=[x])


@rule("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default", labels="kept")
def expand(call: Call) -> Value:
    """Repeat dimensions of size one: the value does not vary along them."""
    x = call.tensor("self")
    padded: Sequence[Dim] = (fixed(1),) * (len(call.shape) - len(x.dims)) + x.dims
    dims = [dim if dim.size == size else uniform(size) for dim, size in zip(padded, call.shape, strict=True)]
    return call.result("expand", dims, inputs=[x])


@rule("aten.repeat.default", "aten.tile.default", labels="kept")
def repeat(call: Call) -> Value:
    """Repeat dimensions: ``n`` times the same indices is a product with the copies outside."""
    x = call.tensor("self")
    padded: Sequence[Dim] = (fixed(1),) * (len(call.shape) - len(x.dims)) + x.dims
    dims = [
        dim
        if dim.size == size
        else uniform(size)
        if dim.size == 1
        else fuse([uniform(size // dim.size), dim])
        for dim, size in zip(padded, call.shape, strict=True)
    ]
    return call.result("repeat", dims, inputs=[x])


@rule("aten.repeat_interleave.self_int", labels="kept")
def repeat_interleave(call: Call) -> Value:
    """Repeat every index: a product with the copies inside."""
    x = call.tensor("self")
    if call.argument("dim") is None:
        [whole] = call.dimensions.reshape(x.dims, [call.shape[0] // int(call.argument("repeats"))])
        return call.result("repeat", [fuse([whole, uniform(int(call.argument("repeats")))])], inputs=[x])
    at = call.dim("dim", len(x.dims))
    copies = fuse([x.dims[at], uniform(call.shape[at] // x.dims[at].size)])
    return call.result("repeat", (*x.dims[:at], copies, *x.dims[at + 1 :]), inputs=[x])


@rule("aten.repeat_interleave.self_Tensor")
def repeat_each(call: Call) -> Value:
    """Repeat every index a number of times of its own, which tells them apart."""
    x = call.tensor("self")
    at = call.dim("dim", len(x.dims))
    for dim in (x.dims[at], *call.tensor("repeats").dims):
        call.fix(dim)
    return call.result("repeat", (*x.dims[:at], fixed(call.shape[at]), *x.dims[at + 1 :]))


@rule("aten.diag_embed.default")
def diag_embed(call: Call) -> Value:
    """Write a dimension on a diagonal: two dimensions are that one."""
    x = call.tensor("self")
    if int(call.argument("offset", 0)) != 0:
        raise LookupError("a diagonal beside the main one")
    first, second = sorted((call.dim("dim1", len(x.dims) + 1, -2), call.dim("dim2", len(x.dims) + 1, -1)))
    dims = list(x.dims[:-1])
    dims.insert(first, x.dims[-1])
    dims.insert(second, x.dims[-1])
    return call.result("diag_embed", dims)


@rule("aten.diagonal.default")
def diagonal(call: Call) -> Value:
    """Take the main diagonal: both dimensions are one. Any other diagonal fixes them."""
    x = call.tensor("self")
    first, second = call.dim("dim1", len(x.dims), 0), call.dim("dim2", len(x.dims), 1)
    kept = [dim for i, dim in enumerate(x.dims) if i not in (first, second)]
    a, b = x.dims[first], x.dims[second]
    if int(call.argument("offset", 0)) == 0 and a.size == b.size and len(factors(a)) == len(factors(b)):
        return call.result("diagonal", (*kept, call.unify(a, b)))
    call.fix(a)
    call.fix(b)
    return call.result("diagonal", (*kept, fixed(call.shape[-1])))
