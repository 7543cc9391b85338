"""Interpretation of an exported program with dimension variables in place of data."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from sympy import nextprime  # type: ignore[import-untyped]
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.utils._pytree import tree_leaves, tree_map_only

from metanet.derivation.dimension import Dim, fixed, uniform
from metanet.derivation.tracing import in_place_of_own
from metanet.derivation.unification import Dimensions
from metanet.rules import RULES
from metanet.rules.registry import Call, Draft, RuleEntry, Value, constant_dims

FOLD_LIMIT = 1 << 20
"""Largest constant, in elements, whose values are looked at."""
IGNORED = ("_assert", "sym_constrain", "_guards", "profiler.")
UNINITIALISED = ("aten.empty", "aten.new_empty")
UNIFORM_FACTORIES = (
    "aten.zeros",
    "aten.ones",
    "aten.full",
    "aten.new_zeros",
    "aten.new_ones",
    "aten.new_full",
)


@dataclass
class Interpretation:
    """What is known of a network after all operations were interpreted.

    Args:
        entries: state-dict name -> dimensions; tied names share theirs.
        inputs: operations of kind ``input``, in order.
        outputs: the values that are returned.
        dimensions: where variables were unified.
    """

    entries: dict[str, tuple[Dim, ...]]
    inputs: list[Draft] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    dimensions: Dimensions = field(default_factory=Dimensions)


def interpret(program: ExportedProgram, model: nn.Module, ties: Sequence[tuple[str, ...]]) -> Interpretation:
    """Interpret a program; all outputs are fixed at the end, and what was lost is fixed after them."""
    tensors = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    first = {name: tie[0] for tie in ties for name in tie}
    dims = {name: tuple(map(Dim, t.shape)) for name, t in tensors.items() if first.get(name, name) == name}
    found = Interpretation({name: dims[first.get(name, name)] for name in tensors})
    entry_values = {name: Value(dims[name], entry=name) for name in dims}
    environment: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", "")
        target = first.get(spec.target or "", spec.target or "")
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and target in entry_values:
            environment[name] = entry_values[target]
        else:
            environment[name] = _outside(spec, program, model, found)
    returned = _Interpreter(found.dimensions).run(program.graph_module, environment)
    for value in tree_leaves(returned):
        if isinstance(value, Value):
            found.outputs.append(value)
            for dim in (*value.dims, *([value.labels] if value.labels is not None else [])):
                found.dimensions.fix(dim)
            if value.offsets is not None:
                found.dimensions.fix(value.offsets[1])
    found.dimensions.settle()
    return found


def _outside(spec: InputSpec, program: ExportedProgram, model: nn.Module, found: Interpretation) -> Any:
    """Return what a placeholder stands for that is no state-dict entry: an input or a constant."""
    node = next(n for n in program.graph.nodes if n.name == spec.arg.name)
    shape = tuple(getattr(node.meta.get("val"), "shape", ()))
    if spec.kind == InputKind.USER_INPUT:
        if not isinstance(node.meta.get("val"), Tensor):
            return node.meta.get("val")
        draft = Draft("input", attributes=(("name", spec.arg.name),), dims=tuple(map(fixed, shape)))
        found.inputs.append(draft)
        return Value(draft.dims, draft)
    tensor = program.constants.get(spec.target or "")
    if not isinstance(tensor, Tensor) and spec.target:
        tensor = dict([*model.named_parameters(), *model.named_buffers()]).get(spec.target)
    if not isinstance(tensor, Tensor):
        return Value(tuple(map(fixed, shape)))
    return _constant(tensor)


def _constant(tensor: Tensor) -> Value:
    if tensor.numel() > FOLD_LIMIT or tensor.is_meta:
        return Value(tuple(map(fixed, tensor.shape)))
    tensor = tensor.detach()
    return Value(constant_dims(tensor), constant=tensor)


class _Interpreter:
    def __init__(self, dimensions: Dimensions) -> None:
        self.dimensions = dimensions

    def run(self, module: fx.GraphModule, environment: dict[str, Any]) -> Any:
        """Interpret a graph; ``environment`` holds its placeholders by name."""
        alive = _alive(module.graph)
        for node in module.graph.nodes:
            if node.op == "placeholder" or node not in alive:
                continue
            if node.op == "get_attr":
                found = operator.attrgetter(str(node.target))(module)
                environment[node.name] = _constant(found) if isinstance(found, Tensor) else found
            elif node.op == "output":
                return self.read(node.args[0], environment)
            else:
                arguments = self.read(node.args, environment)
                keywords = self.read(node.kwargs, environment)
                environment[node.name] = self.call(node, arguments, keywords)
        raise AssertionError("a graph ends with its output")

    def read(self, argument: Any, environment: Mapping[str, Any]) -> Any:
        return fx.map_arg(argument, lambda node: environment[node.name])

    def call(self, node: fx.Node, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        if node.target is operator.getitem and isinstance(arguments[0], (list, tuple)):
            return arguments[0][arguments[1]]
        name = str(node.target)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self.region(node, arguments, keywords)
        if any(word in name for word in IGNORED):
            return None
        if "_." in name and in_place_of_own(node):
            name = name.replace("_.", ".", 1)
        values = [v for v in tree_leaves((arguments, dict(keywords))) if isinstance(v, Value)]
        if "sym_size" in name or (not values and not isinstance(node.meta.get("val"), (Tensor, list, tuple))):
            return number_of(node.meta.get("val"))
        folded = self.fold(node, arguments, keywords, values)
        if folded is not None:
            return folded
        call = Call(name, _bind(node, arguments, keywords), _shapes(node), self.dimensions, node)
        self.dimensions.current = name
        entry = RULES.get(name)
        if entry is None:
            return self.unknown(call)
        return self.apply(entry, call)

    def apply(self, entry: RuleEntry, call: Call) -> Any:
        if not entry.stacked:
            for _, value in call.values():
                value.dims = tuple(map(self.dimensions.collapse, value.dims))
        values = [value for _, value in call.values()]
        same = len({id(v.labels.root()) if v.labels is not None else 0 for v in values}) == 1
        if entry.labels == "lost" or (entry.labels == "kept" and not same):
            call.forget(*values)
        elif entry.labels == "kept":
            call.forget(*(value for value in values if value.offsets is not None))
        try:
            result = entry.function(call)
            shapes = tuple(value.shape for value in (result if isinstance(result, list) else [result]))
            if shapes == call.shapes:
                if entry.labels == "kept" and same:
                    for value in result if isinstance(result, list) else [result]:
                        value.labels = values[0].labels
                return result
            found = f"its rule gives {shapes} where the operation gives {call.shapes}"
        except (AssertionError, LookupError, StopIteration, ValueError) as error:
            found = f"its rule does not cover this form: {error!r}"
        return self.unknown(call, found)

    def region(self, node: fx.Node, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """Enter a region (autocast, no_grad) or both branches of a condition.

        Any other higher-order operation (a loop over steps) is unknown.
        """
        inner = [i for i, a in enumerate(arguments) if isinstance(a, fx.GraphModule)]
        if str(node.target).startswith("wrap_with") and len(inner) == 1:
            module, given = arguments[inner[0]], arguments[inner[0] + 1 :]
            placeholders = [n.name for n in module.graph.nodes if n.op == "placeholder"]
            return self.run(module, dict(zip(placeholders, given, strict=True)))
        if str(node.target) == "cond" and len(inner) == 2:
            return self.branches(node, *arguments)
        values = [v for v in tree_leaves((arguments, dict(keywords))) if isinstance(v, Value)]
        call = Call(str(node.target), {"inputs": values}, _shapes(node), self.dimensions, node)
        return self.unknown(call)

    def branches(
        self, node: fx.Node, condition: Any, *rest: fx.GraphModule | Sequence[Value]
    ) -> list[Value] | Value:
        """Interpret both branches of a condition: their results have the same dimensions."""
        *modules, given = rest
        call = Call("cond", {"condition": condition}, _shapes(node), self.dimensions, node)
        returned = []
        for module in modules:
            assert isinstance(module, fx.GraphModule)
            assert isinstance(given, (list, tuple))
            placeholders = [n.name for n in module.graph.nodes if n.op == "placeholder"]
            returned.append(tree_leaves(self.run(module, dict(zip(placeholders, given, strict=True)))))
        tested = [condition] if isinstance(condition, Value) else []
        for dim in (dim for value in tested for dim in value.dims):
            call.fix(dim)
        results = []
        for pair in zip(*returned, strict=True):
            call.forget(*tested, *pair)
            dims = [call.unify(*dims) for dims in zip(*(value.dims for value in pair), strict=True)]
            results.append(call.result("cond", dims, inputs=[*tested, *pair]))
        return results if isinstance(node.meta.get("val"), (list, tuple)) else results[0]

    def unknown(self, call: Call, reason: str = "") -> Any:
        """Interpret an operation without a rule: everything it touches is fixed, and said to be lost."""
        call.forget(*(value for _, value in call.values()))
        for _, value in call.values():
            for dim in value.dims:
                self.dimensions.lose(dim, f"{call.name} ({reason})" if reason else call.name)
        drafted = call.result(call.name, [])
        results = [Value(tuple(map(fixed, shape)), drafted.draft) for shape in call.shapes]
        if not results:
            return call.node.meta.get("val")
        assert drafted.draft is not None
        drafted.draft.dims = results[0].dims
        return results if isinstance(call.node.meta.get("val"), (list, tuple)) else results[0]

    def fold(
        self, node: fx.Node, arguments: tuple[Any, ...], keywords: Mapping[str, Any], values: list[Value]
    ) -> Any:
        """Compute an operation on constants; None if it reads a variable or is too large to look at."""
        shapes = _shapes(node)
        schema = getattr(node.target, "_schema", None)
        if schema is None or schema.is_mutable or any(v.constant is None for v in values):
            return None
        if str(node.target).startswith(UNINITIALISED):
            return Value(tuple(map(fixed, shapes[0])))
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return None if values else Value(tuple(map(fixed, shapes[0])))
        if sum(map(prod, shapes)) > FOLD_LIMIT:
            known = not values and str(node.target).startswith(UNIFORM_FACTORIES)
            return Value(tuple(map(uniform if known else fixed, shapes[0]))) if len(shapes) == 1 else None
        tensors = tree_map_only(Value, lambda value: value.constant, (arguments, dict(keywords)))
        if tensors[1].get("device") == torch.device("meta"):
            tensors[1]["device"] = torch.device("cpu")  # so that its values are known
        assert callable(node.target)
        with torch.no_grad():
            result = node.target(*tensors[0], **tensors[1])
        return tree_map_only(Tensor, _constant, result)


def _bind(node: fx.Node, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {**{str(i): a for i, a in enumerate(arguments)}, **keywords}
    bound = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(arguments):
            bound[argument.name] = arguments[position]
        elif argument.name in keywords:
            bound[argument.name] = keywords[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def _shapes(node: fx.Node) -> tuple[tuple[int, ...], ...]:
    leaves = tree_leaves(node.meta.get("val"))
    return tuple(tuple(map(number_of, leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))


def number_of(size: Any) -> Any:
    """Return a size that depends on values (how many tokens chose an expert) as a prime of its own.

    No dimension of a parameter has such a size; equal ones stay equal and multiples stay multiples.
    """
    if not isinstance(size, torch.SymInt):
        return size
    symbols = size.node.expr.free_symbols
    primes = {symbol: nextprime(FOLD_LIMIT, 1 + int(symbol.name.strip("us"))) for symbol in symbols}
    return int(size.node.expr.xreplace(primes))


def _alive(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that an output depends on, and those that change in place what they read.

    What was computed for its shape alone would refine dimensions for nothing.
    """
    alive: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        changes = node.op == "call_function" and (schema is None or schema.is_mutable)
        if node.op in ("output", "placeholder") or changes or any(user in alive for user in node.users):
            alive.add(node)
    return alive
