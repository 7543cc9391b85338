"""Concatenation and its inverses: split, chunk, slice, select."""

from __future__ import annotations

from itertools import accumulate

from metanet.derivation.dimension import Dim, fixed, join
from metanet.rules.registry import Call, Result, Value, rule


@rule("aten.cat.default", "aten.concat.default", "aten.concatenate.default", labels="kept")
def cat(call: Call) -> Value:
    """Lay dimensions end to end; the others are one."""
    values = [v for _, v in call.values() if v.shape != (0,)]
    rank = len(values[0].dims)
    at = call.dim("dim", rank)
    dims = list(call.broadcast([Value((*v.dims[:at], fixed(1), *v.dims[at + 1 :])) for v in values]))
    dims[at] = join([v.dims[at] for v in values])
    return call.result("cat", dims, inputs=values, extra={"dim": at})


@rule("aten.stack.default", labels="kept")
def stack(call: Call) -> Value:
    """Put tensors side by side along a new dimension; if it is only picked from, they need not agree."""
    values = [value for _, value in call.values()]
    at = call.dim("dim", len(values[0].dims) + 1)
    dims = call.broadcast(values)
    return call.result("stack", (*dims[:at], fixed(len(values)), *dims[at:]), extra={"dim": at})


def _part(call: Call, x: Value, at: int, part: Dim, start: int) -> Value:
    dims = (*x.dims[:at], part, *x.dims[at + 1 :])
    extra = {"dim": at, "start": start, "stop": start + part.size, "step": 1}
    return call.result("slice", dims, inputs=[x], extra=extra)


@rule("aten.split.Tensor", "aten.split.sizes", "aten.split_with_sizes.default", "aten.chunk.default",
      "aten.tensor_split.sections", "aten.tensor_split.indices",
      "aten.unsafe_split.Tensor", "aten.unsafe_chunk.default", labels="kept")  # fmt: skip
def split(call: Call) -> Result:
    """Cut a dimension into consecutive parts."""
    x = next(value for _, value in call.values())
    at = call.dim("dim", len(x.dims))
    ends = list(accumulate(shape[at] for shape in call.shapes))
    if ends[-1] != x.dims[at].size:  # sizes that depend on values are stood for by primes
        call.fix(x.dims[at])
        sizes = [shape[at] for shape in call.shapes]
        return [_part(call, x, at, fixed(size), 0) for size in sizes]
    starts = [0, *ends[:-1]]
    inner = sorted({end for end in ends if 0 < end < x.dims[at].size})
    parts = iter(call.cut(x.dims[at], inner))
    return [
        _part(call, x, at, next(parts) if stop > start else fixed(0), start)
        for start, stop in zip(starts, ends, strict=True)
    ]


@rule("aten.slice.Tensor", "aten.narrow.default", stacked=True, labels="kept")
def slice_(call: Call) -> Value:
    """Take a range of a dimension: the rest is cut off.

    Every n-th index is one index of the inner factor of a product; if the size is no multiple of n, the
    dimension is fixed.
    """
    x = call.tensor("self")
    at = call.dim("dim", len(x.dims))
    size, taken = x.dims[at].size, call.shape[at]
    start = min(max(_wrap(call.argument("start"), size, 0), 0), size)
    step = int(call.argument("step", 1) or 1)
    if taken == size:
        return x
    dim = x.dims[at].root()
    if step != 1 and size == step * taken and start < step:
        outer, inner = call.split(call.dimensions.collapse(dim), [taken, step])
        call.fix(inner)
        dims = _without_choices(call, (*x.dims[:at], outer, *x.dims[at + 1 :]))
        extra = {"dim": at, "start": start, "stop": size, "step": step}
        return call.result("slice", dims, inputs=[x], extra=extra)
    if step != 1:
        fixed_dim = call.fix(call.dimensions.collapse(dim))
        extra = {"dim": at, "start": start, "stop": start + step * taken, "step": step}
        part = fixed(taken) if fixed_dim.size else fixed_dim
        dims = _without_choices(call, (*x.dims[:at], part, *x.dims[at + 1 :]))
        return call.result("slice", dims, inputs=[x], extra=extra)
    if dim.state == "selector":
        return _narrow(call, x, at, dim, start, taken)
    cuts = [cut for cut in (start, start + taken) if 0 < cut < size]
    parts = call.cut(dim, cuts)
    part = fixed(0) if not taken else parts[1 if start else 0]
    kept = Value(_without_choices(call, x.dims) if dim.state == "choice" else x.dims, x.operation())
    return _part(call, kept, at, part, start)


def _wrap(number: object, size: int, default: int) -> int:
    if number is None:
        return default
    value = int(number)  # type: ignore[call-overload]
    return int(value + size if value < 0 else value)


def _without_choices(call: Call, dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return tuple(map(call.dimensions.collapse, dims))


def _narrow(call: Call, x: Value, at: int, selector: Dim, start: int, taken: int) -> Value:
    """Keep some indices of a selector."""
    narrowed = Dim(taken, "selector") if taken > 1 else fixed(taken)
    dims = []
    for dim in (d.root() for d in x.dims):
        if dim is selector:
            dims.append(narrowed)
        elif dim.state == "choice" and dim.selector is selector:
            parts = dim.parts[start : start + taken]
            dims.append(parts[0] if taken == 1 else Dim(dim.size, "choice", parts, selector=narrowed))
        else:
            dims.append(dim)
    extra = {"dim": at, "start": start, "stop": start + taken, "step": 1}
    return call.result("slice", dims, inputs=[x], extra=extra)


@rule("aten.select.int", stacked=True, labels="kept")
def select(call: Call) -> Value:
    """Take one index of a dimension: it is set apart from the others."""
    x = call.tensor("self")
    at = call.dim("dim", len(x.dims))
    return _pick(call, x, at, _wrap(call.argument("index"), x.dims[at].size, 0))


@rule("aten.unbind.int", stacked=True, labels="kept")
def unbind(call: Call) -> Result:
    """Take every index of a dimension."""
    x = call.tensor("self")
    at = call.dim("dim", len(x.dims))
    return [_pick(call, x, at, index) for index in range(x.dims[at].size)]


def _pick(call: Call, x: Value, at: int, index: int) -> Value:
    dim = x.dims[at].root()
    dims: list[Dim] = []
    for place, other in enumerate(d.root() for d in x.dims):
        if place == at:
            continue
        chosen = other.state == "choice" and other.selector is not None and other.selector.root() is dim
        dims.append(other.parts[index] if chosen else other)
    if dim.state == "choice":
        dims = list(_without_choices(call, tuple(dims)))
    if dim.state != "selector":
        cuts = [cut for cut in (index, index + 1) if 0 < cut < dim.size]
        call.cut(dim, cuts)
    return call.result("select", dims, inputs=[x], extra={"dim": at, "index": index})
