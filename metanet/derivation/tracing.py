"""From a module to the graph of its ATen operations, without running it and without changing it."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map_only

SILENT_ALIASES = ("dropout", "type_as", "atleast_", "broadcast_tensors", "meshgrid")
"""Operations that may return what they were given, or a view of it, though their schemas do not say so."""


INACTIVE = (
    "aten.dropout_.",
    "aten.alpha_dropout_.",
    "aten.feature_dropout_.",
    "aten.feature_alpha_dropout_.",
)
"""In-place operations that change nothing unless they train."""


class DerivationError(ValueError):
    """A module whose operations cannot be read, with what to do about it."""


def export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ExportedProgram:
    """Return the exported, functional, undecomposed program of a module in evaluation mode.

    Tensors are traced as fakes, so neither memory nor time grows with the network's size.

    Raises:
        DerivationError: the module cannot be exported.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, dict(kwargs)))
    try:
        with (
            evaluation_mode(model),
            warnings.catch_warnings(),
            _plain_attention(),
            _no_conversion(),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            program = torch.export.export(model, args, kwargs=dict(kwargs), strict=False)
            changing = [node for node in program.graph.nodes if _mutates(node)]
            if changing:
                _leave_out_dropout(program.graph_module)
                changing = [node for node in program.graph.nodes if _mutates(node)]
            for node in changing:
                _refuse_silent_alias(node)
            if changing:
                program = program.run_decompositions({})
    except DerivationError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise DerivationError(
            f"{type(model).__name__} cannot be exported: {type(error).__name__}: "
            f"{reason[0] if reason else 'no message'}. torch.export follows the module once on the "
            "example inputs: check that model(*args, **kwargs) runs; try other example inputs, or keyword "
            "inputs that take a simpler path (use_cache=False); replace branches on tensor values, .item() "
            "and numpy by tensor operations (torch.where, torch.cond); or give the part of it that can "
            "be traced. A spec may also be written by hand in the notation of str(spec), read with "
            "WeightSpec.parse and checked with verify"
        ) from error
    return program


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode, and back to what it was afterwards.

    That is its own mode, and tensors that it keeps beside its state: some modules keep what they computed
    from their parameters (a table of position biases), which is stale as soon as the parameters change.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    attributes = [_attributes(module) for module in modules]
    contents = [{k: copy(v) for k, v in own.items() if type(v) in (dict, list, set)} for own in attributes]
    try:
        model.eval()
        yield
    finally:
        for module, mode, before, inner in zip(modules, modes, attributes, contents, strict=True):
            for name, content in inner.items():
                if _holds_tensors(before[name]):
                    _restore(before[name], content)
            for name, value in _attributes(module).items():
                if name not in before:
                    if _holds_tensors(value):
                        del module.__dict__[name]
                elif before[name] is not value and (_holds_tensors(value) or _holds_tensors(before[name])):
                    module.__dict__[name] = before[name]
            module.training = mode


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module keeps beside torch's own records of parameters, buffers, submodules and hooks."""
    torch_own = vars(nn.Module()).keys()
    return {name: value for name, value in vars(module).items() if name not in torch_own}


def _holds_tensors(value: Any) -> bool:
    """Return whether a value is, or contains, a tensor; flags and counters stay as a forward leaves them."""
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _restore(container: Any, content: Any) -> None:
    if len(container) == len(content) and all(a is b for a, b in zip(container, content, strict=True)):
        unchanged = not isinstance(content, dict) or all(container[key] is content[key] for key in content)
        if unchanged:
            return
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)


@contextmanager
def _no_conversion() -> Iterator[None]:
    """Leave out casts of a module within a forward (routers in float32), which cannot be traced.

    They change the precision of parameters and nothing that a spec says.
    """
    before = nn.Module._apply

    def unconverted(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return self

    try:
        nn.Module._apply = unconverted  # type: ignore[method-assign]
        yield
    finally:
        nn.Module._apply = before  # type: ignore[method-assign]


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep torch's transformer layers from being exported as one fused operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def in_place_of_own(node: fx.Node) -> bool:
    """Return whether an in-place operation changes a tensor that nothing sees afterwards.

    ``relu_`` on the fresh result of a convolution is as good as ``relu``, and so is ``weights.div_(total)``
    where what read the weights before kept no view of them. Dropout changes nothing in evaluation mode.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None or not node.args:
        return False
    if str(node.target).startswith(INACTIVE) and len(node.args) > 2 and node.args[2] is False:
        return True
    written = [arg.name for arg in schema.arguments if arg.alias_info and arg.alias_info.is_write]
    target = node.args[0]
    if written != [schema.arguments[0].name] or not isinstance(target, fx.Node):
        return False
    *_, root = same = _same_tensor(target)
    maker = root
    if maker.target is operator.getitem and isinstance(maker.args[0], fx.Node):
        maker = maker.args[0]
    return (
        root.op == maker.op == "call_function"
        and _makes_anew(maker)
        and all(
            user is node or user in same or (user < node and _makes_anew(user))
            for member in same
            for user in member.users
        )
    )


def _same_tensor(node: fx.Node) -> list[fx.Node]:
    """Return a node and what it may be another name of: dropout returns its input in evaluation."""
    same = [node]
    while _silent(same[-1]) and isinstance(same[-1].args[0], fx.Node):
        same.append(same[-1].args[0])
    return same


def _silent(node: fx.Node) -> bool:
    return node.op == "call_function" and any(word in str(node.target) for word in SILENT_ALIASES)


def _makes_anew(node: fx.Node) -> bool:
    """Return whether an operation's results share no memory with what it reads."""
    schema = getattr(node.target, "_schema", None)
    return (
        schema is not None and not _silent(node) and not any(result.alias_info for result in schema.returns)
    )


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and not in_place_of_own(node)


def _leave_out_dropout(module: fx.GraphModule) -> None:
    """Read what dropout was given in place of what it returns: in evaluation that is the very same tensor."""
    for node in list(module.graph.nodes):
        if (
            str(node.target) in ("aten.dropout.default", "aten.feature_dropout.default")
            and len(node.args) == 3
            and node.args[2] is False
            and all(user.op != "output" for user in node.users)
        ):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()


def _refuse_silent_alias(node: fx.Node) -> None:
    """Raise if a tensor that goes on under another name is changed in place: the program does not show it."""
    target = node.args[0] if node.args else None
    if isinstance(target, fx.Node) and _silent(target):
        raise DerivationError(
            f"{node.target} changes in place what {target.target} returned, which in evaluation is the very "
            "tensor that it was given, and that tensor is read again; write the operation out of place"
        )


def ties_of(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the sets of state-dict names that are one tensor.

    Raises:
        DerivationError: two entries share memory without being the same tensor.
    """
    names: dict[tuple[object, ...], list[str]] = {}
    spans: list[tuple[int, int, str, tuple[object, ...]]] = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            continue
        key: tuple[object, ...] = (id(tensor),)
        if tensor.numel() and not tensor.is_meta and tensor.layout == torch.strided and tensor.data_ptr():
            key = (tensor.data_ptr(), tensor.device, tuple(tensor.shape), tensor.stride(), tensor.dtype)
            extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            spans.append((start, start + extent * tensor.element_size(), name, key))
        names.setdefault(key, []).append(name)
    _refuse_overlaps(spans)
    return tuple(tuple(group) for group in names.values() if len(group) > 1)


def _refuse_overlaps(spans: list[tuple[int, int, str, tuple[object, ...]]]) -> None:
    last = None
    for span in sorted(spans, key=lambda s: (str(s[3][1]), s[0])):
        if last is not None and last[3][1] == span[3][1] and span[0] < last[1] and span[3] != last[3]:
            raise DerivationError(
                f"the entries {last[2]!r} and {span[2]!r} overlap in memory without being one tensor, so a "
                "change of one changes the other in a way that a spec cannot say; give each its own tensor"
            )
        if last is None or span[1] > last[1] or last[3][1] != span[3][1]:
            last = span
