"""The group structure of a network, from left to right: which parameters lead from which groups to which.

A *step* is one operation with parameters. It reads groups (columns of a weight), writes groups (its rows), or
works on them where they are (a normalisation). Layers that repeat are folded into the first two and the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

from metanet.axis import Axis, Fixed, Perm, atoms
from metanet.skeleton import Operation
from metanet.spec import WeightSpec

COLUMNS_FIRST = frozenset(
    ("embedding", "matmul", "addmm", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
)
"""Operations whose weight has first what they read."""
FOLD_FROM = 4
"""Layers that repeat at least so often are folded."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation with parameters, between groups.

    Args:
        label: what its parameters are called.
        reads: groups of its columns.
        writes: groups of its rows.
        works_on: groups that it changes in place, such as those of a normalisation.
        source: number of fixed indices that it reads (inputs, tokens), 0 for none.
        target: number of fixed indices that it writes (classes), 0 for none.
        layer: the layer that it belongs to, as ``(prefix, number)``.
    """

    label: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    works_on: tuple[str, ...] = ()
    source: int = 0
    target: int = 0
    layer: tuple[str, int] | None = None

    @property
    def touches(self) -> tuple[str, ...]:
        """All groups that it meets."""
        return tuple(dict.fromkeys((*self.reads, *self.writes, *self.works_on)))


@dataclass(frozen=True, slots=True)
class Folded:
    """A place where layers that repeat were left out; ``layers`` of them, like the one before."""

    layers: int
    like: str


def steps_of(spec: WeightSpec) -> list[Step | Folded]:
    """Return the steps of a network in its order, repeated layers folded.

    Args:
        spec: with operations; without, every entry is a step of its own.
    """
    found: list[Step] = []
    for operation in spec.operations:
        found += _steps(spec, operation, {group for step in found for group in step.touches})
    if not spec.operations:
        for name, axes in spec.entries:
            found += _matrix(name, axes, 0) if len(axes) > 1 else _in_place([name], spec)
    return list(_fold(found))


def _steps(spec: WeightSpec, operation: Operation, known: set[str]) -> Iterator[Step]:
    parameters = [(role, entry) for role, entry in operation.parameters if entry in spec.axes]
    matrices = [
        (role, entry)
        for role, entry in parameters
        if len(spec.axes[entry]) > 1 and role.startswith(("weight", "value"))
    ]
    for role, entry in matrices:
        axes = spec.axes[entry]
        if role == "value":
            fresh = tuple(group for group in _groups(axes) if group not in known)
            old = tuple(group for group in _groups(axes) if group in known)
            yield Step(_label(entry), old if fresh else (), fresh or old, layer=_layer(entry))
        else:
            yield from _matrix(entry, axes, 1 if operation.kind in COLUMNS_FIRST else 0)
    if parameters and not matrices:
        yield from _in_place([entry for _, entry in parameters], spec)


def _matrix(entry: str, axes: Sequence[Axis], row: int) -> Iterator[Step]:
    rows, columns = axes[row], axes[1 - row]
    writes, reads = _groups([rows]), _groups([columns])
    yield Step(
        _label(entry),
        reads,
        writes,
        source=0 if reads else _size(columns),
        target=0 if writes else _size(rows),
        layer=_layer(entry),
    )


def _in_place(entries: Sequence[str], spec: WeightSpec) -> Iterator[Step]:
    groups = tuple(dict.fromkeys(group for entry in entries for group in _groups(spec.axes[entry])))
    if groups:
        yield Step(_label(entries[0]), works_on=groups, layer=_layer(entries[0]))


def _groups(axes: Sequence[Axis]) -> tuple[str, ...]:
    found = [atom.group for axis in axes for atom in atoms(axis) if isinstance(atom, Perm)]
    return tuple(dict.fromkeys(found))


def _size(axis: Axis) -> int:
    return prod(atom.size for atom in atoms(axis) if isinstance(atom, Fixed))


def _label(entry: str) -> str:
    """Return the name of a module, from that of its weight."""
    return re.sub(r"\.(weight|bias|weight_(ih|hh)_l\d+(_reverse)?)$", "", entry)


def layer_name(layer: tuple[str, int]) -> str:
    """Return a layer's name, such as ``model.layers.3``."""
    return ".".join(filter(None, (layer[0], str(layer[1]))))


def bands_of(steps: Sequence[Step | Folded]) -> list[tuple[str, int, int]]:
    """Return ``(name, first, last)`` of the layers that have several steps, by the steps' positions."""
    bands = []
    at = 0
    for layer, run in groupby(steps, key=lambda step: step.layer if isinstance(step, Step) else None):
        length = len(list(run))
        if layer is not None and length > 1:
            bands.append((layer_name(layer), at, at + length - 1))
        at += length
    return bands


def _layer(entry: str) -> tuple[str, int] | None:
    match = re.match(r"(.*?)\.?(?<![A-Za-z_])(\d+)\.", entry)
    return (match[1], int(match[2])) if match else None


def _fold(steps: Sequence[Step]) -> Iterator[Step | Folded]:
    """Leave out layers that are like the one before, but for the first two and the last of them."""
    layers = [list(run) for _, run in groupby(steps, key=lambda step: step.layer)]
    start = 0
    while start < len(layers):
        stop = start + 1
        form = _form(layers[start])
        while stop < len(layers) and form is not None and _form(layers[stop]) == form:
            stop += 1
        if stop - start < FOLD_FROM:
            yield from layers[start]
            start += 1
            continue
        for layer in layers[start : start + 2]:
            yield from layer
        first = layers[start + 1][0].layer
        assert first is not None
        yield Folded(stop - start - 3, layer_name(first))
        yield from layers[stop - 1]
        start = stop


def _form(steps: Sequence[Step]) -> tuple[object, ...] | None:
    """Return what a layer consists of, its own number left out; None outside of layers."""
    layer = steps[0].layer
    if layer is None:
        return None
    own = layer_name(layer) + "."

    def form(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name.removeprefix(own) if name.startswith(own) else f"/{name}" for name in names)

    return (
        layer[0],
        *(
            (form([s.label]), form(s.reads), form(s.writes), form(s.works_on), s.source, s.target)
            for s in steps
        ),
    )


def shortened(names: Sequence[str]) -> Mapping[str, str]:
    """Return names without the dotted prefix that all of them have."""
    parts = [name.split(".") for name in names]
    shared = 0
    while parts and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return {name: ".".join(p[shared:]) for name, p in zip(names, parts, strict=True)}
