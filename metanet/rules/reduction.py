"""Reductions and functions of a whole axis. A symmetric one lets the axis vanish, whatever its order."""

from __future__ import annotations

from metanet.derivation.dimension import Dim, fixed
from metanet.rules.registry import Call, Result, Value, freeze, rule
from metanet.skeleton import Attribute

SYMMETRIC = (
    *("mean.default", "mean.dim", "sum.default", "sum.dim_IntList", "amax.default", "amin.default"),
    *("max.default", "min.default", "logsumexp.default", "prod.default", "prod.dim_int"),
    *("var.default", "var.dim", "var.correction", "std.default", "std.dim", "std.correction"),
    *(
        "all.default",
        "all.dim",
        "all.dims",
        "any.default",
        "any.dim",
        "any.dims",
        "nansum.default",
        "nanmean.default",
    ),
    *("norm.Scalar", "norm.ScalarOpt_dim", "linalg_vector_norm.default", "count_nonzero.dim_IntList"),
)


def reduced(call: Call, x: Value) -> tuple[tuple[Dim, ...], tuple[int, ...]]:
    """Return the dimensions that a reduction leaves, and those it takes away."""
    gone = call.dims("dim", len(x.dims))
    keep = bool(call.argument("keepdim", False)) and len(call.shape) == len(x.dims)
    dims = [fixed(1) if i in gone else dim for i, dim in enumerate(x.dims) if keep or i not in gone]
    return tuple(dims), gone


@rule(*(f"aten.{name}" for name in SYMMETRIC))
def reduce(call: Call) -> Value:
    """Reduce in a way that no order of the indices changes."""
    x = next(value for _, value in call.values())
    dims, gone = reduced(call, x)
    kind = call.name.split(".")[1]
    extra: dict[str, Attribute] = {"dims": gone, "keepdim": bool(call.argument("keepdim", False))}
    for name in ("correction", "unbiased", "ord", "p"):
        if call.argument(name) is not None:
            extra[name] = freeze(call.argument(name))
    return call.result(kind, dims, extra=extra)


@rule("aten.var_mean.correction", "aten.std_mean.correction")
def moments(call: Call) -> Result:
    """Return two symmetric reductions."""
    x = next(value for _, value in call.values())
    dims, gone = reduced(call, x)
    extra: dict[str, Attribute] = {"dims": gone, "keepdim": bool(call.argument("keepdim", False))}
    kind = call.name.split(".")[1]
    first = call.result(kind.split("_")[0], dims, extra=extra)
    return [first, call.result("mean", dims, extra=extra)]


@rule("aten.softmax.int", "aten.log_softmax.int", "aten._softmax.default", "aten._log_softmax.default")
def softmax(call: Call) -> Value:
    """Normalise along a dimension, whatever the order of its indices."""
    x = next(value for _, value in call.values())
    kind = call.name.split(".")[1].strip("_")
    return call.result(kind, x.dims, extra={"dim": call.dim("dim", len(x.dims))})


@rule("aten.cosine_similarity.default")
def cosine_similarity(call: Call) -> Value:
    """Compare along a dimension."""
    values = [value for _, value in call.values()]
    dims = call.broadcast(values)
    at = call.dim("dim", len(dims), 1)
    return call.result("cosine_similarity", (*dims[:at], *dims[at + 1 :]), extra={"dim": at})
