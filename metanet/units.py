"""Groups of interchangeable units, and the freedoms of each unit beside permutation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

FreedomKind = Literal["sign", "even", "phase", "scale", "positive_scale"]
"""Per-unit freedoms beside permutation (DESIGN §2); the ones that mix units are not per-unit."""

FREEDOM_KINDS: tuple[FreedomKind, ...] = get_args(FreedomKind)
PARAMETRISED: frozenset[FreedomKind] = frozenset({"phase"})


@dataclass(frozen=True, slots=True)
class Freedom:
    """A freedom of each unit of a group beside permutation.

    Args:
        kind: sign (odd activation), even (even activation), phase (sine and cosine: b -> b + kπ/ω), scale
            (any non-zero factor), positive_scale (ReLU).
        parameter: ω for a phase, None otherwise.
    """

    kind: FreedomKind
    parameter: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in FREEDOM_KINDS:
            raise ValueError(f"unknown freedom {self.kind!r}; the known ones are {', '.join(FREEDOM_KINDS)}")
        if (self.parameter is not None) != (self.kind in PARAMETRISED):
            needs = (
                "needs its frequency, e.g. phase(30)" if self.kind in PARAMETRISED else "takes no parameter"
            )
            raise ValueError(f"the freedom {self.kind!r} {needs}; found parameter {self.parameter}")
        if self.parameter is not None and self.parameter == 0:
            raise ValueError("the frequency of a phase must not be zero")

    def __str__(self) -> str:
        return self.kind if self.parameter is None else f"{self.kind}({self.parameter:.17g})"


@dataclass(frozen=True, slots=True)
class Group:
    """A set of interchangeable units.

    Args:
        name: as the axes call it.
        size: number of units; of one parent unit if the group is nested.
        freedoms: what acts on each unit beside permutation.
        parent: the group under which this one is nested: its units may be permuted independently for every
            unit of the parent (a wreath product). The parent then stands left of the group in the same
            Product, or once beside it in the tensor (stacked experts ``E f d``). It may be nested itself.
    """

    name: str
    size: int
    freedoms: tuple[Freedom, ...] = ()
    parent: str | None = None

    def __str__(self) -> str:
        words = [f"{self.name}: {self.size}", *map(str, self.freedoms)]
        return " ".join([*words, f"under {self.parent}"] if self.parent else words)

    def freedom(self, kind: FreedomKind) -> Freedom | None:
        """Return this group's freedom of a kind, or None."""
        return next((f for f in self.freedoms if f.kind == kind), None)
