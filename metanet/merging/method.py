"""The contract of merge methods, and the one registry of them.

A method maps stretches of its inputs to a stretch of the output. One that must know something of the whole
tensor first (a norm, a threshold) asks for it in *passes*: its ``statistics`` is a generator that yields a
`Pass`, is sent the pass's partial results in the tensor's order, and returns what the map needs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import Floats
from metanet.merging.stretch import Settings, Stretch, Value

BaseUse = Literal["required", "optional", "unused"]


@dataclass(frozen=True, slots=True)
class Pass:
    """One reading of a tensor: what to compute on each stretch.

    Args:
        partial: stretch -> anything small; called in no particular order, perhaps by several threads.
        share: fraction of each stretch to read, from its beginning; whole rows for a method of rows.
    """

    partial: Callable[[Stretch], Any]
    share: float = 1.0


Statistics = Generator[Pass, list[Any], Any]
"""Yields passes, is sent each one's partial results in order, returns what `Method.combine` gets."""


class Combine(Protocol):
    """A method's map; ``statistics`` is passed to those that ask for any."""

    def __call__(self, stretch: Stretch, *statistics: Any) -> Floats:
        """Return the output's values of a stretch."""
        ...


Prepare = Callable[[Settings, Sequence[NDArray[np.float64]]], Any]
"""Settings and Gram matrices, which may be overwritten -> what `Method.combine` gets behind the stretch."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method.

    Args:
        default: its value if the recipe has none; None where the recipe must give one.
        doc: one line about it.
        per_model: whether every model has its own.
        low: smallest value allowed.
        high: largest value allowed.
    """

    default: Value | None
    doc: str
    per_model: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method.

    Args:
        name: as recipes write it.
        combine: the map.
        summary: one line about it.
        reference: authors, year and URL of the paper.
        parameters: by name.
        base: whether it needs a base model. A method with one sees the other models' values alone.
        models: smallest and largest number of models beside the base.
        statistics: what it must know of the whole tensor, see `Pass`; None for an elementwise method.
        rows: whether it must see whole rows.
        importances: whether every model must come with importances of its values.
        prepare: what it makes of the Gram matrices ``[n, n]`` of a layer's inputs, one per model, before it
            maps rows of the layer's weight ``[m, n]``; None for a method that takes none.
        arithmetic: whether it is sums and products of the values at each place alone: then places may come in
            any order, and what is not finite in an input is not finite in the output.
    """

    name: str
    combine: Combine
    summary: str
    reference: str
    parameters: Mapping[str, Parameter]
    base: BaseUse = "unused"
    models: tuple[int, int | None] = (1, None)
    statistics: Callable[[Settings, tuple[int, ...], bool], Statistics] | None = None
    rows: bool = False
    importances: bool = False
    prepare: Prepare | None = None
    arithmetic: bool = False


METHODS: dict[str, Method] = {}
"""Every known method by name: those of `metanet.merging.methods`, and the user's own."""


def merge_method(
    name: str,
    *,
    reference: str,
    parameters: Mapping[str, Parameter] | None = None,
    base: BaseUse = "unused",
    models: tuple[int, int | None] = (1, None),
    statistics: Callable[[Settings, tuple[int, ...], bool], Statistics] | None = None,
    rows: bool = False,
    importances: bool = False,
    prepare: Prepare | None = None,
    arithmetic: bool = False,
) -> Callable[[Combine], Combine]:
    """Make a function a merge method that recipes and ``metanet merge`` know by name.

    Args:
        name: as recipes write it.
        reference: where the method comes from.
        parameters: what recipes may set, by name.
        base: whether it needs a base model.
        models: smallest and largest number of models beside the base (None: any).
        statistics: what it must know of the whole tensor first: a generator function of the settings, the
            tensor's shape and whether there is a base; see `Pass`.
        rows: whether it must see whole rows of the tensor in one stretch.
        importances: whether every model must come with importances of its values (a Fisher information).
        prepare: what it makes of the Gram matrices of a layer's inputs; see `Method`.
        arithmetic: whether it is sums and products of the values at each place alone; see `Method`.

    Returns:
        the decorator; it leaves the function as it is.

    Raises:
        ValueError: the name is taken by another function.

    Example:
        >>> import numpy as np
        >>> @merge_method("median", reference="coordinate-wise median")
        ... def median(stretch):
        ...     return np.median(np.stack(stretch.values), axis=0)
        >>> METHODS["median"].summary
        'Median.'
        >>> del METHODS["median"]
    """

    def register(combine: Combine) -> Combine:
        old = METHODS.get(name)
        if old is not None and _origin(old.combine) != _origin(combine):
            raise ValueError(f"there is a merge method {name!r} already ({old.reference}); rename yours")
        text = (combine.__doc__ or f"{name.capitalize()}.").strip().splitlines()[0]
        METHODS[name] = Method(
            name,
            combine,
            text,
            reference,
            dict(parameters or {}),
            base,
            models,
            statistics,
            rows,
            importances,
            prepare,
            arithmetic,
        )
        return combine

    return register


def _origin(combine: Combine) -> tuple[str, str]:
    return getattr(combine, "__module__", ""), getattr(combine, "__qualname__", "")


def run_statistics(
    method: Method,
    settings: Settings,
    shape: tuple[int, ...],
    has_base: bool,
    read_pass: Callable[[Pass], Sequence[Any] | Iterable[Any]],
) -> tuple[Any, ...]:
    """Run the passes a method asks for.

    Args:
        method: the method.
        settings: its parameters for this tensor.
        shape: of the tensor.
        has_base: whether there is a base.
        read_pass: runs one pass over the whole tensor and returns its partial results in order.

    Returns:
        what to hand to ``method.combine`` behind the stretch: nothing, or the statistics.
    """
    if method.statistics is None:
        return ()
    generator = method.statistics(settings, shape, has_base)
    try:
        wanted = next(generator)
        while True:
            wanted = generator.send(list(read_pass(wanted)))
    except StopIteration as done:
        return (done.value,)
