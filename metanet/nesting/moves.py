"""What operations that move, reduce or pool values do along the labels of their dimensions."""

from __future__ import annotations

from metanet.axis import Axis, Fixed, Perm, atoms
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
from metanet.rules.reduction import SYMMETRIC

REDUCTIONS = tuple(dict.fromkeys(name.split(".")[0] for name in SYMMETRIC))
SPATIAL = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")


@reader("softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp")
def along(t: Tensors) -> list[Step]:
    """Combine the indices of one dimension."""
    (x,) = t.inputs
    labels = numbered("d", len(x))
    stage = frozenset([labels[t.integer("dim") % len(x)]])
    return [Step((lines(x, labels), lines(t.result, labels)), (stage,))]


@reader("cosine_similarity")
def cosine_similarity(t: Tensors) -> list[Step]:
    """Compare along a dimension."""
    labels = numbered("d", len(t.inputs[0]))
    at = t.integer("dim") % len(labels)
    kept = [label for i, label in enumerate(labels) if i != at]
    tensors = [lines(axes, labels) for axes in t.inputs]
    return [Step((*tensors, lines(t.result, kept)), (frozenset([labels[at]]),))]


@reader(*REDUCTIONS)
def reduction(t: Tensors) -> list[Step]:
    """Reduce some dimensions jointly; an extremum along units may also say which of them it is."""
    (x,) = t.inputs
    gone = t.op.attribute("dims")
    if not isinstance(gone, tuple):
        raise Unreadable
    if t.op.kind in ("max", "min") and any(_moves(axis) for i, axis in enumerate(x) if i in gone):
        raise Unreadable
    labels = numbered("d", len(x))
    kept = [label for i, label in enumerate(labels) if i not in gone]
    if len(t.result) == len(x):
        kept = [("one", i) if i in gone else label for i, label in enumerate(labels)]
    stage = frozenset(label for i, label in enumerate(labels) if i in gone)
    return [Step((lines(x, labels), lines(t.result, kept)), (stage,))]


@reader("transpose")
def transpose(t: Tensors) -> list[Step]:
    """Reorder dimensions."""
    (x,) = t.inputs
    order = t.op.attribute("dims")
    if not isinstance(order, tuple):
        raise Unreadable
    labels = numbered("d", len(x))
    moved = [labels[i] for i in order if isinstance(i, int)]
    return [Step((lines(x, labels), lines(t.result, moved)))]


@reader("expand", "repeat")
def repeat(t: Tensors) -> list[Step]:
    """Repeat dimensions: all of a size of one, or in copies outside or inside of the old indices."""
    (x,) = t.inputs
    result = lines(t.result, aligned(t.result))
    for i, axis in enumerate(reversed(x)):
        at = len(t.result) - 1 - i
        n, m = t.size(t.result[at]), t.size(axis)
        if m in (n, 1):
            if m != n:
                result = split_lines(result, at, (t.result[at], Fixed(1)), (("new", i), ("one", i)))
            continue
        tiled, repeated = t.factor(t.result[at], n // m), t.factor(t.result[at], m)
        if tiled[1] == axis:
            result = split_lines(result, at, tiled, (("new", i), ("r", i)))
        elif repeated[0] == axis:
            result = split_lines(result, at, repeated, (("r", i), ("new", i)))
        else:
            raise Unreadable
    return [Step((lines(x, aligned(x)), result))]


@reader("stack")
def stack(t: Tensors) -> list[Step]:
    """Put tensors side by side along a new dimension."""
    labels = numbered("d", len(t.result))
    at = t.integer("dim")
    inner = [label for i, label in enumerate(labels) if i != at]
    return [Step((*(lines(axes, inner) for axes in t.inputs), lines(t.result, labels)))]


def _parts(
    t: Tensors, whole: tuple[Axis, ...], parts: list[tuple[Axis, ...]], at: int, start: int
) -> list[Step]:
    """Return a step for every tensor that is a part of another along a dimension."""
    labels = numbered("d", len(whole))
    steps = []
    for part in parts:
        stop = start + t.size(part[at])
        piece = t.part(whole[at], start, stop)
        start = stop
        if _moves(piece) and _moves(part[at]) and piece != part[at]:
            raise Unreadable
        steps.append(Step((lines((*whole[:at], piece, *whole[at + 1 :]), labels), lines(part, labels))))
    return steps


def _moves(axis: Axis) -> bool:
    return any(isinstance(atom, Perm) for atom in atoms(axis))


@reader("cat")
def cat(t: Tensors) -> list[Step]:
    """Lay tensors end to end."""
    return _parts(t, t.result, [*t.inputs, *t.parameters.values()], t.integer("dim"), 0)


@reader("slice")
def slice_(t: Tensors) -> list[Step]:
    """Take a range of a dimension."""
    (x,) = t.inputs
    if t.integer("step", 1) != 1:
        labels = numbered("d", len(x))
        return [Step((lines(x, labels), lines(t.result, labels)))]
    return _parts(t, x, [t.result], t.integer("dim"), t.integer("start"))


@reader("pad")
def pad(t: Tensors) -> list[Step]:
    """Put constants at the ends of dimensions."""
    (x,) = t.inputs
    amounts = t.op.attribute("pad")
    if not isinstance(amounts, tuple):
        raise Unreadable
    labels = numbered("d", len(x))
    inner = list(t.result)
    for place in range(len(amounts) // 2):
        at, before = len(x) - 1 - place, amounts[2 * place]
        if isinstance(before, int) and t.result[at] != x[at] and _moves(x[at]):
            if before < 0 or t.part(t.result[at], before, before + t.size(x[at])) != x[at]:
                raise Unreadable
            inner[at] = x[at]
    return [Step((lines(x, labels), lines(inner, labels)))]


@reader("select")
def select(t: Tensors) -> list[Step]:
    """Take one index of a dimension."""
    (x,) = t.inputs
    labels = numbered("d", len(x))
    at = t.integer("dim")
    kept = [label for i, label in enumerate(labels) if i != at]
    return [Step((lines(x, labels), lines(t.result, kept)))]


@reader("glu")
def glu(t: Tensors) -> list[Step]:
    """Gate the first half of a dimension by the second."""
    (x,) = t.inputs
    at, half = t.integer("dim"), t.size(t.result[t.integer("dim")])
    labels = numbered("d", len(x))
    halves = [(*x[:at], t.part(x[at], i * half, (i + 1) * half), *x[at + 1 :]) for i in range(2)]
    return [Step(tuple(lines(axes, labels) for axes in (*halves, t.result)))]


@reader("getitem", "flip", "roll", "tril", "triu")
def unchanged(t: Tensors) -> list[Step]:
    """Keep all dimensions, or those that are not fixed; a further result is read if it is like the first."""
    (x,) = t.inputs
    if t.op.kind == "getitem" and x != t.result:
        raise Unreadable
    labels = numbered("d", len(x))
    return [Step((lines(x, labels), lines(t.result, labels)))]


@reader("one_hot")
def one_hot(t: Tensors) -> list[Step]:
    """Add a dimension."""
    (x,) = t.inputs
    labels = numbered("d", len(t.result))
    return [Step((lines(x, labels[:-1]), lines(t.result, labels)))]


@reader("index")
def index(t: Tensors) -> list[Step]:
    """Take listed indices of fixed dimensions; those with units pass in order."""
    tensors = [*t.inputs[:1], *t.parameters.values(), t.result]
    if len(tensors) != 2 or any(_moves(axis) for axes in t.inputs[1:] for axis in axes):
        raise Unreadable
    carried = [[axis for axis in axes if _moves(axis)] for axes in tensors]
    if carried[0] != carried[1]:
        raise Unreadable

    def labels(axes: tuple[Axis, ...]) -> list[Label]:
        count = iter(range(len(axes)))
        return [("d", next(count)) if _moves(axis) else ("fixed", i) for i, axis in enumerate(axes)]

    return [Step(tuple(lines(axes, labels(axes)) for axes in tensors))]


@reader("gather")
def gather(t: Tensors) -> list[Step]:
    """Take an index of one (fixed) dimension for every position of the others."""
    labels = numbered("d", len(t.result))
    return [Step(tuple(lines(axes, labels) for axes in (*t.inputs, *t.parameters.values(), t.result)))]


@reader("select_scatter", "slice_scatter")
def scatter(t: Tensors) -> list[Step]:
    """Write a tensor into a part of a fixed dimension of another."""
    x, source = t.inputs
    labels = numbered("d", len(x))
    at = t.integer("dim")
    theirs = [label for i, label in enumerate(labels) if i != at or len(source) == len(x)]
    return [Step((lines(x, labels), lines(source, theirs), lines(t.result, labels)))]


@reader("upsample", *(f"{kind}{n}d" for kind in SPATIAL for n in (1, 2, 3)))
def pool(t: Tensors) -> list[Step]:
    """Pool or resample positions, channel by channel."""
    (x,) = t.inputs
    kind = str(t.op.attribute("mode")) if t.op.kind == "upsample" else t.op.kind
    spatial = next((n for n in (1, 2, 3) if f"{n}d" in kind), None)
    if spatial is None:
        raise Unreadable
    shared = numbered("d", len(x) - spatial)
    read, written = numbered("s", spatial), numbered("t", spatial)
    return [Step((lines(x, [*shared, *read]), lines(t.result, [*shared, *written])), (frozenset(read),))]


@reader("pixel_shuffle", "pixel_unshuffle", "im2col")
def regroup(t: Tensors) -> list[Step]:
    """Move a fixed inner factor of the channels to the positions, or back."""
    (x,) = t.inputs
    small, large = (t.result, x) if t.op.kind == "pixel_shuffle" else (x, t.result)
    at = len(small) - 3
    factors = t.factor(large[at], t.size(small[at]))
    batch, c, inner = numbered("d", at), ("c", 0), ("inner", 0)
    narrow = lines(small, [*batch, c, ("s", 0), ("s", 1)])
    wide = lines(large, [*batch, c, *numbered("t", len(large) - at - 1)])
    return [Step((narrow, split_lines(wide, at, factors, (c, inner))))]


@reader("channel_shuffle")
def channel_shuffle(t: Tensors) -> list[Step]:
    """Turn groups times channels into channels times groups."""
    (x,) = t.inputs
    labels = numbered("d", len(x))
    groups = t.integer("groups")
    rest = t.size(x[1]) // groups
    outer, inner = ("g", 0), ("r", 0)
    before = split_lines(lines(x, labels), 1, t.factor(x[1], groups), (outer, inner))
    after = split_lines(lines(t.result, labels), 1, t.factor(t.result[1], rest), (inner, outer))
    return [Step((before, after))]
