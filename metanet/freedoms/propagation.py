"""Propagation of exponents through the skeleton of a network: the equations of all operations, one group."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from metanet.axis import Axis, Perm, atoms
from metanet.freedoms.dataflow import Dataflow
from metanet.freedoms.equations import EQUATIONS, Carrier, Mode, Step, Unfit
from metanet.freedoms.equations.registry import Row, occurrences
from metanet.freedoms.linear_forms import Form, LinearSystem
from metanet.leaf import leaves_of
from metanet.skeleton import Operation

Place = tuple[str, int]
"""An entry (the first of tied ones) and one of its leaves."""

NULL = frozenset(
    ("reshape", "transpose", "expand", "repeat", "neg", "positive", "relu", "tanh", "sin", "flip", "roll")
)
"""Functions that keep zero tensors zero."""


class Network(Dataflow):
    """The operations of a spec, by the groups that they touch, and the places of groups in entries."""

    def entry(self, name: str) -> str:
        """Return the name under which an entry's places are known."""
        return self.first.get(name, name)

    @cached_property
    def touching(self) -> Mapping[str, Sequence[int]]:
        """Group to the operations that read or make a value, or read an entry, that carries it."""
        found: dict[str, list[int]] = {}
        own = [_groups(operation.axes) for operation in self.operations]
        entries = {name: _groups(axes) for name, axes in self.spec.entries}
        for position, operation in enumerate(self.operations):
            groups = {*own[position]}
            groups.update(*(own[source] for source in operation.inputs))
            groups.update(*(entries[entry] for _, entry in operation.parameters))
            for group in groups:
                found.setdefault(group, []).append(position)
        return found

    @cached_property
    def places(self) -> Mapping[str, Sequence[Place]]:
        """Group to its places, in the order of entries."""
        found: dict[str, list[Place]] = {}
        for name, axes in self.spec.entries:
            if self.entry(name) == name:
                for number, leaf in enumerate(leaves_of(axes)):
                    if isinstance(leaf.atom, Perm):
                        found.setdefault(leaf.atom.group, []).append((name, number))
        return found

    @cached_property
    def order(self) -> Mapping[str, int]:
        """Entry to its place among the entries."""
        return {name: place for place, (name, _) in enumerate(self.spec.entries)}

    def sorted(self, entries: Iterable[str]) -> list[str]:
        """Return entries in order, those that are tied under all their names."""
        ties = {tie[0]: tie for tie in self.spec.ties}
        names = [name for entry in entries for name in ties.get(entry, (entry,))]
        return sorted(names, key=lambda name: self.order[name])

    def eps(self, entry: str) -> float | None:
        """Return what is added to a variance before its root, or None of another entry."""
        found = {
            self.operations[position].attribute("eps") if role == "running_var" else None
            for position, role in self.uses.get(entry, ())
        }
        [eps] = found if len(found) == 1 else [None]
        return float(eps) if isinstance(eps, (int, float)) else None

    def mixed(self, entry: str) -> bool:
        """Return whether an entry is a variance in one place and something else in another."""
        variance = any(role == "running_var" for _, role in self.uses.get(entry, ()))
        return variance and self.eps(entry) is None


def _groups(axes: Sequence[Axis]) -> set[str]:
    return {atom.group for axis in axes for atom in atoms(axis) if isinstance(atom, Perm)}


class Propagation:
    """The exponents of one group in all values.

    Args:
        network: the operations.
        group: the group.
        mode: what is asked.
        system: where equations go.
        forms: the exponents of the group's places.
    """

    def __init__(
        self, network: Network, group: str, mode: Mode, system: LinearSystem, forms: Mapping[Place, Form]
    ) -> None:
        self.network = network
        self.group = group
        self.mode = mode
        self.system = system
        self.forms = forms
        self.carriers: dict[int, Carrier] = {}
        self.finals: dict[int, dict[int, Carrier]] = {}

    def run(self, given: Mapping[int, Row] | None = None) -> None:
        """Add the equations of every operation that touches the group.

        Args:
            given: operations whose results have known exponents: they add no equations.
        """
        queue = list(self.network.touching.get(self.group, ()))
        heapq.heapify(queue)
        done = -1
        while queue:
            position = heapq.heappop(queue)
            if position == done:
                continue
            done = position
            if given is not None and position in given:
                carrier = self._placed(self.network.operations[position], given[position])
            else:
                carrier = self._result(position)
            self.carriers[position] = carrier
            if carrier.hidden or self.finals.get(position):
                for reader, _ in self.network.readers[position]:
                    heapq.heappush(queue, reader)

    def value(self, position: int) -> Carrier:
        """Return what an operation made."""
        found = self.carriers.get(position)
        if found is None:
            axes = self.network.operations[position].axes
            found = Carrier(tuple(() for _ in axes), axes, null=self._null_constant(position))
        return found

    def _null_constant(self, position: int) -> bool:
        operation = self.network.operations[position]
        return operation.kind == "constant" and operation.attribute("value") == 0

    def entry(self, name: str) -> Carrier:
        """Return an entry with the exponents of its places."""
        axes = self.network.spec.axes[name]
        rows: list[list[Form]] = [[] for _ in axes]
        first = self.network.entry(name)
        for number, leaf in enumerate(leaves_of(axes)):
            if isinstance(leaf.atom, Perm) and leaf.atom.group == self.group:
                rows[leaf.dim].append(self.forms[first, number])
        return Carrier(tuple(map(tuple, rows)), axes)

    def _result(self, position: int) -> Carrier:
        op = self.network.operations[position]
        counts = tuple(occurrences(axis, self.group) for axis in op.axes)
        inputs = tuple(map(self.value, op.inputs))
        parameters = {role: self.entry(entry) for role, entry in op.parameters}
        if op.kind == "parameter":
            return parameters["value"]
        null = self._null_constant(position) or (
            op.kind in NULL and bool(inputs) and all(carrier.null for carrier in inputs)
        )
        if null:
            return self._shaped_null(op, counts)
        zeros = Carrier(tuple(({},) * count for count in counts), op.axes)
        if op.kind in ("constant", "input"):
            return zeros
        step = Step(
            self.system, self.mode, op, inputs, parameters, counts, self.network.spec.sizes, self.group
        )
        try:
            return self._checked(position, step)
        except Unfit:
            step.pin(*(carrier.forms for carrier in (*inputs, *parameters.values())))
            return zeros

    def _shaped_null(self, op: Operation, counts: Sequence[int]) -> Carrier:
        rows = tuple(tuple(self.system.unknown() for _ in range(count)) for count in counts)
        return Carrier(rows, op.axes, null=True)

    def _checked(self, position: int, step: Step) -> Carrier:
        """Return what an operation's equation says, if it fits the axes of its result."""
        op = step.op
        if op.kind == "getitem":
            return self._final(op, step)
        found = EQUATIONS.get(op.kind)
        if found is None:
            raise Unfit
        result = found(step)
        self.finals[position] = step.finals
        carrier = result if isinstance(result, Carrier) else Carrier(tuple(result))
        if tuple(map(len, carrier.rows)) != step.counts:
            step.pin(carrier.forms)
            raise Unfit
        rows = tuple(tuple(map(self.system.reduce, row)) for row in carrier.rows)
        return Carrier(rows, op.axes, carrier.null, carrier.hidden, carrier.alternatives)

    def _final(self, op: Operation, step: Step) -> Carrier:
        """Return a further result of a recurrent network."""
        index = op.attribute("index")
        assert isinstance(index, int)
        final = self.finals.get(op.inputs[0], {}).get(index)
        if final is None:
            raise Unfit
        if not final.hidden:
            return Carrier(final.rows or tuple(() for _ in op.axes), op.axes)
        if not sum(step.counts):
            rows = tuple(() for _ in op.axes)
            return Carrier(rows, op.axes, hidden=final.hidden, alternatives=final.alternatives)
        if len(final.hidden) != sum(step.counts):
            step.pin(final.hidden)
            raise Unfit
        return self._placed(op, final.hidden)

    def _placed(self, op: Operation, forms: Row) -> Carrier:
        queue = iter(forms)
        rows = tuple(tuple(next(queue) for _ in range(occurrences(axis, self.group))) for axis in op.axes)
        return Carrier(rows, op.axes)
