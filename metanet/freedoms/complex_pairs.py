"""Values that are a complex number times what a projection wrote, followed through a network.

See `metanet.freedoms.rotary` for what it is about. A value is described by the *code* of every element:
``2 j + b`` for part b (0 real, 1 imaginary) of pair j, ``-1`` for what is none of the projection's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import TypeAlias

import torch
from torch import Tensor

from metanet.freedoms.dataflow import Dataflow
from metanet.skeleton import Attribute, Operation

Sum: TypeAlias = Mapping[tuple[object, ...], float]
"""A sum of products of tables, by the tables' keys."""


class Ended(Exception):
    """An operation reads pairs in a way that does not commute with complex factors."""


@dataclass(frozen=True, eq=False, slots=True)
class Pairs:
    """Real and imaginary parts of γz; ``codes`` broadcast to the value."""

    codes: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Combination:
    """``a Re z + b Im z``, z being the pairs of an earlier value; ``codes`` are 2 j."""

    codes: Tensor
    base: int
    real: Sum
    imaginary: Sum


@dataclass(frozen=True, eq=False, slots=True)
class Complex:
    """Complex numbers γz; ``codes`` are 2 j."""

    codes: Tensor


State: TypeAlias = Pairs | Combination | Complex
Ends: TypeAlias = dict[tuple[int, int], tuple[int, ...]]


class PairFlow:
    """The search, for one network.

    Args:
        flow: of the network.
    """

    def __init__(self, flow: Dataflow) -> None:
        self.flow = flow
        self.keys: dict[int, object] = {}

    def ends(self, position: int, codes: Tensor) -> Ends:
        """Return where the pairs in the last dimension of a value end in attention.

        Args:
            position: the operation that makes the value.
            codes: ``[n]`` codes of its last dimension.

        Returns:
            (attention operation, slot) -> the codes of the width that is summed over; nothing if some of the
            pairs end anywhere else.
        """
        rank = len(self.flow.operations[position].axes)
        states: dict[int, State] = {position: Pairs(codes.reshape(*[1] * (rank - 1), -1))}
        ends: Ends = {}
        todo = sorted({reader for reader, _ in self.flow.readers[position]})
        try:
            while todo:
                reader = heappop(todo)
                if reader in states:
                    continue
                op = self.flow.operations[reader]
                state = self.step(reader, op, [states.get(source) for source in op.inputs], ends)
                if state is not None and bool((state.codes >= 0).any()):
                    states[reader] = _with(state, _constant_dims_narrowed(state.codes))
                    for further, _ in self.flow.readers[reader]:
                        heappush(todo, further)
        except Ended:
            return {}
        return ends

    def step(self, position: int, op: Operation, inputs: Sequence[State | None], ends: Ends) -> State | None:
        """Return what an operation makes of pairs, or None where they end in attention or are cut off.

        Raises:
            Ended: they do not stay pairs.
        """
        if all(state is None for state in inputs):
            return None
        if op.kind == "sdpa" or (op.kind == "matmul" and len(inputs) == 2):
            self.end(position, op, inputs, ends)
            return None
        if op.kind in ("cat", "stack"):
            return self.joined(position, op, inputs)
        if len(inputs) == 2 and op.kind in ("add", "sub", "mul"):
            return self.binary(op, inputs)
        if len(inputs) != 1 or inputs[0] is None:
            raise Ended
        state, source = inputs[0], op.inputs[0]
        if op.kind in ("slice", "select"):
            return self.picked(op, state, source)
        if op.kind == "view_as_complex" and isinstance(state, Pairs):
            codes = state.codes
            if codes.shape[-1] != 2 or not _partners(codes[..., 0], codes[..., 1]):
                raise Ended
            return Complex(codes[..., 0])
        if op.kind == "view_as_real" and isinstance(state, Complex):
            return Pairs(torch.stack([state.codes, torch.where(state.codes < 0, -1, state.codes + 1)], -1))
        if op.kind in ("reshape", "transpose", "expand", "repeat"):
            return _with(state, self.moved(position, op, state.codes))
        if self.flow.scales(op):
            number = -1.0 if op.kind == "neg" else self.flow.number(op)
            factor = 1.0 if number is None else 1 / number if op.kind == "div" else number
            return _scaled(state, factor)
        raise Ended

    def end(self, position: int, op: Operation, inputs: Sequence[State | None], ends: Ends) -> None:
        """Note that pairs are queries or keys of attention, whose width alone tells them apart."""
        for slot, state in enumerate(inputs):
            if state is None:
                continue
            width = state.codes.ndim - (2 if op.kind == "matmul" and slot == 1 else 1)
            if slot > 1 or not isinstance(state, Pairs) or state.codes.numel() != state.codes.shape[width]:
                raise Ended
            codes = tuple(state.codes.flatten().tolist())
            own = sorted(code for code in codes if code >= 0)
            if own != list(range(len(own))) or len(own) % 2:
                raise Ended
            ends[position, slot] = codes

    def picked(self, op: Operation, state: State, source: int) -> State:
        """Take a part of a dimension; what has one part of each pair left is a combination."""
        dim = op.attribute("dim")
        assert isinstance(dim, int)
        codes = state.codes
        if codes.shape[dim] > 1 or op.kind == "select":
            if op.kind == "select":
                index = op.attribute("index")
                assert isinstance(index, int)
                codes = codes.select(dim, index if codes.shape[dim] > 1 else 0)
            else:
                codes = codes[
                    (slice(None),) * dim + (slice(*(_integer(op, n) for n in ("start", "stop", "step"))),)
                ]
        if not isinstance(state, Pairs):
            return _with(state, codes)
        parts = set((codes[codes >= 0] % 2).tolist())
        if len(parts) == 1 and bool((codes >= 0).all()):
            part = parts.pop()
            one: Sum = {(): 1.0}
            return Combination(codes - part, source, {} if part else one, one if part else {})
        return Pairs(codes)

    def binary(self, op: Operation, inputs: Sequence[State | None]) -> State:
        """Add values of one kind, or multiply by a table."""
        first, second = inputs
        if op.kind == "mul":
            slot = 0 if first is not None else 1
            state, table = inputs[slot], op.inputs[1 - slot]
            if state is None or inputs[1 - slot] is not None or not self.flow.weightless[table]:
                raise Ended
            codes = _broadcast(state.codes, len(op.axes))
            if isinstance(state, Pairs) and not self.paired(table, codes):
                raise Ended
            if not isinstance(state, Combination):
                return _with(state, codes)
            key = self.key(table)
            return replace(
                state, codes=codes, real=_times(state.real, key), imaginary=_times(state.imaginary, key)
            )
        if first is None or second is None or type(first) is not type(second) or op.attribute("alpha"):
            raise Ended
        rank = len(op.axes)
        if not _same(_broadcast(first.codes, rank), _broadcast(second.codes, rank)):
            raise Ended
        if isinstance(first, Combination) and isinstance(second, Combination):
            if first.base != second.base:
                raise Ended
            sign = -1.0 if op.kind == "sub" else 1.0
            real = _added(first.real, second.real, sign)
            imaginary = _added(first.imaginary, second.imaginary, sign)
            return replace(first, codes=_broadcast(first.codes, rank), real=real, imaginary=imaginary)
        return first

    def joined(self, position: int, op: Operation, inputs: Sequence[State | None]) -> State:
        """Put two combinations together to pairs again, or pairs beside what is none of theirs."""
        dim = op.attribute("dim")
        assert isinstance(dim, int)
        a, b = inputs if len(inputs) == 2 else (None, None)
        if isinstance(a, Combination) and isinstance(b, Combination):
            negated = {tables: -value for tables, value in a.imaginary.items()}
            if a.base != b.base or b.imaginary != a.real or b.real != negated or not _same(a.codes, b.codes):
                raise Ended
            codes = [a.codes, b.codes + 1]
            return Pairs(torch.stack(codes, dim) if op.kind == "stack" else torch.cat(codes, dim))
        if op.kind == "stack" or not any(isinstance(state, Pairs) for state in inputs):
            raise Ended
        rank = len(op.axes)
        wide, sizes = list[Tensor](), [self.flow.shapes[source][dim] for source in op.inputs]
        for state in inputs:
            if state is not None and not isinstance(state, Pairs):
                raise Ended
            wide.append(torch.full([1] * rank, -1) if state is None else state.codes)
        common = list(torch.broadcast_shapes(*(codes.narrow(dim, 0, 1).shape for codes in wide)))
        laid = [
            codes.expand(*common[:dim], size, *common[dim + 1 :])
            for codes, size in zip(wide, sizes, strict=True)
        ]
        return Pairs(torch.cat(laid, dim))

    def moved(self, position: int, op: Operation, codes: Tensor) -> Tensor:
        """Return the codes after a reshape, a transposition or copies along dimensions."""
        before, after = self.flow.shapes[op.inputs[0]], self.flow.shapes[position]
        if op.kind == "transpose":
            dims = op.attribute("dims")
            assert isinstance(dims, tuple)
            return codes.permute([d for d in dims if isinstance(d, int)])
        if op.kind == "reshape":
            return _reshaped(codes, before, after)
        codes = _broadcast(codes, len(after))
        padded = (1,) * (len(after) - len(before)) + tuple(before)
        if any(codes.shape[d] > 1 and padded[d] != after[d] for d in range(len(after))):
            raise Ended
        return codes

    # Tables

    def paired(self, table: int, codes: Tensor) -> bool:
        """Return whether a table has one value for both parts of every pair."""
        shape = self.flow.shapes[table]
        varying = [d - codes.ndim for d in range(codes.ndim) if codes.shape[d] > 1]
        along = [d for d in varying if -d <= len(shape) and shape[d] > 1]
        if not along:
            return True
        if _indexed_alike(codes, along):
            return True
        if along != [-1]:
            return False
        last = codes.movedim(-1, 0).flatten(1)
        n = len(last) // 2
        halves = len(last) % 2 == 0 and _partners_any(last[:n], last[n:])
        neighbours = len(last) % 2 == 0 and _partners_any(last[0::2], last[1::2])
        return (halves and self.repeats(table, "half")) or (neighbours and self.repeats(table, "interleaved"))

    def repeats(self, table: int, layout: Attribute) -> bool:
        """Return whether the last dimension of a table consists of pairs of equal values."""
        op = self.flow.operations[table]
        shape = self.flow.shapes[table]
        if op.kind == "constant":
            known = op.attribute("repeats")
            return isinstance(known, tuple) and layout in known
        if op.kind == "cat" and len(op.inputs) == 2 and op.attribute("dim") == len(shape) - 1:
            return layout == "half" and self.key(op.inputs[0]) == self.key(op.inputs[1])
        if op.kind in ("reshape", "expand", "select", "slice", "transpose"):
            source = op.inputs[0]
            last = len(self.flow.shapes[source]) - 1
            return self.flow.forward(table, 0, last) == len(shape) - 1 and self.repeats(source, layout)
        elementwise = all(self.flow.shapes[i][-1:] in ((1,), shape[-1:], ()) for i in op.inputs)
        if op.inputs and elementwise and op.kind in ELEMENTWISE:
            return all(self.flow.shapes[i][-1:] in ((1,), ()) or self.repeats(i, layout) for i in op.inputs)
        return False

    def key(self, position: int) -> object:
        """Return something that is the same for operations that compute the same."""
        if position not in self.keys:
            op = self.flow.operations[position]
            made = op.inputs and not op.parameters and op.kind not in ("bernoulli", "rand")
            inner = tuple(self.key(source) for source in op.inputs)
            self.keys[position] = (op.kind, op.attributes, op.axes, inner) if made else position
        return self.keys[position]


ELEMENTWISE = frozenset(("cos", "sin", "mul", "add", "sub", "div", "neg", "exp", "pow", "cast"))


def _integer(op: Operation, name: str) -> int:
    value = op.attribute(name)
    assert isinstance(value, int)
    return value


def _partners(real: Tensor, imaginary: Tensor) -> bool:
    """Return whether codes are those of real and imaginary parts, in this order."""
    own = real >= 0
    return bool(torch.where(own, (real % 2 == 0) & (imaginary == real + 1), imaginary < 0).all())


def _partners_any(first: Tensor, second: Tensor) -> bool:
    """Return whether codes are those of the two parts of pairs, in either order."""
    own = first >= 0
    return bool(torch.where(own, first // 2 == second // 2, second < 0).all())


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def _with(state: State, codes: Tensor) -> State:
    return replace(state, codes=codes)


def _scaled(state: State, factor: float) -> State:
    if not isinstance(state, Combination):
        return state
    real, imaginary = (_added({}, total, factor) for total in (state.real, state.imaginary))
    return replace(state, real=real, imaginary=imaginary)


def _times(total: Sum, key: object) -> Sum:
    return {tuple(sorted((*tables, key), key=repr)): value for tables, value in total.items()}


def _indexed_alike(codes: Tensor, dims: Sequence[int]) -> bool:
    """Return whether both parts of every pair have the same index along some dimensions."""
    index = torch.zeros([1] * codes.ndim, dtype=torch.long)
    for dim in dims:
        shape = [1] * codes.ndim
        shape[dim] = codes.shape[dim]
        index = index * codes.shape[dim] + torch.arange(codes.shape[dim]).reshape(shape)
    seen: dict[int, set[int]] = {}
    for code, place in zip(codes.flatten().tolist(), index.expand_as(codes).flatten().tolist(), strict=True):
        if code >= 0:
            seen.setdefault(code // 2, set()).add(place)
    return all(len(places) == 1 for places in seen.values())


def _added(first: Sum, second: Sum, sign: float) -> Sum:
    total = {key: first.get(key, 0.0) + sign * second.get(key, 0.0) for key in {**first, **second}}
    return {key: value for key, value in total.items() if value}


def _broadcast(codes: Tensor, rank: int) -> Tensor:
    return codes.reshape((1,) * (rank - codes.ndim) + tuple(codes.shape))


def _constant_dims_narrowed(codes: Tensor) -> Tensor:
    for dim in range(codes.ndim):
        first = codes.narrow(dim, 0, 1)
        if codes.shape[dim] > 1 and bool((codes == first).all()):
            codes = first
    return codes


def _reshaped(codes: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Reshape codes that broadcast to a shape; dimensions along which they do not vary stay of size one."""
    if 0 in before:
        raise Ended
    shape, expanded = list[int](), list[int]()
    i = j = 0
    while i < len(before) or j < len(after):
        start, first = i, j
        mine = before[i] if i < len(before) else 1
        theirs = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while mine != theirs:
            if mine < theirs:
                mine, i = mine * before[i], i + 1
            else:
                theirs, j = theirs * after[j], j + 1
        varies = any(codes.shape[d] > 1 for d in range(start, i))
        expanded += before[start:i] if varies else [1] * (i - start)
        shape += after[first:j] if varies else [1] * (j - first)
    return codes.expand(expanded).reshape(shape)
