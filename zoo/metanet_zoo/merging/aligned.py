"""A model read in another's order: a group element applied to its tensors stretch by stretch.

Permutations, signs and scales of rows and columns are applied to the rows at hand; what mixes whole tensors
(rotations, matrices, units nested across dimensions) reads the tensor it acts on, one at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import FLOAT_DTYPES, Bytes, Floats, decode, encode
from metanet.merging.stretch import row_length
from metanet_zoo.merging.sources import Entry, TensorSource

if TYPE_CHECKING:
    from metanet.group import GroupElement

Indices = NDArray[np.intp]
WholeMap = Callable[[Floats], Floats]
"""``[*shape]`` float64 -> the same, for what cannot be done row by row."""


@dataclass(frozen=True, slots=True)
class AxisMove:
    """What happens to a tensor's dimensions: ``out[i, j, …] = r_i c_j … · in[p_i, q_j, …] + shifts``.

    Args:
        indices: for each dimension the source index of every index, None where nothing moves.
        factors: for each dimension a multiplier of every index, None where all are one.
        shifts: for each dimension an addend of every index, None where all are zero.
    """

    indices: tuple[Indices | None, ...]
    factors: tuple[NDArray[np.float64] | None, ...] = ()
    shifts: tuple[NDArray[np.float64] | None, ...] = ()

    @property
    def permutes_only(self) -> bool:
        """Whether values are moved and not changed."""
        return all(found is None for found in (*self.factors, *self.shifts))


class AlignedSource:
    """The tensors of ``g · B``, where B is a source and g a change of its weights.

    Args:
        source: B.
        moves: tensor -> what happens to it; tensors that are left out stay as they are.

    Raises:
        ValueError: a move does not fit its tensor, or would change integers.
    """

    def __init__(self, source: TensorSource, moves: Mapping[str, AxisMove | WholeMap]) -> None:
        self._source = source
        self._moves = dict(moves)
        self._whole: tuple[str, Bytes] | None = None
        self._lock = threading.Lock()
        for name, move in self._moves.items():
            entry = source.entries()[name]
            changes = not isinstance(move, AxisMove) or not move.permutes_only
            if changes and entry.dtype not in FLOAT_DTYPES:
                raise ValueError(f"tensor {name!r} of {entry.dtype} cannot be scaled; convert it to floats")
            if isinstance(move, AxisMove):
                _check(name, entry, move)

    def entries(self) -> Mapping[str, Entry]:
        """Every tensor, in the stored order."""
        return self._source.entries()

    def read(self, name: str, start: int, stop: int, out: Bytes) -> None:
        """Fill ``out`` with the bytes of values ``start:stop``."""
        move = self._moves.get(name)
        if move is None:
            self._source.read(name, start, stop, out)
        elif isinstance(move, AxisMove):
            self._read_rows(name, move, start, stop, out)
        else:
            size = self.entries()[name].item_size
            np.copyto(out, self._read_whole(name, move)[start * size : stop * size])

    def close(self) -> None:
        """Release open files."""
        self._whole = None
        self._source.close()

    def _read_rows(self, name: str, move: AxisMove, start: int, stop: int, out: Bytes) -> None:
        entry = self.entries()[name]
        # A vector is one row to the merge; here its only dimension is its rows.
        columns = row_length(entry.shape) if len(entry.shape) > 1 else 1
        first, last = start // columns, -(-stop // columns)
        stored = np.dtype(f"u{entry.item_size}")
        rows = np.empty((last - first, columns), stored)
        index = move.indices[0] if move.indices else None
        if index is None:
            self._source.read(name, first * columns, last * columns, rows.reshape(-1).view(np.uint8))
        elif len(entry.shape) == 1:
            vector = np.empty((entry.size, 1), stored)
            self._source.read(name, 0, entry.size, vector.reshape(-1).view(np.uint8))
            rows[:] = vector[index[first:last]]
        else:
            for begin, end, source in _runs(index[first:last]):
                part = rows[begin:end].reshape(-1).view(np.uint8)
                self._source.read(name, source * columns, (source + end - begin) * columns, part)
        block = rows.reshape(last - first, *entry.shape[1:])
        for axis, along in enumerate(move.indices[1:], 1):
            if along is not None:
                block = np.take(block, along, axis=axis)
        if not move.permutes_only:
            block = _scaled(block, entry.dtype, move, first)
        flat = np.ascontiguousarray(block).reshape(-1)[start - first * columns : stop - first * columns]
        np.copyto(out, flat.view(np.uint8))

    def _read_whole(self, name: str, move: WholeMap) -> Bytes:
        with self._lock:
            if self._whole is None or self._whole[0] != name:
                entry = self.entries()[name]
                raw = np.empty(entry.size * entry.item_size, np.uint8)
                self._source.read(name, 0, entry.size, raw)
                values: Floats = np.empty(entry.size, np.float64)
                decode(raw, entry.dtype, values)
                moved = np.ascontiguousarray(move(values.reshape(entry.shape)), dtype=np.float64)
                encode(moved.reshape(-1), entry.dtype, raw)
                self._whole = name, raw
            return self._whole[1]


def element_moves(element: GroupElement, names: Iterable[str]) -> dict[str, AxisMove | WholeMap]:
    """Return what a group element does to named tensors.

    Args:
        element: the element; its spec must know the names.
        names: of the tensors; those that the element leaves alone are not in the result.
    """
    from metanet.elements.wreath import tied_dimensions

    moves: dict[str, AxisMove | WholeMap] = {}
    for name in names:
        axes = element.spec.axes[name]
        acted = any(number in element.actions for number, _ in element.spec.terms.get(name, ()))
        if acted or any(len(dims) > 1 for dims in tied_dimensions(axes, element.spec)):
            moves[name] = _whole_map(element, name)
            continue
        found = [(element.index(axis), element.factor(axis), element.shift(axis)) for axis in axes]
        if any(part is not None for parts in found for part in parts):
            moves[name] = AxisMove(
                tuple(None if index is None else index.numpy().astype(np.intp) for index, _, _ in found),
                tuple(None if factor is None else factor.double().numpy() for _, factor, _ in found),
                tuple(None if shift is None else shift.double().numpy() for _, _, shift in found),
            )
    return moves


def _whole_map(element: GroupElement, name: str) -> WholeMap:
    def apply(values: Floats) -> Floats:
        import torch

        result: Floats = element.act_one(name, torch.from_numpy(np.ascontiguousarray(values))).numpy()
        return result

    return apply


def _check(name: str, entry: Entry, move: AxisMove) -> None:
    for what, parts in (("indices", move.indices), ("factors", move.factors), ("shifts", move.shifts)):
        found = [None if part is None else part.size for part in parts]
        expected = list(entry.shape)
        fits = len(found) in (0, len(expected)) and all(
            size is None or size == length for size, length in zip(found, expected, strict=False)
        )
        if not fits:
            raise ValueError(f"tensor {name!r} of shape {expected}: the move has {what} of sizes {found}")


def _runs(index: Indices) -> Iterable[tuple[int, int, int]]:
    """Yield ``begin, end, source`` of the stretches of an index that count up by one."""
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    for begin, end in zip([0, *breaks.tolist()], [*breaks.tolist(), index.size], strict=True):
        yield begin, end, int(index[begin])


def _scaled(block: NDArray[np.unsignedinteger], dtype: str, move: AxisMove, first: int) -> NDArray:  # type: ignore[type-arg]
    raw = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
    values: Floats = np.empty(block.size, np.float64)
    decode(raw, dtype, values)
    shaped = values.reshape(block.shape)
    for parts, add in ((move.factors, False), (move.shifts, True)):
        for axis, part in enumerate(parts):
            if part is not None:
                own = part[first : first + block.shape[0]] if axis == 0 else part
                own = own.reshape([-1 if i == axis else 1 for i in range(block.ndim)])
                shaped = shaped + own if add else shaped * own
    encode(np.ascontiguousarray(shaped).reshape(-1), dtype, raw)
    return raw.view(block.dtype).reshape(block.shape)
