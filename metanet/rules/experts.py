"""Mixtures of experts: rows in blocks, one per expert, each with a matrix of its own.

The rows are sorted by their expert's label, counted, and the running sum of the counts says where every
block ends. The order of the blocks, and so of the rows, follows that of the experts, which stay
interchangeable as long as the sums are read by an operation on blocks alone.
"""

from __future__ import annotations

from metanet.derivation.dimension import Dim, fixed
from metanet.rules.registry import Call, Value, rule


@rule("aten.histc.default", "aten.bincount.default", labels="read")
def count_labels(call: Call) -> Value:
    """Count how often every label occurs; other numbers are counted in bins of fixed places."""
    x = call.tensor("self")
    low, high = call.argument("min", 0), call.argument("max", 0)
    size = call.shape[0]
    exact = call.name.startswith("aten.bincount") or (low == 0 and high == size - 1)
    if x.labels is None or x.labels.size != size or not exact or call.optional("weights") is not None:
        call.forget(x)
        return call.result("histc", (fixed(size),))
    result = call.result("histc", (x.labels,))
    result.offsets = (
        (x.dims[0], x.labels) if len(x.dims) == 1 and x.dims[0].root().state == "sorted" else None
    )
    return result


@rule("aten.cumsum.default", "aten.cumprod.default", "aten.logcumsumexp.default", labels="read")
def cumulate(call: Call) -> Value:
    """Accumulate along a dimension, in the order of its indices."""
    x = next(value for _, value in call.values())
    at = call.dim("dim", len(x.dims))
    dims = list(x.dims)
    if x.offsets is not None and dims[at].root() is x.offsets[1].root() and "cumsum" in call.name:
        result = call.result("cumsum", (fixed(dims[at].size),), extra={"dim": at})
        result.offsets = x.offsets
        return result
    call.forget(x)
    dims[at] = call.fix(dims[at])
    return call.result(call.name.split(".")[1], dims, extra={"dim": at})


@rule("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default", labels="read")
def grouped_mm(call: Call) -> Value:
    """Multiply every block of rows ``[s, i]`` by its own matrix of ``[e, i, o]``."""
    (_, x), (_, weight), (_, ends), *more = call.values()
    assert len(x.dims) == 2
    assert len(weight.dims) == 3
    assert not more
    call.unify(x.dims[1], weight.dims[1])
    rows: Dim = x.dims[0].root()
    if ends.offsets is not None and ends.offsets[0].root() is rows:
        call.unify(weight.dims[0], ends.offsets[1])
    else:
        call.forget(ends)
        call.fix(weight.dims[0])
        rows = call.fix(rows)
    return call.result("grouped_mm", (rows, weight.dims[2]))
