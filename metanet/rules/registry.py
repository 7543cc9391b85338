"""The registry of rules, and what a rule sees: one call of an operation on values of dimension variables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx

from metanet.derivation.dimension import Dim, fixed, uniform
from metanet.derivation.unification import Dimensions
from metanet.skeleton import Attribute


@dataclass(eq=False, slots=True)
class Draft:
    """An operation of the skeleton while its dimensions are still variables; see `metanet.skeleton`.

    ``order`` says which of two was made first.
    """

    kind: str
    inputs: tuple[Draft, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    attributes: tuple[tuple[str, Attribute], ...] = ()
    dims: tuple[Dim, ...] = ()
    order: int = field(default_factory=count().__next__)


@dataclass(eq=False, slots=True)
class Value:
    """A tensor while a network is interpreted.

    Args:
        dims: one variable per dimension.
        draft: the operation that made it; None for a state-dict entry or a constant that none has read yet.
        entry: name, if it is a state-dict entry itself.
        constant: the real values, if it depends on no entry and no input.
        labels: of integers that are indices of a dimension which may be permuted (the experts that a router
            chose): that dimension. They change when it is permuted, whatever their own dimensions.
        offsets: of a running sum of how many labels of a dimension there are: the labels' own dimension,
            sorted, and that dimension. Only an operation on blocks of such rows may read it.
    """

    dims: tuple[Dim, ...]
    draft: Draft | None = None
    entry: str | None = None
    constant: Tensor | None = None
    labels: Dim | None = None
    offsets: tuple[Dim, Dim] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return tuple(dim.size for dim in self.dims)

    def operation(self) -> Draft:
        """Return the operation that made it; an entry or constant becomes one when it is first read."""
        if self.draft is None:
            if self.entry is not None:
                self.draft = Draft("parameter", parameters=(("value", self.entry),), dims=self.dims)
            else:
                self.draft = Draft("constant", attributes=_constant_attributes(self.constant), dims=self.dims)
        return self.draft


Result: TypeAlias = Value | list[Value]
Rule: TypeAlias = Callable[["Call"], Result]


Labels: TypeAlias = Literal["lost", "kept", "read"]


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """A registered rule.

    Args:
        function: the rule.
        stacked: whether it handles selectors and choices (`metanet.derivation.dimension`) itself; otherwise
            they are collapsed before it is called.
        labels: what becomes of arguments that are labels: *lost*, the dimension that they are indices of is
            fixed; *kept*, results are labels of it too; *read*, the rule looks at them itself.
    """

    function: Rule
    stacked: bool = False
    labels: Labels = "lost"


RULES: dict[str, RuleEntry] = {}
"""Operation name, e.g. ``aten.linear.default``, to its rule."""


def rule(*names: str, stacked: bool = False, labels: Labels = "lost") -> Callable[[Rule], Rule]:
    """Register a function as the rule of operations, under the names that torch gives them.

    A rule unifies, cuts or fixes the dimensions of its arguments and returns what it makes. A rule for an
    operation of your own, registered before `metanet.spec_of` is called:

        @rule("mylib.scale_channels.default")             # (input [b, c, n], gain [c]) -> [b, c, n]
        def scale_channels(call: Call) -> Value:
            x, gain = call.tensor("input"), call.tensor("gain")
            channels = call.unify(x.dims[1], gain.dims[0])
            return call.result("scale_channels", (x.dims[0], channels, x.dims[2]), parameters=("gain",))

    Args:
        names: operations, as ``str(torch.ops.aten.linear.default)`` gives them.
        stacked: the rule handles selectors and choices itself.
        labels: what becomes of arguments that are indices of a dimension (`RuleEntry`).
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = RuleEntry(function, stacked, labels)
        return function

    return register


@dataclass(eq=False, slots=True)
class Call:
    """One call of an operation.

    Args:
        name: of the operation.
        arguments: by the names of its schema, defaults filled in; tensors as `Value`.
        shapes: of its results.
        dimensions: where variables are unified.
        node: in the exported graph.
    """

    name: str
    arguments: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    dimensions: Dimensions
    node: fx.Node

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return self.shapes[0]

    def tensor(self, name: str) -> Value:
        """Return a tensor argument."""
        value = self.arguments[name]
        assert isinstance(value, Value), f"{self.name}: {name} is {value!r}"
        return value

    def is_float(self) -> bool:
        """Return whether the first argument is a tensor of real numbers."""
        source = self.node.args[0]
        return isinstance(source, fx.Node) and bool(source.meta["val"].dtype.is_floating_point)

    def optional(self, name: str) -> Value | None:
        """Return a tensor argument that may be missing."""
        value = self.arguments.get(name)
        return value if isinstance(value, Value) else None

    def values(self) -> Iterator[tuple[str, Value]]:
        """Yield all tensor arguments, those in lists too, with the names of their arguments."""
        for name, argument in self.arguments.items():
            for item in argument if isinstance(argument, (list, tuple)) else (argument,):
                if isinstance(item, Value):
                    yield name, item

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument that is no tensor."""
        return self.arguments.get(name, default)

    def dim(self, name: str, rank: int, default: int = 0) -> int:
        """Return a dimension argument, counted from the front."""
        value = self.arguments.get(name)
        value = default if value is None else int(value)
        return value % rank if rank else 0

    def dims(self, name: str, rank: int) -> tuple[int, ...]:
        """Return an argument that lists dimensions, counted from the front; None or none of them is all."""
        value = self.arguments.get(name)
        if value is None or (isinstance(value, (list, tuple)) and not value):
            return tuple(range(rank))
        return tuple(int(d) % rank for d in (value if isinstance(value, (list, tuple)) else [value]))

    # Dimensions

    def unify(self, *dims: Dim) -> Dim:
        """Make dimensions of one size the same."""
        first = dims[0].root()
        for dim in dims[1:]:
            first = self.dimensions.unify(first, dim)
        return first

    def broadcast(self, values: Sequence[Value]) -> tuple[Dim, ...]:
        """Unify the dimensions of an elementwise operation and return those of its result."""
        rank = max(len(value.dims) for value in values)
        padded = [(fixed(1),) * (rank - len(value.dims)) + value.dims for value in values]
        return tuple(self.dimensions.broadcast(*column) for column in zip(*padded, strict=True))

    def fix(self, dim: Dim) -> Dim:
        """Give a dimension's indices a meaning of their own, as part of what the operation is."""
        return self.dimensions.fix(dim)

    def forget(self, *values: Value) -> None:
        """Fix the dimensions of whose indices, or of sums over them, an operation reads the numbers."""
        for value in values:
            if value.labels is not None:
                self.dimensions.lose(value.labels, f"{self.name} (reads indices as numbers)")
            if value.offsets is not None:
                self.dimensions.lose(value.offsets[1], f"{self.name} (reads a running sum of counts)")

    def split(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Factor a dimension into a row-major product."""
        return self.dimensions.split(dim, sizes)

    def cut(self, dim: Dim, cuts: Sequence[int]) -> list[Dim]:
        """Cut a dimension at interior positions."""
        return self.dimensions.cut(dim, cuts)

    # Results

    def result(
        self,
        kind: str,
        dims: Sequence[Dim],
        *,
        parameters: Sequence[str] = (),
        attributes: Sequence[str] = (),
        extra: Mapping[str, Attribute] | None = None,
        inputs: Sequence[Value] | None = None,
    ) -> Value:
        """Return a result and record its operation.

        Args:
            kind: of the operation.
            dims: of the result.
            parameters: arguments that are parameters of the operation if they are state-dict entries
                themselves; the name of the argument is the role.
            attributes: arguments that configure the operation.
            extra: further attributes.
            inputs: what it reads; by default all other tensor arguments, in the order of the schema.
        """
        roles = [
            (name, value.entry)
            for name, value in self.values()
            if name in parameters and value.entry is not None
        ]
        if inputs is None:
            inputs = [v for name, v in self.values() if not (name in parameters and v.entry is not None)]
        known = {name: freeze(self.arguments.get(name)) for name in attributes}
        draft = Draft(
            kind,
            tuple(value.operation() for value in inputs),
            tuple(roles),
            tuple({**known, **(extra or {})}.items()),
            tuple(dims),
        )
        return Value(draft.dims, draft)


def freeze(value: Any) -> Attribute:
    """Return an argument as an attribute: numbers, texts and tuples of them."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        return str(value)
    return str(value)


def constant_dims(tensor: Tensor) -> tuple[Dim, ...]:
    """Return the dimensions of a constant: fixed where its values vary along them."""
    if tensor.is_meta:
        return tuple(map(fixed, tensor.shape))
    tensor = tensor.detach()
    result = []
    for dim, size in enumerate(tensor.shape):
        first = tensor.narrow(dim, 0, 1) if size else tensor
        same = (tensor == first) | ((tensor != tensor) & (first != first))
        result.append(uniform(size) if bool(same.all()) else fixed(size))
    return tuple(result)


def scalar_of(value: Value) -> float | None:
    """Return the one value of a constant that is the same everywhere, or None."""
    tensor = value.constant
    if tensor is None or tensor.is_meta or tensor.is_complex() or not tensor.numel():
        return None
    first = tensor.flatten()[0]
    return float(first) if bool((tensor == first).all()) else None


def is_range(value: Value) -> bool:
    """Return whether a constant is 0, 1, 2, … along one dimension."""
    tensor = value.constant
    if (
        tensor is None
        or tensor.is_meta
        or tensor.is_floating_point()
        or max(tensor.shape, default=0) != tensor.numel()
    ):
        return False
    return bool(tensor.flatten().tolist() == list(range(tensor.numel())))


def _constant_attributes(tensor: Tensor | None) -> tuple[tuple[str, Attribute], ...]:
    if tensor is None or tensor.is_meta or tensor.is_complex() or not tensor.numel():
        return ()
    first = tensor.flatten()[0]
    if bool((tensor == first).all()):
        return (("value", freeze(first.item())),)
    known = (("values", freeze(tensor.tolist())),) if tensor.numel() <= 16 else ()
    repeats = _repeats(tensor)
    return (*known, ("repeats", repeats)) if repeats else known


def _repeats(tensor: Tensor) -> tuple[str, ...]:
    """Return in which ways the last dimension of a table is made of pairs of equal values (rotary tables)."""
    if not tensor.ndim or tensor.shape[-1] % 2:
        return ()
    layouts = {"half": tensor.unflatten(-1, (2, -1)), "interleaved": tensor.unflatten(-1, (-1, 2)).mT}
    return tuple(
        layout for layout, pairs in layouts.items() if torch.equal(pairs[..., 0, :], pairs[..., 1, :])
    )
