"""Phases: sines and cosines whose units may shift their biases by multiples of π/ω.

    sin(ω(w·x + b + kπ/ω)) = (-1)ᵏ sin(ω(w·x + b))

A shift passes through sums, numbers and views to the sines, whose readers then follow its sign. ω is the
product of the numbers on the way; it must be one number for all units and sines of a group.

References:
    Sitzmann et al. 2020, Implicit neural representations with periodic activation functions,
    https://arxiv.org/abs/2006.09661 (the units whose phases these are).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isclose, isfinite

from metanet.axis import Axis, Role
from metanet.blocks import entry_blocks
from metanet.freedoms.equations.registry import Row, occurrences
from metanet.freedoms.linear_forms import ZERO, Form, LinearSystem
from metanet.freedoms.propagation import Network, Place, Propagation
from metanet.skeleton import Operation

PERIODIC = ("sin", "cos")
VIEWS = ("reshape", "transpose", "slice", "select", "expand", "repeat", "cat", "stack", "flip", "roll")
"""What passes a shift on unchanged."""
BIASED = frozenset(
    ("linear", "addmm", "matmul", *(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)))
)


class _NoPhase(Exception):
    """Something reads a shifted value that is no sine."""


def phase_of(network: Network, group: str, roles: Mapping[Place, Role]) -> float | None:
    """Return the frequency of the sines whose units may shift their phase, or None.

    Args:
        network: the operations.
        group: the group.
        roles: of all its places: biases shift, readers take the sign.
    """
    biases = {place for place, role in roles.items() if role == "bias"}
    if not biases or any(not _alone(network, group, place) for place in biases):
        return None
    try:
        shifts = _Shifts(network, group, {entry for entry, _ in biases})
    except _NoPhase:
        return None
    if not shifts.sines:
        return None
    omega = abs(next(iter(shifts.sines.values())))
    if not isfinite(omega) or any(not isclose(abs(o), omega, rel_tol=1e-12) for o in shifts.sines.values()):
        return None
    return omega if _turns(network, group, roles, shifts) else None


def _turns(network: Network, group: str, roles: Mapping[Place, Role], shifts: _Shifts) -> bool:
    """Return whether the readers take up the sign that the sines get, and nothing that has it is shifted."""
    system = LinearSystem(binary=True)
    turn = system.unknown()
    forms: dict[Place, Form] = {place: turn if role == "in" else ZERO for place, role in roles.items()}
    operations = network.operations
    given: dict[int, Row] = {
        position: (turn,) * sum(occurrences(axis, group) for axis in operations[position].axes)
        for position in shifts.sines
    }
    propagation = Propagation(network, group, "sign", system, forms)
    propagation.run(given)
    for position in given:
        for source in operations[position].inputs:
            for form in propagation.value(source).forms:
                system.zero(form)
    return bool(system.reduce(turn))


def _alone(network: Network, group: str, place: Place) -> bool:
    """Return whether a bias belongs to the units of this group alone, under those that it is nested under.

    One of two groups would be shifted by the one and change its sign by the other, and such changes are not
    closed under composition.
    """
    entry, _ = place
    chain: list[str] = []
    above: str | None = group
    while above is not None:
        chain.append(above)
        above = network.spec.group[above].parent
    axes = network.spec.axes[entry]
    blocks = [block.groups for block in entry_blocks(entry, axes)]
    return all(len(groups) == len(chain) for groups in blocks if group in groups)


class _Shifts:
    """How far every value is shifted, in units of the biases' shift, and the frequency of every sine.

    Args:
        network: the operations.
        group: whose units are shifted.
        entries: the shifted biases.

    Raises:
        _NoPhase: a shifted value is read by something else.
    """

    def __init__(self, network: Network, group: str, entries: set[str]) -> None:
        self.network = network
        self.group = group
        self.entries = entries
        self.amounts: dict[int, float] = {}
        self.sines: dict[int, float] = {}
        for position in network.touching[group]:
            self._visit(position, network.operations[position])

    def _visit(self, position: int, op: Operation) -> None:
        shifted = [self.amounts.get(source, 0.0) for source in op.inputs]
        biased = [role for role, entry in op.parameters if self.network.entry(entry) in self.entries]
        if op.kind == "parameter" and biased:
            self.amounts[position] = 1.0
        elif biased:
            plain = op.kind in BIASED and biased == ["bias"] and not any(shifted)
            own = self.network.spec.axes[op.parameter("bias") or ""] if plain else ()
            if not plain or self.count(op.axes) != self.count(own) or op.attribute("beta", 1) != 1:
                raise _NoPhase
            self.amounts[position] = 1.0
        elif any(shifted):
            self._pass(position, op, shifted)

    def _pass(self, position: int, op: Operation, shifted: list[float]) -> None:
        number = op.attribute("scalar")
        factor = float(number) if isinstance(number, (int, float)) else None
        reverse = bool(op.attribute("reverse"))
        result: float | None = None
        if op.kind in PERIODIC:
            self.sines[position] = shifted[0]
            return
        if op.kind in VIEWS and len(set(shifted)) == 1:
            result = shifted[0]
        elif op.kind in ("neg", "positive"):
            result = -shifted[0] if op.kind == "neg" else shifted[0]
        elif op.kind == "mul" and len(op.inputs) == 1 and factor is not None:
            result = shifted[0] * factor
        elif op.kind == "div" and len(op.inputs) == 1 and factor and not reverse:
            result = shifted[0] / factor if op.attribute("rounding_mode") is None else None
        elif op.kind in ("add", "sub"):
            result = self._sum(op, shifted)
        here = self.count(op.axes)
        if not result or (not here and op.kind != "slice"):
            raise _NoPhase
        if here:
            self.amounts[position] = result

    def _sum(self, op: Operation, shifted: list[float]) -> float | None:
        alpha = op.attribute("alpha", 1)
        sign = -1.0 if op.kind == "sub" else 1.0
        if not isinstance(alpha, (int, float)):
            return None
        for source, amount in zip(op.inputs, shifted, strict=True):
            here = self.network.operations[source].axes
            if amount and self.count(here) != self.count(op.axes):
                return None
        if len(shifted) == 1:
            return shifted[0] * (sign * alpha if op.attribute("reverse") else 1.0)
        if op.attribute("reverse"):
            return None
        return shifted[0] + sign * alpha * shifted[1]

    def count(self, axes: Iterable[Axis]) -> int:
        """Return how often the group occurs in axes."""
        return sum(occurrences(axis, self.group) for axis in axes)
