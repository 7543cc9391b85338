"""Views: occurrences keep their order; parts of a concatenation keep their own."""

from __future__ import annotations

from collections.abc import Sequence

from metanet.axis import Axis, Concat, Fixed, Perm, Product, axis_size
from metanet.freedoms.equations.pointwise import kept
from metanet.freedoms.equations.registry import Alternatives, Carrier, Row, Step, Unfit, equation


def cut(step: Step, axis: Axis, row: Row, start: int, stop: int) -> Row:
    """Return the row of a range of an axis."""
    size = axis_size(axis, step.sizes)
    if (start, stop) == (0, size):
        return row
    if isinstance(axis, Fixed) or start >= stop:
        return ()
    if isinstance(axis, Product):
        first, *rest = axis.axes
        stride = size // axis_size(first, step.sizes)
        count = step.count(first)
        if start % stride or stop % stride or sum(step.count(part) for part in rest) != len(row) - count:
            raise Unfit
        return (*cut(step, first, row[:count], start // stride, stop // stride), *row[count:])
    if isinstance(axis, Perm):
        raise Unfit
    taken: list[Row] = []
    for part in axis.axes:
        width, count = axis_size(part, step.sizes), step.count(part)
        low, high = max(start, 0), min(stop, width)
        if low < high:
            taken.append(cut(step, part, row[:count], low, high))
        row, start, stop = row[count:], start - width, stop - width
    return tuple(form for part in taken for form in part)


def placed(step: Step, forms: Row) -> list[Row]:
    """Distribute forms from left to right over the dimensions of the result."""
    queue = iter(forms)
    return [tuple(next(queue) for _ in range(count)) for count in step.counts]


def _alternatives(step: Step, x: Carrier) -> Alternatives:
    """Return how a stacked view of a tensor gives the rows of its alternatives.

    The tensor has one concatenation, innermost in its dimension, whose parts are the alternatives.
    """

    def give(number: int) -> Sequence[Row] | None:
        found = None
        for dim, axis in enumerate(x.axes):
            last = axis.axes[-1] if isinstance(axis, Product) else axis
            if isinstance(last, Concat) and x.rows[dim]:
                if found is not None:
                    return None
                found = dim, last
        if found is None:
            return None
        dim, inner = found
        size = axis_size(inner, step.sizes)
        outer = len(x.rows[dim]) - step.count(inner)
        if size % number:
            return None
        width = size // number
        before = (*(f for row in x.rows[:dim] for f in row), *x.rows[dim][:outer])
        after = tuple(f for row in x.rows[dim + 1 :] for f in row)
        return [
            (*before, *cut(step, inner, x.rows[dim][outer:], i * width, (i + 1) * width), *after)
            for i in range(number)
        ]

    return give


@equation("reshape")
def reshape(step: Step) -> Carrier:
    """Occurrences keep their order. A stacked tensor does not show them until an alternative is picked."""
    x = step.function()
    forms, total = x.forms, sum(step.counts)
    if len(forms) == total:
        return Carrier(tuple(placed(step, forms)))
    if total == 0:
        alternatives = x.alternatives if x.hidden else _alternatives(step, x)
        return Carrier(tuple(() for _ in step.counts), hidden=forms, alternatives=alternatives)
    if step.mode == "linear" or not _one_each(step, x):
        raise Unfit
    for form in forms[1:]:
        step.same((form,), forms[:1])
    return Carrier(tuple(placed(step, forms[:1] * total)))


def _one_each(step: Step, x: Carrier) -> bool:
    """Return whether every value of a tensor and of the result belongs to exactly one unit."""

    def single(axis: Axis) -> int | None:
        if isinstance(axis, Concat):
            counts = {single(part) for part in axis.axes}
            return counts.pop() if len(counts) == 1 else None
        if isinstance(axis, Product):
            inner = [single(part) for part in axis.axes]
            return None if None in inner else sum(n for n in inner if n is not None)
        return step.count(axis)

    def whole(axes: Sequence[Axis]) -> bool:
        inner = [single(axis) for axis in axes]
        return None not in inner and sum(n for n in inner if n is not None) == 1

    return not x.hidden and whole(x.axes) and whole(step.op.axes)


@equation("transpose")
def transpose(step: Step) -> Carrier:
    """Dimensions move with their occurrences."""
    x = step.function()
    order = step.op.attribute("dims")
    if not isinstance(order, tuple):
        raise Unfit
    if x.hidden:
        if sum(step.counts):
            raise Unfit
        return Carrier(tuple(() for _ in order), hidden=x.hidden, alternatives=x.alternatives)
    return Carrier(tuple(x.rows[d] for d in order if isinstance(d, int)))


@equation("expand", "repeat")
def expand(step: Step) -> list[Row]:
    """Copies are equal; what does not vary along the units has exponent zero."""
    x = step.function()
    if x.hidden:
        raise Unfit
    if x.forms and len(x.forms) != sum(step.counts):
        raise Unfit
    if len(step.counts) == 1 != len(x.rows):
        return placed(step, x.forms)
    rows: list[Row] = []
    for dim, count in enumerate(step.counts):
        at = dim - (len(step.counts) - len(x.rows))
        row = x.rows[at] if at >= 0 else ()
        if len(row) not in (0, count):
            raise Unfit
        rows.append(row or step.zeros(count))
    return rows


@equation("slice")
def slice_(step: Step) -> Carrier:
    """A range of a dimension takes the parts of a concatenation that lie in it."""
    x = step.function()
    dim, start, stop, stride = (step.integer(name) for name in ("dim", "start", "stop", "step"))
    if x.hidden:
        return _narrowed(step, x, dim, start, stop)
    if stride != 1 and x.rows[dim]:
        raise Unfit
    part = cut(step, x.axes[dim], x.rows[dim], start, stop) if stride == 1 else ()
    return Carrier((*x.rows[:dim], part, *x.rows[dim + 1 :]), null=x.null)


def _narrowed(step: Step, x: Carrier, dim: int, start: int, stop: int) -> Carrier:
    """Keep some alternatives of a stacked tensor."""
    number = axis_size(x.axes[dim], step.sizes)
    rows = x.alternatives(number) if x.alternatives else None
    total = sum(step.counts)
    if rows is None or (total and (stop != start + 1 or total != len(rows[start]))):
        raise Unfit
    if total:
        return Carrier(tuple(_single(step, rows[start])))
    left = rows[start:stop]
    hidden = tuple(form for row in left for form in row)
    return Carrier(
        tuple(() for _ in step.counts), hidden=hidden, alternatives=lambda n: left if n == len(left) else None
    )


def _single(step: Step, forms: Row) -> list[Row]:
    """Place the forms of an alternative; several are made equal, so that their order does not matter."""
    for form in forms[1:]:
        step.same((form,), forms[:1])
    return placed(step, forms)


@equation("select")
def select(step: Step) -> list[Row]:
    """One index of a dimension, or one alternative of a stacked tensor."""
    x = step.function()
    dim, index = step.integer("dim"), step.integer("index")
    if x.hidden:
        rows = x.alternatives(axis_size(x.axes[dim], step.sizes)) if x.alternatives else None
        if rows is None or len(rows[index]) != sum(step.counts):
            raise Unfit
        return _single(step, rows[index])
    step.pin(cut(step, x.axes[dim], x.rows[dim], index, index + 1))
    return [row for place, row in enumerate(x.rows) if place != dim]


@equation("cat")
def cat(step: Step) -> Carrier:
    """Parts lie end to end along one dimension and are equal along the others."""
    dim = step.integer("dim")
    if any(carrier.hidden for carrier in step.inputs):
        raise Unfit
    joined = tuple(form for carrier in step.inputs for form in carrier.rows[dim])
    rows = _equal(step, [(*c.rows[:dim], (), *c.rows[dim + 1 :]) for c in step.inputs], blank=dim)
    rows[dim] = joined
    return Carrier(tuple(rows), null=all(carrier.null for carrier in step.inputs))


@equation("stack")
def stack(step: Step) -> Carrier:
    """Tensors lie side by side along a new dimension and are equal along the others."""
    dim = step.integer("dim")
    if any(carrier.hidden for carrier in step.inputs):
        raise Unfit
    rows = _equal(step, [(*c.rows[:dim], (), *c.rows[dim:]) for c in step.inputs], blank=dim)
    return Carrier(tuple(rows), null=all(carrier.null for carrier in step.inputs))


def _equal(step: Step, table: Sequence[tuple[Row, ...]], *, blank: int) -> list[Row]:
    real = [rows for rows, carrier in zip(table, step.inputs, strict=True) if not carrier.null]
    result: list[Row] = []
    for dim, count in enumerate(step.counts):
        column = [rows[dim] for rows in real]
        present = [row for row in column if row]
        if dim == blank or not present:
            result.append(() if dim == blank else step.zeros(count))
            continue
        for row in present[1:]:
            step.same(row, present[0])
        if len(present) < len(column):
            step.pin(present[0])
        result.append(present[0])
    return result


@equation("pad")
def pad(step: Step) -> tuple[Row, ...]:
    """Zeros have any exponent; another constant has none, and a reflection repeats what is there."""
    x = step.function()
    if step.op.attribute("mode") == "constant" and step.op.attribute("value") != 0:
        raise Unfit
    return kept(step, x)


@equation("im2col", "col2im")
def patches(step: Step) -> list[Row]:
    """Patches keep their channels."""
    x = step.function()
    if x.hidden or len(x.forms) != sum(step.counts):
        raise Unfit
    return placed(step, x.forms)


@equation("index", "gather")
def index(step: Step) -> list[Row]:
    """What is picked keeps the exponents of the dimensions that nothing is picked from.

    Labels may pick units themselves (a codebook, a sorted layer); these keep exponent zero.
    """
    x, *places = step.inputs
    if x.hidden or step.parameters or len(x.forms) != sum(step.counts):
        raise Unfit
    if step.op.kind == "gather":
        dim = step.integer("dim")
        if x.rows[dim] or any(carrier.hidden or carrier.rows[dim] for carrier in places):
            raise Unfit
    elif any(carrier.forms for carrier in places) or sum(1 for row in x.rows if row) > 1:
        raise Unfit
    for carrier in places:
        step.pin(carrier.forms)
    return placed(step, x.forms)


@equation("select_scatter", "slice_scatter")
def scatter(step: Step) -> list[Row]:
    """What is written has the exponents of what it is written into."""
    x, source = step.inputs
    if x.hidden or source.hidden:
        raise Unfit
    dim = step.integer("dim")
    step.pin(x.rows[dim])
    theirs = list(source.rows)
    if step.op.kind == "select_scatter":
        theirs.insert(dim, ())
    step.pin(theirs[dim])
    if not source.null:
        for mine, other in zip(x.rows, theirs, strict=True):
            if mine or other:
                step.same(mine, other)
    return list(x.rows)


@equation("getitem")
def getitem(step: Step) -> Carrier:
    """A further result of an operation that says what it is."""
    raise Unfit
