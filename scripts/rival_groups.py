"""The permutation groups that one tool finds in one architecture family, and whether they keep its function.

Every group is a map from parameters to new ones: the same random permutation of units wherever the tool says
that they occur. Each is tried alone, in float64, on generic values of all parameters and statistics. A group
that only reorders the outputs (the last layer's units) is counted apart, and one whose units hold unequal
numbers of values in some tensor permutes nothing. `rebasin` leaves the running statistics of BatchNorm where
they are, to be estimated anew: for it they are zero and one.

Run by `architectures_rivals.py`, as ``python rival_groups.py --tool TOOL FAMILY ...``, in an environment that
has the tool; every family in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from importlib import import_module
from math import lgamma, log
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import torch
from architectures import FAMILIES
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from metanet.precision import float64

State: TypeAlias = dict[str, Tensor]
Move: TypeAlias = Callable[[State, Tensor], State]
"""Puts the units of one group in another order: state and permutation to the new state."""

TOLERANCE = 1e-9


@dataclass
class Found:
    """What a tool found in a family.

    Args:
        groups: number of its groups.
        kept: groups whose permutations keep the function.
        broken: groups whose permutations change it.
        reordering: groups whose permutations reorder the outputs.
        undefined: groups whose units do not match in number.
        moved: share of the values of the parameters that a shift of the units of some group moves.
        moved_soundly: the same for the groups that keep the function.
        bits: log2 of the number of permutations of the groups that keep the function.
        error: largest relative error among the broken groups, or else among the kept ones.
        seconds: of processor time until the groups were known.
        reason: why it did not run, or what was wrong first.
    """

    groups: int = 0
    kept: int = 0
    broken: int = 0
    reordering: int = 0
    undefined: int = 0
    moved: float = 0.0
    moved_soundly: float = 0.0
    bits: float = 0.0
    error: float = 0.0
    seconds: float = 0.0
    reason: str = ""


@dataclass
class Case:
    """A network in float64 on generic values, with its inputs."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: State = field(default_factory=dict)

    def outputs(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the floating-point outputs for a state."""
        self.model.load_state_dict(state)
        with torch.no_grad(), float64():
            returned = self.model(*self.args, **self.kwargs)
        plain = dict(returned) if isinstance(returned, Mapping) else returned
        leaves = [leaf for leaf in tree_leaves(plain) if isinstance(leaf, Tensor)]
        return [leaf.clone() for leaf in leaves if leaf.is_floating_point()]


def case(family: str, *, statistics: bool = True) -> Case:
    """Build a family in float64, with gains of order one and He-scaled weights.

    Args:
        family: name.
        statistics: draw running statistics too; otherwise they are zero and one.
    """
    model, args, kwargs = FAMILIES[family].build()
    model = model.double().eval()
    wide = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, (args, kwargs))
    made = Case(model, *wide)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        value = tensor.clone()
        if tensor.is_floating_point() and (statistics or "running_" not in name):
            uniform = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var") or (tensor.ndim < 2 and not name.endswith(("bias", "mean"))):
                value = uniform * 0.8 + 0.6
            else:
                scale = 0.4 if tensor.ndim < 2 else float((6 / max(tensor[:1].numel(), 1)) ** 0.5)
                value = (uniform * 2 - 1) * scale
        made.state[name] = value
    made.outputs(made.state)  # the model holds these values from here on, tied entries those of the last
    made.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return made


def judged(made: Case, groups: Iterator[tuple[int, Move | None]]) -> Found:
    """Try every group of a tool alone.

    Args:
        made: network and inputs.
        groups: for each, the number of its units and what permutes them; None if they do not match.
    """
    found = Found()
    expected = made.outputs(made.state)
    trainable = [n for n, _ in made.model.named_parameters() if n in made.state]
    markers = {n: torch.arange(t.numel(), dtype=t.dtype).reshape(t.shape) for n, t in made.state.items()}
    touched = {name: torch.zeros(made.state[name].shape, dtype=torch.bool) for name in trainable}
    soundly = {name: mask.clone() for name, mask in touched.items()}
    generator = torch.Generator().manual_seed(1)
    for size, move in groups:
        found.groups += 1
        if move is None:
            found.undefined += 1
            continue
        shifted = move(markers, torch.arange(size).roll(1))
        permuted = made.outputs(move(made.state, torch.randperm(size, generator=generator)))
        error = max(map(_error, permuted, expected), default=0.0)
        kept = error <= TOLERANCE
        reordered = not kept and all(map(_reordered, permuted, expected))
        found.kept, found.broken = found.kept + kept, found.broken + (not kept and not reordered)
        found.reordering += reordered
        moves = any(not torch.equal(shifted[name], marks) for name, marks in markers.items())
        found.bits += (kept and moves) * lgamma(size + 1) / log(2)
        if not reordered:
            found.error = max(found.error, error)
        for name, mask in touched.items():
            moved = shifted[name] != markers[name]
            mask |= moved
            if kept:
                soundly[name] |= moved
    made.outputs(made.state)
    total = max(sum(mask.numel() for mask in touched.values()), 1)
    found.moved = sum(int(mask.sum()) for mask in touched.values()) / total
    found.moved_soundly = sum(int(mask.sum()) for mask in soundly.values()) / total
    return found


def _error(output: Tensor, expected: Tensor) -> float:
    if output.shape != expected.shape:
        return float("inf")
    error = float((output - expected).abs().max() / expected.square().mean().sqrt().clamp(min=1e-30))
    return error if error == error else float("inf")


def _reordered(output: Tensor, expected: Tensor) -> bool:
    return any(
        _error(output.sort(dim).values, expected.sort(dim).values) <= TOLERANCE for dim in range(output.ndim)
    )


def metanet_groups(made: Case) -> list[tuple[int, Move | None]]:
    """Return the groups of `metanet.spec_of`."""
    from metanet import GroupElement, spec_of

    spec = spec_of(made.model, *made.args, **made.kwargs)

    def moving(name: str, *, nested: bool) -> Move:
        def move(state: State, order: Tensor) -> State:
            rows = order.repeat(spec.copies(name), 1) if nested else order
            return dict(GroupElement(spec, {name: rows}, {}) @ state)

        return move

    return [(group.size, moving(group.name, nested=group.parent is not None)) for group in spec.groups]


def rebasin_groups(made: Case) -> list[tuple[int, Move | None]]:
    """Return the permutations of `rebasin.PermutationCoordinateDescent`, as its own code applies them."""
    from rebasin import PermutationCoordinateDescent

    inputs: Any = made.kwargs or (made.args[0] if len(made.args) == 1 else list(made.args))
    descent = PermutationCoordinateDescent(
        deepcopy(made.model), made.model, inputs, device_a="cpu", device_b="cpu"
    )
    graph = descent.pinit.model_graph

    def moving(permutation: Any) -> Move:
        def move(state: State, order: Tensor) -> State:
            made.model.load_state_dict(state)
            identity = permutation.perm_indices
            permutation.perm_indices = order
            graph.apply_permutations()
            permutation.perm_indices = identity
            return {name: tensor.clone() for name, tensor in made.model.state_dict().items()}

        return move

    return [(len(permutation), moving(permutation)) for permutation, _ in graph.permutation_to_info]


def pruning_groups(made: Case) -> list[tuple[int, Move | None]]:
    """Return the dependency groups of `torch_pruning`: what is cut together is permuted together."""
    import torch_pruning

    model = deepcopy(made.model).requires_grad_(True)
    inputs: Any = made.kwargs or (made.args[0] if len(made.args) == 1 else made.args)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs, verbose=False)
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    found: list[tuple[int, Move | None]] = []
    for group in graph.get_all_groups():
        size = len(set(group[0].root_idxs))
        tables: list[tuple[str, list[Tensor]]] = []
        for item in group:
            units: list[list[int]] = [[] for _ in range(size)]
            for index, root in zip(item.idxs, item.root_idxs, strict=True):
                units[int(root)].append(int(index))
            tables += _tables(item.dep, units, names)
        found.append((size, _exchanging(tables)))
    return found


def _tables(dep: Any, units: list[list[int]], names: Mapping[int, str]) -> list[tuple[str, list[Tensor]]]:
    """Return for every tensor which of its values go when a unit is cut, by cutting it from a copy."""
    target, handler = dep.target.module, dep.handler
    own = {"": target} if isinstance(target, nn.Parameter) else target.state_dict(keep_vars=True)
    known = {key: names[id(tensor)] for key, tensor in own.items() if id(tensor) in names}
    rows: dict[str, list[Tensor]] = {name: [] for name in known.values()}
    if not known:  # a concatenation, an elementwise operation
        return []
    handler.__self__.pruning_dim = dep.target.pruning_dim
    for unit in units:
        marked = deepcopy(target)
        with torch.no_grad():
            copies = {"": marked} if isinstance(target, nn.Parameter) else marked.state_dict(keep_vars=True)
            for key in known:
                copies[key].copy_(torch.arange(copies[key].numel()).reshape(copies[key].shape))
        cut = handler(marked, unit) if unit else marked
        left = {"": cut} if isinstance(target, nn.Parameter) else cut.state_dict()
        for key, name in known.items():
            values = torch.ones(own[key].numel(), dtype=torch.bool)
            values[left[key].detach().flatten().long()] = False
            rows[name].append(values.nonzero().flatten())
    return [(name, table) for name, table in rows.items() if any(len(row) for row in table)]


def _exchanging(tables: list[tuple[str, list[Tensor]]]) -> Move | None:
    if any(len({len(row) for row in table}) > 1 for _, table in tables):
        return None

    def move(state: State, order: Tensor) -> State:
        result = {name: tensor.clone() for name, tensor in state.items()}
        for name, table in tables:
            flat = result[name].flatten()
            flat[torch.cat(table)] = flat[torch.cat([table[int(i)] for i in order])]
            result[name] = flat.reshape(result[name].shape)
        return result

    return move


PACKAGES = {
    "metanet": ("metanet.derive", "torch._dynamo", "torch._export"),
    "rebasin": ("rebasin",),
    "torch-pruning": ("torch_pruning",),
}
"""What is imported before time is taken."""
TOOLS: dict[str, Callable[[Case], list[tuple[int, Move | None]]]] = {
    "metanet": metanet_groups,
    "rebasin": rebasin_groups,
    "torch-pruning": pruning_groups,
}


def attempt(tool: str, family: str, results: Connection) -> None:
    """Send what a tool finds in a family, or why it does not run."""
    try:
        with redirect_stdout(sys.stderr):
            made = case(family, statistics=tool != "rebasin")
            start = time.process_time()
            groups = TOOLS[tool](made)
            seconds = time.process_time() - start
            found = judged(made, iter(groups))
            found.seconds = seconds
    except Exception as error:
        found = Found(reason=" ".join(f"{type(error).__name__}: {error}".split())[:200])
    results.send(asdict(found))


def limited(tool: str, family: str, limit: int) -> dict[str, Any]:
    """Run one tool on one family in a process that ends with it, or with the limit."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=attempt, args=(tool, family, writer))
    process.start()
    writer.close()
    try:
        if reader.poll(limit):
            result: dict[str, Any] = reader.recv()
            return result
        return asdict(Found(reason=f"not finished after {limit} s"))
    except EOFError:
        process.join()
        return asdict(Found(reason=f"the process ended with status {process.exitcode}"))
    finally:
        process.kill()
        process.join()


def main() -> None:
    """Print what one tool finds in some families, as a line of JSON for each."""
    parser = argparse.ArgumentParser(description="one tool on some families")
    parser.add_argument("--tool", choices=TOOLS, required=True)
    parser.add_argument("--limit", type=int, default=120, help="seconds of wall time a family may take")
    parser.add_argument("families", nargs="+", choices=FAMILIES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for package in PACKAGES[options.tool]:
        import_module(package)
    for family in options.families:
        print(json.dumps([family, options.tool, limited(options.tool, family, options.limit)]), flush=True)


if __name__ == "__main__":
    main()
