"""Contractions: what is summed over is one, and so are the batch dimensions of a product."""

from __future__ import annotations

from collections.abc import Sequence

from metanet.derivation.dimension import Dim
from metanet.rules.registry import Call, Value, rule


@rule("aten.linear.default")
def linear(call: Call) -> Value:
    """``y = x Wᵀ + b``, weight ``[out, in]``."""
    x, weight, bias = call.tensor("input"), call.tensor("weight"), call.optional("bias")
    call.unify(x.dims[-1], weight.dims[-1])
    if len(weight.dims) == 1:
        return call.result("linear", x.dims[:-1], parameters=("weight", "bias"))
    out = weight.dims[0] if bias is None else call.unify(weight.dims[0], bias.dims[-1])
    return call.result("linear", (*x.dims[:-1], out), parameters=("weight", "bias"))


def product_dims(call: Call, left: Value, right: Value) -> tuple[Dim, ...]:
    """Unify the dimensions of a matrix product and return those of the result."""
    a, b = left.dims, right.dims
    call.unify(a[-1], b[-2] if len(b) > 1 else b[0])
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    depth = max(len(a), len(b)) - 2
    if depth <= 0:
        return (*rows, *columns)
    batch = call.broadcast([Value(a[:-2]), Value(b[:-2])])
    return (*batch, *rows, *columns)


@rule(
    "aten.mm.default",
    "aten.bmm.default",
    "aten.matmul.default",
    "aten.mv.default",
    "aten.dot.default",
    "aten.vdot.default",
)
def matmul(call: Call) -> Value:
    """Unify the contracted dimensions and the batch dimensions; a matrix ``[in, out]`` may be a parameter."""
    names = [name for name, _ in call.values()]
    left, right = call.tensor(names[0]), call.tensor(names[1])
    dims = product_dims(call, left, right)
    if right.entry is not None and len(right.dims) == 2 and left.entry is None:
        product = call.result("matmul", dims, inputs=[left])
        assert product.draft is not None
        product.draft.parameters = (("weight", right.entry),)
        return product
    return call.result("matmul", dims)


@rule("aten.addmm.default", "aten.baddbmm.default", "aten.addbmm.default", "aten.addmv.default")
def addmm(call: Call) -> Value:
    """``y = β b + α x W``, weight ``[in, out]``."""
    names = [name for name, _ in call.values()]
    bias, left, right = (call.tensor(name) for name in names)
    dims = product_dims(call, left, right)
    if call.name.startswith("aten.addbmm"):
        dims = dims[1:]
    dims = call.broadcast([Value(dims), bias])
    scales = {key: call.argument(key, 1) for key in ("alpha", "beta") if call.argument(key, 1) != 1}
    if right.entry is None or len(right.dims) != 2 or left.entry is not None:
        return call.result("addmm", dims, inputs=[left, right, bias], extra=scales)
    product = call.result(
        "addmm", dims, inputs=[left] if bias.entry is not None else [left, bias], extra=scales
    )
    assert product.draft is not None
    product.draft.parameters = (("weight", right.entry),)
    if bias.entry is not None:
        product.draft.parameters += (("bias", bias.entry),)
    return product


@rule("aten.tensordot.default")
def tensordot(call: Call) -> Value:
    """Unify the dimensions that are contracted."""
    left, right = call.tensor("self"), call.tensor("other")
    pairs = [
        [int(n) % len(value.dims) for n in call.argument(name)]
        for name, value in (("dims_self", left), ("dims_other", right))
    ]
    for i, j in zip(*pairs, strict=True):
        call.unify(left.dims[i], right.dims[j])
    kept = [
        dim
        for value, gone in zip((left, right), pairs, strict=True)
        for i, dim in enumerate(value.dims)
        if i not in gone
    ]
    return call.result("tensordot", kept, extra={"dims": tuple(map(tuple, pairs))})


@rule("aten.outer.default")
def outer(call: Call) -> Value:
    """Every index of one vector meets every one of the other."""
    left, right = (value for _, value in call.values())
    return call.result("outer", (*left.dims, *right.dims))


@rule("aten.einsum.default")
def einsum(call: Call) -> Value:
    """Unify what carries the same letter."""
    values = [value for _, value in call.values()]
    left, arrow, right = str(call.argument("equation")).replace(" ", "").partition("->")
    terms = left.split(",")
    letters: dict[str, Dim] = {}
    shared: list[tuple[Dim, ...]] = []
    for term, value in zip(terms, values, strict=True):
        before, dots, after = term.partition("...")
        tail = len(after)
        named = [*zip(before, value.dims, strict=False)]
        named += [*zip(after, value.dims[len(value.dims) - tail :], strict=True)]
        if dots:
            shared.append(value.dims[len(before) : len(value.dims) - tail])
        for letter, dim in named:
            letters[letter] = call.dimensions.broadcast(letters[letter], dim) if letter in letters else dim
    ellipsis = call.broadcast([Value(dims) for dims in shared]) if shared else ()
    if not arrow:
        once = sorted(letter for letter in letters if left.count(letter) == 1)
        right = ("..." if shared else "") + "".join(once)
    before, dots, after = right.partition("...")
    dims: Sequence[Dim] = [
        *(letters[letter] for letter in before),
        *(ellipsis if dots else ()),
        *(letters[letter] for letter in after),
    ]
    return call.result("einsum", dims, attributes=("equation",))


@rule("aten.bilinear.default")
def bilinear(call: Call) -> Value:
    """``y_o = x1ᵀ W_o x2 + b_o``."""
    first, second, weight = call.tensor("input1"), call.tensor("input2"), call.tensor("weight")
    bias = call.optional("bias")
    call.unify(first.dims[-1], weight.dims[1])
    call.unify(second.dims[-1], weight.dims[2])
    out = weight.dims[0] if bias is None else call.unify(weight.dims[0], bias.dims[0])
    batch = call.broadcast([Value(first.dims[:-1]), Value(second.dims[:-1])])
    return call.result("bilinear", (*batch, out), parameters=("weight", "bias"))
