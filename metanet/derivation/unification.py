"""Unification of dimension variables: making two dimensions one, cutting and factoring them.

References:
    Robinson 1965, A machine-oriented logic based on the resolution principle (unification),
    https://doi.org/10.1145/321250.321253.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from metanet.derivation.dimension import Dim, concrete, factors, fixed, fuse, join, pieces, uniform


class Dimensions:
    """The operations that may fail to align two structures, and fix both when they do.

    What is lost in that way is fixed at the end (`settle`), so that a dimension that has a reason of its own
    to be fixed is not counted as lost.
    """

    def __init__(self) -> None:
        self.current = "?"
        self._deferred: list[tuple[Dim, str]] = []

    def fix(self, dim: Dim, cause: str | None = None) -> Dim:
        """Give the indices a meaning of their own, and return the dimension (a new one for *any*)."""
        dim = dim.root()
        if dim.state == "any":
            return fixed(dim.size)
        if dim.state in ("plain", "sorted"):
            dim.state, dim.cause = "fixed", cause
            if dim.selector is not None:
                self.lose(dim.selector)
        for part in dim.parts:
            self.fix(part, cause)
        return dim

    def lose(self, dim: Dim, reason: str | None = None) -> Dim:
        """Fix a dimension at the end, and return a fixed one of its size to go on with."""
        self._deferred.append((dim, reason or self.current))
        return fixed(dim.size)

    def settle(self) -> None:
        """Fix what was lost, with its cause."""
        for dim, cause in self._deferred:
            self.fix(dim, cause)
        self._deferred.clear()

    def unify(self, first: Dim, second: Dim) -> Dim:
        """Make two dimensions of one size the same, and return it."""
        a, b = first.root(), second.root()
        assert a.size == b.size, (a, b)
        if a is b:
            return a
        if "choice" in (a.state, b.state) or "selector" in (a.state, b.state):
            return self.unify(self.collapse(a), self.collapse(b))
        if a.state == "any" or b.state == "any":
            return b if a.state == "any" else a
        if "sorted" in (a.state, b.state):
            return self.unify(self.fix(a), self.fix(b))
        if b.state == "plain":
            a, b = b, a
        if a.state == "plain":
            a.link(b)
            return b
        if a.state == "fixed" or b.state == "fixed":
            free, rigid = (b, a) if a.state == "fixed" else (a, b)
            self.fix(free, rigid.cause)
            return rigid
        return self._unify_compound(a, b)

    def _unify_compound(self, a: Dim, b: Dim) -> Dim:
        if a.state == b.state == "product":
            wanted = factors(b)
            aligned = self._align(factors(a), [f.size for f in wanted])
        else:
            cuts = sorted({*_cuts(a), *_cuts(b)})
            mine, theirs = self._cut(a, cuts), self._cut(b, cuts)
            aligned, wanted = (None, []) if mine is None or theirs is None else (mine, theirs)
        if aligned is None:
            self.lose(a, f"{self.current} (parts that do not align)")
            self.lose(b, f"{self.current} (parts that do not align)")
            return b
        for x, y in zip(aligned, wanted, strict=True):
            self.unify(x, y)
        return b

    def broadcast(self, *dims: Dim) -> Dim:
        """Unify dimensions of an elementwise operation: those of size one stand aside."""
        wide = [dim for dim in dims if dim.size != 1]
        if not wide:
            return fixed(1)
        result = wide[0].root()
        for dim in wide[1:]:
            result = self.unify(result, dim)
        return result

    def collapse(self, dim: Dim) -> Dim:
        """Make all alternatives of a choice one, and a selector fixed."""
        dim = dim.root()
        if dim.state == "selector":
            dim.state = "fixed"
        if dim.state != "choice":
            return dim
        if dim.selector is not None:
            self.collapse(dim.selector)
        first = dim.parts[0]
        for part in dim.parts[1:]:
            first = self.unify(first, part)
        first = concrete(first)
        dim.link(first)
        return first

    def cut(self, dim: Dim, cuts: Sequence[int]) -> list[Dim]:
        """Cut a dimension at interior positions, refining it into a concatenation; fix it if impossible."""
        dim = self.collapse(dim)
        found = self._cut(dim, list(cuts))
        if found is None:
            self.lose(dim, f"{self.current} (cut within a product)")
            return [fixed(stop - start) for start, stop in pairwise([0, *cuts, dim.size])]
        return found

    def _cut(self, dim: Dim, cuts: list[int]) -> list[Dim] | None:
        dim = dim.root()
        if not cuts:
            return [dim]
        sizes = [stop - start for start, stop in pairwise([0, *cuts, dim.size])]
        if dim.state == "sorted":
            self.fix(dim)
        if dim.state in ("fixed", "any"):
            return [uniform(n) if dim.state == "any" else Dim(n, "fixed", cause=dim.cause) for n in sizes]
        if dim.state == "plain":
            parts = [Dim(size) for size in sizes]
            dim.refine("concat", tuple(parts))
            return parts
        if dim.state == "concat":
            return self._cut_concat(dim, cuts, sizes)
        first, *rest = factors(dim)
        stride = prod(f.size for f in rest)
        if any(cut % stride for cut in cuts):
            return None
        outer = self._cut(first, [cut // stride for cut in cuts])
        return None if outer is None else [fuse([part, *rest]) for part in outer]

    def _cut_concat(self, dim: Dim, cuts: list[int], sizes: list[int]) -> list[Dim] | None:
        bits: list[Dim] = []
        start = 0
        for part in pieces(dim):
            inner = self._cut(part, [cut - start for cut in cuts if start < cut < start + part.size])
            if inner is None:
                return None
            bits += inner
            start += part.size
        result = []
        for size in sizes:
            taken: list[Dim] = []
            while sum(d.size for d in taken) < size:
                taken.append(bits.pop(0))
            result.append(join(taken))
        return result

    def pad(self, dim: Dim, before: int, after: int) -> Dim:
        """Return a dimension with new (constant) indices at its ends, or fewer for a negative number."""
        start, stop = max(-before, 0), dim.size - max(-after, 0)
        if start >= stop:
            return fixed(max(before, 0) + max(after, 0))
        inner = self.cut(dim, [cut for cut in (start, stop) if 0 < cut < dim.size])[1 if start else 0]
        return join([Dim(max(before, 0)), inner, Dim(max(after, 0))])

    def split(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Factor a dimension into a row-major product of sizes, refining it."""
        return self.reshape([dim], sizes)

    def reshape(self, dims: Sequence[Dim], sizes: Sequence[int]) -> list[Dim]:
        """Return the dimensions of a row-major reshape."""
        if prod(sizes) == 0:
            return [self.lose(dim) for dim in dims][:0] + [fixed(size) for size in sizes]
        source = self._flatten(dims)
        aligned = self._align(source, [size for size in sizes if size != 1])
        if aligned is None:
            for dim in source:
                self.lose(dim, f"{self.current} (shapes that do not factor alike)")
            return [fixed(size) for size in sizes]
        left = iter(aligned)
        return [fixed(1) if size == 1 else next(left) for size in sizes]

    def _flatten(self, dims: Sequence[Dim]) -> list[Dim]:
        """Return the factors of dimensions; a selector right before its only choice is a concatenation."""
        roots = [dim.root() for dim in dims if dim.size != 1]
        result: list[Dim] = []
        for position, dim in enumerate(roots):
            following = roots[position + 1] if position + 1 < len(roots) else None
            only = sum(d.selector is dim for d in roots) == 1
            if dim.state == "selector" and following is not None and following.selector is dim and only:
                result.append(join(following.parts))
                roots[position + 1] = fixed(1)
                continue
            result += factors(self.collapse(roots[position]))
        return result

    def _align(self, source: list[Dim], sizes: Sequence[int]) -> list[Dim] | None:
        """Return factors regrouped to given sizes (none of them one), or None if they do not divide."""
        queue = [dim.root() for dim in source]
        result: list[Dim] = []
        wanted = list(sizes)
        while wanted:
            taken, targets = _shortest_common(queue, wanted)
            del wanted[: len(targets)]
            section, queue = queue[:taken], queue[taken:]
            if all(dim.state == "fixed" for dim in section):
                result += [fixed(size) for size in targets]
                continue
            found = self._align_section(section, targets)
            if found is None:
                return None
            result += found
        return result

    def _align_section(self, queue: list[Dim], sizes: list[int]) -> list[Dim] | None:
        queue = list(queue)
        result = []
        for size in sizes:
            taken: list[Dim] = []
            left = size
            while left > 1:
                dim = queue.pop(0)
                if left % dim.size == 0:
                    taken.append(dim)
                    left //= dim.size
                elif dim.size % left == 0 and (halves := self._factor(dim, left)) is not None:
                    taken.append(halves[0])
                    queue = [f for half in halves[1:] for f in factors(half)] + queue
                    left = 1
                else:
                    return None
            result.append(fuse(taken))
        return result

    def _factor(self, dim: Dim, outer: int) -> tuple[Dim, Dim] | None:
        """Split one factor in two, the outer one of a given size."""
        inner = dim.size // outer
        if dim.state == "sorted":
            self.fix(dim)
        if dim.state == "fixed":
            return Dim(outer, "fixed", cause=dim.cause), Dim(inner, "fixed", cause=dim.cause)
        if dim.state == "any":
            return uniform(outer), uniform(inner)
        if dim.state == "plain":
            halves = Dim(outer), Dim(inner)
            dim.refine("product", halves)
            return halves
        assert dim.state == "concat"
        found = []
        for part in pieces(dim):
            if part.size % inner:
                return None
            pair = self.split(part, [part.size // inner, inner])
            found.append(pair)
        shared = found[0][1]
        for _, other in found[1:]:
            shared = self.unify(shared, other)
        return join([head for head, _ in found]), shared


def _shortest_common(queue: Sequence[Dim], sizes: Sequence[int]) -> tuple[int, list[int]]:
    """Return the shortest prefixes, of factors and of sizes, that hold equally many indices."""
    i, j = 1, 1
    mine, theirs = queue[0].size, sizes[0]
    while mine != theirs:
        if mine < theirs:
            mine, i = mine * queue[i].size, i + 1
        else:
            theirs, j = theirs * sizes[j], j + 1
    return i, list(sizes[:j])


def _cuts(dim: Dim) -> list[int]:
    ends: list[int] = []
    for part in pieces(dim)[:-1]:
        ends.append((ends[-1] if ends else 0) + part.size)
    return ends
