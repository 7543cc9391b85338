"""Names of groups: readable, unique, stable; taken from the entry that writes the units first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from metanet.derivation.dimension import Dim, leaves
from metanet.rules.registry import Draft

WRITTEN: Mapping[str, int] = {
    "conv_transpose1d": 1,
    "conv_transpose2d": 1,
    "conv_transpose3d": 1,
    "embedding": 1,
    "matmul": 1,
    "addmm": 1,
}
"""The dimension of an operation's weight that it writes, where that is not the first."""


def name_groups(entries: Mapping[str, tuple[Dim, ...]], operations: Sequence[Draft]) -> dict[Dim, str]:
    """Name every plain variable that indexes an entry.

    Args:
        entries: name -> dimensions.
        operations: in the order in which they run.

    Returns:
        variable -> name, in the order in which the network writes them.
    """
    hints = _hints(operations)
    names: dict[Dim, str] = {}
    taken: set[str] = set()
    for entry, dims in _writers(entries, operations):
        base = _base(entry)
        found = [[v for v in dict.fromkeys(leaves(dim)) if v.state == "plain" and v.size > 1] for dim in dims]
        for dim, variables in zip(dims, found, strict=True):
            for number, variable in enumerate(variables):
                if variable in names:
                    continue
                alone = dim.root() is variable or (len(variables) == 1 and variable not in hints)
                suffix = "" if alone else f".{hints.get(variable, number)}"
                names[variable] = _unique(base + suffix, taken)
    return names


def _writers(
    entries: Mapping[str, tuple[Dim, ...]], operations: Sequence[Draft]
) -> Iterator[tuple[str, tuple[Dim, ...]]]:
    """Yield (entry, dimensions) with writers first: weights' rows, then whatever else carries a group."""
    for operation in operations:
        for role, entry in operation.parameters:
            dims = entries[entry]
            if role == "weight" or role.startswith("weight_"):
                at = WRITTEN.get(operation.kind, 0)
                yield entry, dims[at : at + 1]
            elif role == "value":
                yield entry, dims
    yield from entries.items()


_RECURRENT = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l(\d+)(_reverse)?")
_PARAMETRIZED = re.compile(r"\.?parametrizations\.(\w+)\.original\d*$")


def _base(entry: str) -> str:
    """Return the name of the module that an entry is the weight of, or of a bare parameter itself."""
    entry = _PARAMETRIZED.sub(r".\1", entry).removeprefix(".")
    module, _, last = entry.rpartition(".")
    if match := _RECURRENT.fullmatch(last):
        layer = f"{match[1]}{match[2] or ''}"
        base = f"{module}.l{layer}" if module else f"layer{layer}"
    else:
        base = module if module and last.endswith(("weight", "bias")) else entry
    base = re.sub(r"[^A-Za-z0-9_.]", "_", base)
    return base if re.match(r"[A-Za-z_]", base) else f"layer{base}"


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate


def _hints(operations: Iterable[Draft]) -> dict[Dim, str]:
    """Return what the parts of attention and of groups are called."""
    hints: dict[Dim, str] = {}

    def call(dims: Iterable[Dim], word: str) -> None:
        for dim in dims:
            for variable in leaves(dim):
                hints.setdefault(variable, word)

    for operation in operations:
        if operation.kind == "sdpa":
            q, k, v, *_ = operation.inputs
            _attention(call, q, k, v)
        elif operation.kind == "matmul" and len(operation.inputs) == 2:
            weights = _behind(operation.inputs[0], "softmax")
            scores = _behind(weights, "matmul") if weights is not None else None
            if scores is not None and len(scores.inputs) == 2:
                _attention(call, scores.inputs[0], _untransposed(scores.inputs[1]), operation.inputs[1])
        elif operation.kind == "group_norm":
            channel = operation.dims[1].root()
            if channel.state == "product" and len(channel.parts) == 2:
                call(channel.parts[:1], "group")
                call(channel.parts[1:], "within")
        elif operation.kind.startswith("conv") and (dict(operation.attributes).get("groups") or 1) != 1:
            at = len(operation.dims) - int(operation.kind.rstrip("d")[-1]) - 1
            for dims in (operation.inputs[0].dims, operation.dims):
                channel = dims[at].root()
                if channel.state == "product" and len(channel.parts) == 2:
                    call(channel.parts[:1], "group")
                    call(channel.parts[1:], "within")
    return hints


def _attention(call: Callable[[Iterable[Dim], str], None], q: Draft, k: Draft, v: Draft) -> None:
    """Name the width of q and k, the width of v, the heads, and the queries that share a head."""
    call(q.dims[-1:], "qk")
    call(v.dims[-1:], "v")
    for operation in (k, v, q):
        for dim in operation.dims[:-2]:
            free = [variable for variable in leaves(dim) if variable.state == "plain"]
            call(free[:1], "head")
            call(free[1:], "query")


def _untransposed(keys: Draft) -> Draft:
    """Return keys ``[…, width, positions]`` with their last dimensions the other way round."""
    return Draft("transpose", dims=(*keys.dims[:-2], *keys.dims[:-3:-1]))


def _behind(operation: Draft | None, kind: str) -> Draft | None:
    """Follow first inputs back, through elementwise operations and reshapes, to an operation of a kind."""
    for _ in range(8):
        if operation is None or operation.kind == kind:
            return operation
        operation = operation.inputs[0] if operation.inputs else None
    return None
