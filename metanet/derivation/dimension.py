"""Dimension variables: what is known of a tensor dimension while a spec is derived, and how it is unified.

A `Dim` starts *plain* (nothing known: its indices may be permuted freely). As operations are interpreted it
becomes a row-major product, a concatenation, one with another dimension, or *fixed* (its indices have a
meaning of their own). Each of these only shrinks the group of allowed permutations: any is sound at any time.

Two kinds stand apart. An *any* dimension is one along which a value does not vary (a zero state, an
expanded batch): it agrees with everything. A *selector* and its *choices* are dimensions of a stacked tensor
(``qkv`` as ``[3, heads, width]``, LSTM's final states ``[layers, batch, units]``) whose later dimensions
differ from index to index of the selector until one index is taken. *Sorted* indices (tokens in the order of
the experts that they were sent to) are in an order that permuting the dimension called ``selector`` changes:
they agree with themselves alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Literal

from metanet.axis import Axis, Concat, Fixed, Perm, concat, product

State = Literal["plain", "fixed", "any", "product", "concat", "selector", "choice", "sorted"]


class Dim:
    """A dimension variable; compare them after `root`.

    Args:
        size: number of indices.
        state: what is known.
        parts: factors of a product, parts of a concatenation, alternatives of a choice.
        cause: of a fixed dimension: what fixed it, if that is not its nature.
        selector: of a choice: the dimension that selects the alternative; of a sorted dimension: the one
            whose order it follows.
    """

    __slots__ = ("_link", "cause", "parts", "selector", "size", "state")

    def __init__(
        self,
        size: int,
        state: State = "plain",
        parts: tuple[Dim, ...] = (),
        *,
        cause: str | None = None,
        selector: Dim | None = None,
    ) -> None:
        self.size = size
        self.state: State = "fixed" if size <= 1 and state == "plain" else state
        self.parts = parts
        self.cause = cause
        self.selector = selector
        self._link: Dim | None = None

    def root(self) -> Dim:
        """Return the variable that stands for all that were unified with this one."""
        dim = self
        while dim._link is not None:
            if dim._link._link is not None:
                dim._link = dim._link._link
            dim = dim._link
        return dim

    def link(self, other: Dim) -> None:
        """Make another variable stand for this one."""
        assert self is not other
        self._link = other

    def refine(self, state: State, parts: tuple[Dim, ...]) -> None:
        """Say what a plain dimension consists of."""
        assert self.state == "plain"
        self.state, self.parts = state, parts

    def __repr__(self) -> str:
        root = self.root()
        inner = f"[{', '.join(map(repr, root.parts))}]" if root.parts else ""
        return f"{root.state}:{root.size}{inner}"


def fixed(size: int) -> Dim:
    """Return a dimension whose indices have a meaning of their own."""
    return Dim(size, "fixed")


def uniform(size: int) -> Dim:
    """Return a dimension along which a value does not vary."""
    return Dim(size, "any" if size > 1 else "fixed")


def factors(dim: Dim) -> list[Dim]:
    """Return the factors of a dimension, outermost first; those of size one left out."""
    dim = dim.root()
    if dim.size == 1 and dim.state in ("fixed", "any", "plain"):
        return []
    return [f for part in dim.parts for f in factors(part)] if dim.state == "product" else [dim]


def pieces(dim: Dim) -> list[Dim]:
    """Return the parts of a concatenation, or the dimension itself."""
    dim = dim.root()
    return [p for part in dim.parts for p in pieces(part)] if dim.state == "concat" else [dim]


def concrete(dim: Dim) -> Dim:
    """Return a dimension that may become a part of another: a fresh plain one in place of *any*."""
    dim = dim.root()
    return Dim(dim.size) if dim.state == "any" else dim


def join(dims: Sequence[Dim]) -> Dim:
    """Return the concatenation of dimensions."""
    kept = [concrete(dim) for dim in dims if dim.size]
    if not kept:
        return fixed(0)
    return kept[0] if len(kept) == 1 else Dim(sum(d.size for d in kept), "concat", tuple(kept))


def fuse(dims: Sequence[Dim]) -> Dim:
    """Return the row-major product of dimensions."""
    kept = [f for dim in dims for f in factors(dim)]
    if len(kept) == 1:
        return kept[0]
    size = prod(dim.size for dim in dims)
    if all(dim.state == "fixed" for dim in kept):
        return fixed(size)
    if all(dim.state == "any" for dim in kept):
        return uniform(size)
    return Dim(size, "product", tuple(map(concrete, kept)))


def leaves(dim: Dim) -> Iterator[Dim]:
    """Yield the plain and fixed variables that a dimension consists of."""
    dim = dim.root()
    if dim.parts:
        for part in dim.parts:
            yield from leaves(part)
    else:
        yield dim


def axis_of(dim: Dim, name: Callable[[Dim], str | None]) -> Axis:
    """Return the axis of a dimension.

    A concatenation that is not the innermost factor of a product is written outside:
    ``([a | b] c)`` as ``[(a c) | (b c)]``, so that equal axes are written alike.

    Args:
        dim: the dimension.
        name: gives the group of a plain variable, or None to write it as fixed.
    """
    dim = dim.root()
    if dim.state == "concat":
        return concat(*(axis_of(part, name) for part in dim.parts))
    if dim.state == "product":
        return _distribute([axis_of(part, name) for part in dim.parts])
    group = name(dim) if dim.state == "plain" else None
    return Fixed(dim.size) if group is None else Perm(group)


def _distribute(axes: list[Axis]) -> Axis:
    tail: Axis = Fixed(1)
    for axis in reversed(axes):
        if isinstance(axis, Concat) and tail != Fixed(1):
            tail = concat(*(product(part, tail) for part in axis.axes))
        else:
            tail = product(axis, tail)
    return tail
