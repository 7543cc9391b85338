"""Freedoms beside permutation: which units may change sign, and which sines may shift their phase.

Both are read off the skeleton by one analysis. Suppose every entry that carries a group is multiplied by a
sign per unit; a value is then *odd* (it takes the sign wherever it carries the group), *even* (it is
unchanged), or neither, and a group has the freedom if nothing is neither. A shift of a sine's bias by kπ/ω
makes the sine odd in the same sense, with the sign (-1)^k, while its row stays and its readers follow.

    sin(ω(w·x + b + kπ/ω)) = (-1)^k sin(ω(w·x + b))

An operation that is not listed here may read no odd value, so an omission costs freedom and not soundness.

References:
    Hecht-Nielsen 1990, On the algebraic structure of feedforward network weight spaces (tanh: signs).
    Sitzmann et al. 2020, Implicit neural representations with periodic activation functions,
    https://arxiv.org/abs/2006.09661 (the units whose phases these are).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

from metanet.axis import Axis, Perm, Role, atoms, map_perms
from metanet.blocks import entry_blocks
from metanet.skeleton import Operation
from metanet.spec import Freedom, WeightSpec

State = Literal["odd", "even", "zero"]

ODD_FUNCTIONS = frozenset(
    (
        *("tanh", "sin", "asinh", "atan", "erf", "sinh", "tan", "asin", "atanh"),
        *("softshrink", "hardshrink", "sgn", "sign", "trunc", "round"),
    )
)
"""Nonlinear functions with f(-x) = -f(x)."""
SYMMETRIC_BOUNDS = {"hardtanh": ("min_val", "max_val"), "clamp": ("min", "max")}
EVEN_FUNCTIONS = frozenset(("abs", "cos", "cosh", "square"))
NONLINEAR = ODD_FUNCTIONS | EVEN_FUNCTIONS | frozenset(SYMMETRIC_BOUNDS) | {"pow"}
LINEAR_ALONG = frozenset(
    ("neg", "positive", "reshape", "transpose", "expand", "repeat", "flip", "roll", "upsample")
) | {f"{kind}_pool{n}d" for kind in ("avg", "adaptive_avg") for n in (1, 2, 3)}
"""Linear operations with one input that do not mix units."""
COLUMNS_FIRST = frozenset(("matmul", "addmm", *(f"conv_transpose{n}d" for n in (1, 2, 3))))
"""Operations whose weight has its columns first."""
MATRICES = COLUMNS_FIRST | {"linear", "conv1d", "conv2d", "conv3d"}


class _Neither(Exception):
    """A value is neither odd nor even."""


@dataclass(frozen=True)
class _Writer:
    """A linear map, whose rows and biases are the units', and the frequency of the sine that follows it."""

    operation: int
    omega: float
    chain: tuple[int, ...]


def with_freedoms(spec: WeightSpec, other: Iterable[str] = ()) -> WeightSpec:
    """Return the spec with the signs and phases that its operations allow, and the roles these need.

    The ``other`` entries, which are no real numbers (integers, truth values), take no sign and no shift.
    """
    found: dict[str, list[Freedom]] = {}
    roles: dict[tuple[str, int, str], Role] = {}
    rigid = {group for name in other for axis in spec.axes[name] for group in _groups(axis)}
    candidates = _touched(spec) - rigid
    for group in spec.groups:
        if group.name not in candidates:
            continue
        analysis = _Parity(spec, group.name)
        freedoms = [Freedom("sign")] if analysis.sign() else []
        omega = analysis.phase()
        if omega is not None:
            freedoms.append(Freedom("phase", omega))
        if freedoms:
            found[group.name] = freedoms
            roles |= {(entry, dim, group.name): role for (entry, dim), role in analysis.roles.items()}
    if not found:
        return spec
    same = {name: tie[0] for tie in spec.ties for name in tie}
    entries = []
    for name, axes in spec.entries:
        marked = []
        for dim, axis in enumerate(axes):
            marks: dict[Perm, Axis] = {
                Perm(group): Perm(group, roles.get((same.get(name, name), dim, group), "out"))
                for group in found
            }
            marked.append(map_perms(axis, marks))
        entries.append((name, tuple(marked)))
    groups = tuple(replace(group, freedoms=tuple(found.get(group.name, ()))) for group in spec.groups)
    return replace(spec, groups=groups, entries=tuple(entries))


def _touched(spec: WeightSpec) -> set[str]:
    """Return the groups that a nonlinear function reads which may keep a sign.

    Between two linear maps alone a sign is part of a larger freedom, a scale.
    """
    return {
        group
        for operation in spec.operations
        if operation.kind in NONLINEAR
        for axis in operation.axes
        for group in _groups(axis)
    }


def _groups(axis: Axis) -> set[str]:
    return {atom.group for atom in atoms(axis) if isinstance(atom, Perm)}


class _Parity:
    """The analysis for one group."""

    def __init__(self, spec: WeightSpec, group: str) -> None:
        self.spec = spec
        self.group = group
        self.operations = spec.operations
        self.roles = self._roles()
        self.readers: dict[int, list[int]] = {}
        for position, operation in enumerate(self.operations):
            for source in operation.inputs:
                self.readers.setdefault(source, []).append(position)

    def sign(self) -> bool:
        """Return whether the units may change sign."""
        odd = {name for name in self.spec if self.count(self.spec.axes[name])}
        try:
            self.propagate(odd, {})
        except _Neither:
            return False
        return True

    def phase(self) -> float | None:
        """Return the frequency of the sine whose units may shift their phase, or None."""
        sines = [i for i, op in enumerate(self.operations) if op.kind == "sin" and self.count(op.axes)]
        writers = [self.writer(position) for position in sines]
        found = [writer for writer in writers if writer is not None]
        if not found or len(found) < len(writers) or len({writer.omega for writer in found}) > 1:
            return None
        written = {entry for w in found for _, entry in self.operations[w.operation].parameters}
        users = {i for i, op in enumerate(self.operations) if written & {e for _, e in op.parameters}}
        if users != {writer.operation for writer in found}:
            return None
        written |= {name for tie in self.spec.ties if written & set(tie) for name in tie}
        odd = {name for name in self.spec if self.count(self.spec.axes[name])} - written
        if any(role != "in" for (entry, _), role in self.roles.items() if entry not in written):
            return None
        known: dict[int, State | None] = dict.fromkeys(i for w in found for i in (w.operation, *w.chain))
        try:
            self.propagate(odd, {**known, **dict.fromkeys(sines, "odd")})
        except _Neither:
            return None
        return found[0].omega

    def writer(self, sine: int) -> _Writer | None:
        """Follow a sine back, through factors and reshapes, to the linear map whose only use it is."""
        omega, chain = 1.0, list[int]()
        position = self.operations[sine].inputs[0]
        while self.readers[position] in ([sine], chain[-1:]):
            op = self.operations[position]
            scalar = op.attribute("scalar")
            plain = len(op.inputs) == 1 and not op.attribute("reverse")
            if op.kind in MATRICES and op.parameter("weight") and op.parameter("bias"):
                return self.checked(_Writer(position, abs(omega), tuple(chain)), op)
            if plain and op.kind in ("mul", "div") and isinstance(scalar, (int, float)) and scalar:
                omega = omega * scalar if op.kind == "mul" else omega / scalar
            elif not (plain and (op.kind in ("neg", "reshape", "transpose") or _adds_number(op))):
                return None
            chain.append(position)
            position = op.inputs[0]
        return None

    def checked(self, writer: _Writer, op: Operation) -> _Writer | None:
        """Return the writer if its weight has the units in its rows alone, and its bias too.

        A bias that belongs to units of two groups at once would be shifted by the one and change its sign by
        the other, and such changes are not closed under composition.
        """
        weight, bias = op.parameter("weight"), op.parameter("bias")
        assert weight is not None
        assert bias is not None
        row = 1 if op.kind in COLUMNS_FIRST else 0
        axes = self.spec.axes[weight]
        alone = all(self.count((axis,)) == (dim == row) for dim, axis in enumerate(axes))
        fits = alone and self.count(self.spec.axes[bias]) == self.count(op.axes) == 1
        fits = fits and not self.grouped(op) and op.attribute("beta", 1) == 1
        blocks = [block.groups for block in entry_blocks(bias, self.spec.axes[bias])]
        fits = fits and all(len(groups) == 1 for groups in blocks if self.group in groups)
        return writer if fits and isfinite(writer.omega) and len(op.parameters) == 2 else None

    @staticmethod
    def grouped(op: Operation) -> bool:
        return op.attribute("groups", 1) not in (1, None)

    def count(self, axes: Iterable[Axis]) -> int:
        """Return how often the group occurs in some axes."""
        return sum(
            isinstance(atom, Perm) and atom.group == self.group for axis in axes for atom in atoms(axis)
        )

    # Propagation

    def propagate(self, odd: set[str], known: Mapping[int, State | None]) -> None:
        """Find the state of every value, given the entries that are odd and some values' states.

        Raises:
            _Neither: a value is neither odd nor even, or one that is None is read.
        """
        states: list[State | None] = []
        for position, op in enumerate(self.operations):
            inputs = [states[i] for i in op.inputs]
            if position in known:
                state = known[position]
                if state is None and "odd" in inputs:
                    raise _Neither
            elif None in inputs:
                raise _Neither
            else:
                state = self.state(op, [s for s in inputs if s is not None], odd)
            if state == "odd" and op.kind == "output":
                raise _Neither
            if state == "odd" and not self.count(op.axes):
                state = "even"
            states.append(state)

    def state(self, op: Operation, inputs: Sequence[State], odd: set[str]) -> State:
        parameters: dict[str, State] = {r: "odd" if e in odd else "even" for r, e in op.parameters}
        if op.kind == "constant":
            return "zero" if op.attribute("value") == 0 else "even"
        if "odd" not in inputs and "odd" not in parameters.values():
            return "even"
        if op.kind in MATRICES:
            return self.matrix(op, inputs, parameters)
        if op.kind in ("add", "sub"):
            return self.sum(op, inputs)
        if op.kind in ("mul", "div"):
            return self.product(op, inputs)
        if op.kind in ("cat", "stack"):
            return self.concatenation(op, inputs)
        if op.kind in ("parameter", "embedding") and "odd" not in inputs:
            return "odd"
        if op.kind in ("mean", "sum"):
            return self.mean(op)
        if op.kind == "sdpa":
            return self.attention(op, inputs)
        if op.kind in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            return self.recurrent(op, inputs, odd)
        if parameters or len(inputs) != 1:
            raise _Neither
        return self.function(op)

    def function(self, op: Operation) -> State:
        """Return the state of a function of one odd value."""
        kept = self.count(op.axes) == self.count(self.operations[op.inputs[0]].axes)
        if op.kind in ("slice", "select"):
            return "odd"
        if not kept:
            raise _Neither
        if op.kind in ODD_FUNCTIONS or op.kind in LINEAR_ALONG:
            return "odd"
        if op.kind in EVEN_FUNCTIONS:
            return "even"
        if op.kind in SYMMETRIC_BOUNDS:
            low, high = (op.attribute(name) for name in SYMMETRIC_BOUNDS[op.kind])
            if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low == -high <= 0:
                return "odd"
        if op.kind == "pad" and (op.attribute("mode") != "constant" or op.attribute("value") == 0):
            return "odd"
        exponent = op.attribute("scalar")
        power = op.kind == "pow" and not op.attribute("reverse")
        if power and isinstance(exponent, (int, float)) and float(exponent).is_integer():
            return "odd" if int(exponent) % 2 else "even"
        raise _Neither

    def matrix(self, op: Operation, inputs: Sequence[State], parameters: Mapping[str, State]) -> State:
        """A contraction: an odd value meets odd columns; what is left carries the sign of rows and batch."""
        x_axes = self.operations[op.inputs[0]].axes
        weight = op.parameter("weight")
        if weight is not None:
            axes, state = self.spec.axes[weight], parameters["weight"]
            column = 0 if op.kind in COLUMNS_FIRST else len(axes) - 1 if op.kind == "linear" else 1
            further = inputs[1:]
        elif len(op.inputs) > 1 and op.kind in ("matmul", "linear"):
            axes, state = self.operations[op.inputs[1]].axes, inputs[1]
            column = len(axes) - 1 if op.kind == "linear" else max(len(axes) - 2, 0)
            further = inputs[2:]
            if self.count(axes[:-2]):
                raise _Neither
        else:
            raise _Neither
        contracted = self.count((axes[column],))
        if contracted and (inputs[0] == "odd") != (state == "odd") and "zero" not in (inputs[0], state):
            raise _Neither
        if self.grouped(op) and (inputs[0] == "odd" or contracted):
            raise _Neither
        rest: list[State] = ["odd" if inputs[0] == "odd" else "even"] * (self.count(x_axes) - contracted)
        rest += [state] * (self.count(axes) - contracted)
        if len(set(rest)) > 1:
            raise _Neither
        result = rest[0] if rest else "even"
        for term in (*further, *([parameters["bias"]] if "bias" in parameters else [])):
            if term != result and term != "zero":
                raise _Neither
        if result == "odd" and "bias" in parameters and self.count(op.axes) != 1:
            raise _Neither
        return result

    def sum(self, op: Operation, inputs: Sequence[State]) -> State:
        if op.attribute("scalar") not in (None, 0):
            raise _Neither
        here = self.count(op.axes)
        for source, state in zip(op.inputs, inputs, strict=True):
            if state == "even" or (state == "odd" and self.count(self.operations[source].axes) != here):
                raise _Neither
        return "odd"

    def product(self, op: Operation, inputs: Sequence[State]) -> State:
        """A sign meets itself where two factors carry the group along one dimension."""
        if op.kind == "div" and op.attribute("rounding_mode") is not None:
            raise _Neither
        rank = len(op.axes)
        signs = []
        for place in range(rank):
            here = 0
            for source, state in zip(op.inputs, inputs, strict=True):
                axes = self.operations[source].axes
                at = place - (rank - len(axes))
                here += at >= 0 and state == "odd" and bool(self.count((axes[at],)))
            if self.count((op.axes[place],)):
                signs.append(here % 2)
            elif here:
                raise _Neither
        if len(set(signs)) > 1:
            raise _Neither
        return "odd" if signs and signs[0] else "even"

    def concatenation(self, op: Operation, inputs: Sequence[State]) -> State:
        """Every part carries the group as the whole does, along the other dimensions, and has the sign."""
        dim = op.attribute("dim")
        assert isinstance(dim, int)
        across = self.count(axis for i, axis in enumerate(op.axes) if i != dim)
        for source, state in zip(op.inputs, inputs, strict=True):
            axes = self.operations[source].axes
            mine = self.count(axes) - (self.count((axes[dim],)) if op.kind == "cat" else 0)
            if state != "zero" and (mine != across or (state == "even" and self.count(axes))):
                raise _Neither
        return "odd"

    def mean(self, op: Operation) -> State:
        dims = op.attribute("dims")
        assert isinstance(dims, tuple)
        axes = self.operations[op.inputs[0]].axes
        if self.count(axes[dim] for dim in dims if isinstance(dim, int)):
            raise _Neither
        return "odd"

    def attention(self, op: Operation, inputs: Sequence[State]) -> State:
        """Attention is linear in its values; its weights are even if the widths of q and k cancel."""
        q, k = inputs[:2]
        if "odd" in inputs[3:] or q != k:
            raise _Neither
        if q == "odd" and any(self.count(self.operations[i].axes[:-1]) for i in op.inputs[:2]):
            raise _Neither
        if inputs[2] == "odd" and self.count(self.operations[op.inputs[2]].axes[-2:-1]):
            raise _Neither
        return inputs[2]

    def recurrent(self, op: Operation, inputs: Sequence[State], odd: set[str]) -> State:
        """The first layer reads an odd input with odd columns."""
        if inputs[0] != "odd" or "odd" in inputs[1:]:
            raise _Neither
        for role, entry in op.parameters:
            axes = self.spec.axes[entry]
            reads = role in ("weight_ih_l0", "weight_ih_l0_reverse")
            if self.count(axes) != reads or (reads and not (entry in odd and self.count(axes[1:]) == 1)):
                raise _Neither
        return "even"

    def _roles(self) -> dict[tuple[str, int], Role]:
        """Return how every entry's dimensions that carry the group meet its units."""
        roles: dict[tuple[str, int], Role] = {}

        def meet(entry: str, dim: int, role: Role) -> None:
            if self.count((self.spec.axes[entry][dim],)) and roles.setdefault((entry, dim), role) != role:
                roles[entry, dim] = "out"

        for op in self.operations:
            for role, entry in op.parameters:
                for dim in range(len(self.spec.axes[entry])):
                    meet(entry, dim, _role(op.kind, role, dim, len(self.spec.axes[entry])))
        return roles


def _role(kind: str, role: str, dim: int, rank: int) -> Role:
    if role == "bias" or role.startswith("bias_"):
        return "bias"
    if role.startswith("weight_"):
        return "in" if dim == 1 else "out"
    if role != "weight" or kind not in MATRICES:
        return "out"
    column = 0 if kind in COLUMNS_FIRST else rank - 1 if kind == "linear" else 1
    return "in" if dim == column else "out"


def _adds_number(op: Operation) -> bool:
    return op.kind in ("add", "sub") and isinstance(op.attribute("scalar"), (int, float))
