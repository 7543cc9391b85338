"""What operations that contract, normalise or act elementwise do along the labels of their dimensions."""

from __future__ import annotations

from metanet.axis import Axis
from metanet.nesting.labels import (
    Label,
    Step,
    Tensors,
    Unreadable,
    aligned,
    lines,
    numbered,
    reader,
    split_lines,
)
from metanet.rules.pointwise import BINARY, UNARY


@reader(
    *UNARY,
    *(kind.strip("_") for kind in BINARY),
    *("where", "lerp", "addcmul", "addcdiv", "masked_fill", "cast"),
)
def pointwise(t: Tensors) -> list[Step]:
    """Act on every index alone; dimensions are aligned from the right."""
    operands = [*t.inputs, *t.parameters.values(), t.result]
    return [Step(tuple(lines(axes, aligned(axes)) for axes in operands))]


@reader("prelu")
def prelu(t: Tensors) -> list[Step]:
    """Act on every index alone; a vector of slopes runs along the channels."""
    given = t.named("self", "weight")
    x, weight = given["self"], given["weight"]
    labels = numbered("d", len(x))
    slopes = [labels[min(1, len(x) - 1)]] if len(weight) == 1 else aligned(weight)
    if len(weight) > 1:
        labels = aligned(x)
    return [Step((lines(x, labels), lines(weight, slopes), lines(t.result, labels)))]


@reader("linear")
def linear(t: Tensors) -> list[Step]:
    """``y[b, o] = Σ_c x[b, c] W[o, c] + b[o]``."""
    given = t.named("input", "weight", "bias")
    x, weight = given["input"], given["weight"]
    batch, c, o = numbered("b", len(x) - 1), ("c", 0), ("o", 0)
    rows = [o] if len(weight) == 2 else []
    tensors = [lines(x, [*batch, c]), lines(weight, [*rows, c]), lines(t.result, [*batch, *rows])]
    if "bias" in given:
        tensors.append(lines(given["bias"], [o] * len(given["bias"])))
    return [Step(tuple(tensors), (frozenset([c]),))]


@reader("matmul", "addmm")
def matmul(t: Tensors) -> list[Step]:
    """``y[b, r, o] = Σ_c x[b, r, c] W[b, c, o]``, batch dimensions broadcast, and a bias aligned with y."""
    given = t.named("left", "weight", "bias")
    x, weight = given["left"], given["weight"]
    c, r, o = ("c", 0), ("r", 1), ("r", 0)
    if len(x) < 2 or len(weight) < 2:
        row = [r] if len(x) > 1 else []
        column = [o] if len(weight) > 1 else []
        if max(len(x), len(weight)) > 2 or "bias" in given:
            raise Unreadable
        tensors = [lines(x, [*row, c]), lines(weight, [c, *column]), lines(t.result, [*row, *column])]
    else:
        tensors = [
            lines(x, [*aligned(x[:-2], drop=2), r, c]),
            lines(weight, [*aligned(weight[:-2], drop=2), c, o]),
            lines(t.result, aligned(t.result)),
        ]
        if len(t.result) != max(len(x), len(weight)):
            raise Unreadable
        if "bias" in given:
            tensors.append(lines(given["bias"], aligned(given["bias"])))
    return [Step(tuple(tensors), (frozenset([c]),))]


@reader("outer")
def outer(t: Tensors) -> list[Step]:
    """``y[a, b] = x[a] w[b]``."""
    a, b = t.inputs
    labels: list[Label] = [("a", 0), ("b", 0)]
    return [Step((lines(a, labels[:1]), lines(b, labels[1:]), lines(t.result, labels)))]


@reader("einsum")
def einsum(t: Tensors) -> list[Step]:
    """Sum over the letters that the result does not have."""
    equation = str(t.op.attribute("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(t.inputs):
        raise Unreadable
    if not arrow:
        dots = "..." if "..." in left else ""
        right = dots + "".join(sorted(c for c in set(left) - set(",.") if left.count(c) == 1))

    def letters(term: str, axes: tuple[Axis, ...]) -> list[Label]:
        before, _, after = term.partition("...")
        middle = len(axes) - len(before) - len(after)
        named = [(letter, 0) for letter in before], [(letter, 0) for letter in after]
        return [*named[0], *(("…", middle - 1 - i) for i in range(middle)), *named[1]]

    tensors = [lines(axes, letters(term, axes)) for term, axes in zip(terms, t.inputs, strict=True)]
    tensors.append(lines(t.result, letters(right, t.result)))
    kept = {line.label for line in tensors[-1]}
    summed = {line.label for tensor in tensors for line in tensor} - kept
    return [Step(tuple(tensors), (frozenset(summed),))]


@reader("bilinear")
def bilinear(t: Tensors) -> list[Step]:
    """``y[b, o] = Σ_ij x[b, i] W[o, i, j] z[b, j] + b[o]``."""
    given = t.named("input1", "input2", "weight", "bias")
    batch, i, j, o = numbered("b", len(t.result) - 1), ("i", 0), ("j", 0), ("o", 0)
    tensors = [
        lines(given["input1"], [*batch, i]),
        lines(given["input2"], [*batch, j]),
        lines(given["weight"], [o, i, j]),
        lines(t.result, [*batch, o]),
    ]
    if "bias" in given:
        tensors.append(lines(given["bias"], [o]))
    return [Step(tuple(tensors), (frozenset([i, j]),))]


@reader("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(t: Tensors) -> list[Step]:
    """Contract channels and kernel positions; with several groups g, for every group on its own.

    Value ``[n, (g i), …]``, weight ``[(g o), i, …]`` or, transposed, ``[(g i), o, …]``; result
    ``[n, (g o), …]``.
    """
    given = t.named("input", "weight", "bias")
    x, weight, groups = given["input"], given["weight"], t.integer("groups", 1)
    transposed, spatial = "transpose" in t.op.kind, len(weight) - 2
    g, i, o = ("g", 0), ("i", 0), ("o", 0)
    read, written, kernel = numbered("s", spatial), numbered("t", spatial), numbered("k", spatial)
    batch = numbered("n", len(x) - spatial - 1)
    at = len(batch)
    value = lines(x, [*batch, i, *read])
    matrix = lines(weight, [*((i, o) if transposed else (o, i)), *kernel])
    result = lines(t.result, [*batch, o, *written])
    bias = lines(given["bias"], [o]) if "bias" in given else ()
    if groups > 1:
        value = split_lines(value, at, t.factor(x[at], groups), (g, i))
        matrix = split_lines(matrix, 0, t.factor(weight[0], groups), (g, i if transposed else o))
        result = split_lines(result, at, t.factor(t.result[at], groups), (g, o))
        bias = split_lines(bias, 0, t.factor(given["bias"][0], groups), (g, o)) if bias else ()
    return [Step((value, matrix, result, bias), (frozenset([i, *read, *kernel]),))]


@reader("batch_norm", "instance_norm")
def batch_norm(t: Tensors) -> list[Step]:
    """Normalise channels on their own, by stored statistics or by those over the other dimensions."""
    given = t.named("input", "weight", "bias", "running_mean", "running_var")
    x = given.pop("input")
    labels = numbered("d", len(x))
    at = min(1, len(x) - 1)
    vectors = [lines(axes, [labels[at]]) for axes in given.values()]
    stage = [] if "running_mean" in given else [label for i, label in enumerate(labels) if i != at]
    if t.op.kind == "instance_norm":
        stage = labels[2:]
    return [Step((lines(x, labels), lines(t.result, labels), *vectors), (frozenset(stage),))]


@reader("group_norm")
def group_norm(t: Tensors) -> list[Step]:
    """Normalise over the channels of a group and all positions, for every group on its own."""
    given = t.named("input", "weight", "bias")
    x = given.pop("input")
    groups = t.integer("num_groups")
    labels = numbered("d", len(x))
    both = ("g", 0), ("w", 0)
    tensors = [split_lines(lines(axes, labels), 1, t.factor(axes[1], groups), both) for axes in (x, t.result)]
    for axes in given.values():
        vector = lines(axes, labels[:1])
        tensors.append(split_lines(vector, 0, t.factor(axes[0], groups), both))
    return [Step(tuple(tensors), (frozenset([both[1], *labels[2:]]),))]


@reader("layer_norm", "rms_norm")
def layer_norm(t: Tensors) -> list[Step]:
    """Normalise over the last dimensions."""
    given = t.named("input", "weight", "bias")
    x = given.pop("input")
    shape = t.op.attribute("normalized_shape")
    if not isinstance(shape, tuple):
        raise Unreadable
    labels = numbered("d", len(x))
    stage = labels[len(x) - len(shape) :]
    vectors = [lines(axes, stage) for axes in given.values()]
    return [Step((lines(x, labels), lines(t.result, labels), *vectors), (frozenset(stage),))]


@reader("weight_norm")
def weight_norm(t: Tensors) -> list[Step]:
    """``w = g v / |v|``, the norm over all dimensions but one."""
    labels = numbered("d", len(t.result))
    dim = t.integer("dim", -1)
    stage = [label for i, label in enumerate(labels) if dim == -1 or i != dim % len(labels)]
    operands = [*t.inputs, *t.parameters.values(), t.result]
    return [Step(tuple(lines(axes, labels) for axes in operands), (frozenset(stage),))]


@reader("embedding")
def embedding(t: Tensors) -> list[Step]:
    """Take rows by index."""
    given = t.named("weight", "indices")
    weight, indices = given["weight"], given["indices"]
    taken, width = numbered("i", len(indices)), numbered("w", len(weight) - 1)
    tensors = lines(weight, [("v", 0), *width]), lines(indices, taken), lines(t.result, [*taken, *width])
    return [Step(tensors, (frozenset([("v", 0)]),))]


@reader("sdpa")
def attention(t: Tensors) -> list[Step]:
    """``softmax_s(Σ_e q[h, t, e] k[h, s, e]) v[h, s, f]``; with grouped queries q has heads ``(h r)``."""
    given = t.named("query", "key", "value", "mask")
    q, k, v = (given[name] for name in ("query", "key", "value"))
    target, source, e, f = ("t", 0), ("s", 0), ("e", 0), ("f", 0)

    def heads(axes: tuple[Axis, ...]) -> list[Label]:
        return aligned(axes[:-2], "h")

    tensors = [
        lines(q, [*heads(q), target, e]),
        lines(k, [*heads(k), source, e]),
        lines(v, [*heads(v), source, f]),
        lines(t.result, [*heads(t.result), target, f]),
    ]
    if "mask" in given:
        mask = given["mask"]
        last = [target, source][-len(mask) :] if mask else []
        tensors.append(lines(mask, [*heads(mask), *last]))
    if len(q) > 2 and len(k) > 2 and t.size(q[-3]) != t.size(k[-3]) > 1:
        kv, both = t.size(k[-3]), (("h", 0), ("query", 0))
        for place, axes in enumerate([q, k, v, t.result, *([given["mask"]] if "mask" in given else [])]):
            at = len(axes) - 3
            if at >= 0 and t.size(axes[at]) == t.size(q[-3]):
                tensors[place] = split_lines(tensors[place], at, t.factor(axes[at], kv), both)
    return [Step(tuple(tensors), (frozenset([e]), frozenset([source])))]


@reader("grouped_mm")
def grouped_mm(t: Tensors) -> list[Step]:
    """``y[r, o] = Σ_c x[r, c] W[e, c, o]`` for the rows r of expert e; see `metanet.nesting.expert_rows`."""
    x, weight, _ = t.inputs
    rows, c, o = ("rows", 0), ("c", 0), ("o", 0)
    tensors = lines(x, [rows, c]), lines(weight, [rows, c, o]), lines(t.result, [rows, o])
    return [Step(tensors, (frozenset([c]),))]
