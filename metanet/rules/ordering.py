"""Sorting and selecting by value: what comes first depends on the values and not on the order of the indices.

The values are told apart by their rank, and where they were is a *label* of the dimension (`Value.labels`):
an index that is permuted with it. So an expert stays interchangeable with others although a router picks it.
"""

from __future__ import annotations

from math import inf

from metanet.derivation.dimension import Dim, fixed, leaves
from metanet.rules.pointwise import UNARY
from metanet.rules.reduction import reduced
from metanet.rules.registry import Call, Draft, Result, Value, freeze, rule
from metanet.skeleton import Attribute

GENERIC = {
    **dict.fromkeys(("linear", "addmm", "matmul", "einsum", "bilinear", "sdpa", "cdist", "lstm", "gru"), -1),
    **dict.fromkeys((f"conv{n}d" for n in (1, 2, 3)), 1),
}
"""Operations that make a dimension along which values differ whatever they read, and that dimension."""
PASSING = frozenset(
    (
        *("reshape", "transpose", "slice", "select", "softmax", "log_softmax", "div", "sum", "mean", "topk"),
        *("sort", "amax", "amin", "norm", "linalg_vector_norm", "logsumexp", "var", "std", "layer_norm"),
        *("batch_norm", "instance_norm", "rms_norm", "group_norm"),
        *(set(UNARY) - {"relu", "relu6", "hardtanh", "hardsigmoid", "hardshrink", "softshrink", "threshold"}),
    )
) - {"round", "floor", "ceil", "trunc", "sign", "sgn", "clamp", "clamp_min", "clamp_max", "logical_not"}
"""Operations whose values differ where those of what they read do.

Which of equal values comes first depends on their places.
"""
FILLS = frozenset(("masked_fill", "where", "scatter"))


def may_tie(operation: Draft, along: frozenset[Dim], depth: int = 16) -> bool:
    """Return whether values may be equal, other than -inf, that come from different indices.

    Args:
        operation: what makes the values.
        along: variables of the dimension of these indices.
        depth: how far to look.
    """
    if not depth:
        return True
    if operation.kind == "parameter" or (
        operation.kind in GENERIC and along <= _variables(operation.dims[GENERIC[operation.kind]])
    ):
        return False
    sources = operation.inputs
    if operation.kind in FILLS:  # the mask, or the index, is not among the values
        sources = sources[1:] if operation.kind == "where" else sources[:1]
    carriers = [source for source in sources if along & _variables(*source.dims)]
    ties = [may_tie(source, along, depth - 1) for source in carriers]
    if operation.kind in FILLS:
        return any(ties) or not _fills_lowest(operation)
    if operation.kind in ("add", "sub"):
        return all(ties)
    return (operation.kind not in PASSING and operation.kind != "mul") or not ties or any(ties)


def _variables(*dims: Dim) -> frozenset[Dim]:
    return frozenset(leaf for dim in dims for leaf in leaves(dim))


def _fills_lowest(operation: Draft) -> bool:
    """Return whether all that is written where a mask or an index says so is -inf."""
    written = dict(operation.attributes)
    numbers = [
        number for name in ("value", "self", "other") if isinstance(number := written.get(name), float)
    ]
    constants = [source for source in operation.inputs if _is_lowest(source)]
    return len(constants) == 1 or numbers == [-inf]


def _is_lowest(operation: Draft) -> bool:
    return operation.kind == "constant" and dict(operation.attributes).get("value") == -inf


def places(call: Call, x: Value, at: int) -> Dim | None:
    """Return the dimension that places along another are labels of; None, and fix it, if that cannot be."""
    dim = x.dims[at].root()
    if dim.state in ("fixed", "any"):
        return None
    if not call.is_float() or x.draft is None or may_tie(x.draft, _variables(dim)):
        call.dimensions.lose(dim, f"{call.name} (equal values are told apart by their places)")
        return None
    return dim


def _sorted_labels(call: Call, x: Value, at: int) -> list[Value]:
    """Sort labels: the rows come in blocks, one per label, whose order follows the labelled dimension."""
    assert x.labels is not None
    call.fix(x.dims[at])
    rows = Dim(x.dims[at].size, "sorted", selector=x.labels)
    first = call.result("sort", (rows,), extra={"dim": at})
    first.labels = x.labels
    return [first, call.result("getitem", (rows,), inputs=[first], extra={"index": 1})]


@rule(
    *(f"aten.{name}" for name in ("sort.default", "sort.stable", "topk.default", "kthvalue.default")),
    *(f"aten.{name}" for name in ("median.dim", "nanmedian.dim", "argsort.default", "argsort.stable")),
    labels="read",
)
def sort(call: Call) -> Result:
    """Order a dimension by value, or take those of some ranks, and say where they were."""
    x = call.tensor("self")
    kind = call.name.split(".")[1]
    at = call.dim("dim", len(x.dims), -1)
    if x.labels is not None and len(x.dims) == 1 and kind in ("sort", "argsort"):
        found = _sorted_labels(call, x, at)
        return found if kind == "sort" else found[1]
    call.forget(x)
    where = places(call, x, at)
    keep = len(call.shape) == len(x.dims)
    dims = [fixed(call.shape[at]) if i == at else dim for i, dim in enumerate(x.dims) if keep or i != at]
    extra: dict[str, Attribute] = {"dim": at}
    for name in ("k", "descending", "largest"):
        if call.argument(name) is not None:
            extra[name] = freeze(call.argument(name))
    return _with_places(call, call.result(kind, dims, inputs=[x], extra=extra), where)


@rule("aten.max.dim", "aten.min.dim", "aten.argmax.default", "aten.argmin.default")
def extremum(call: Call) -> Result:
    """Find an extremum and where it is."""
    x = call.tensor("self")
    dims, gone = reduced(call, x)
    kind = call.name.split(".")[1]
    extra: dict[str, Attribute] = {"dims": gone, "keepdim": bool(call.argument("keepdim", False))}
    where = None
    if call.argument("dim") is not None:
        where = places(call, x, gone[0]) if used(call, -1) else None
    else:
        for dim in x.dims:
            call.fix(dim)
    return _with_places(call, call.result(kind, dims, extra=extra), where)


def _with_places(call: Call, found: Value, where: Dim | None) -> Result:
    """Return what was found and where: the places are a second output, or all that is returned."""
    if len(call.shapes) == 1:
        found.labels = where
        return found
    second = call.result("getitem", found.dims, inputs=[found], extra={"index": 1})
    second.labels = where
    return [found, second]


def used(call: Call, index: int) -> bool:
    """Return whether a result is read at all; the last one for -1."""
    if len(call.shapes) == 1:
        return True
    return any(user.args[1:] == (index % len(call.shapes),) and user.users for user in call.node.users)


@rule("aten.median.default", "aten.quantile.default", "aten.quantile.scalar", "aten.nanquantile.scalar")
def quantile(call: Call) -> Value:
    """Take a quantile, which no order of the indices changes."""
    x = call.tensor("self")
    if len(call.shape) > len(x.dims):
        raise LookupError("several quantiles at once")
    return call.result(
        call.name.split(".")[1], reduced(call, x)[0], extra={"dims": call.dims("dim", len(x.dims))}
    )
