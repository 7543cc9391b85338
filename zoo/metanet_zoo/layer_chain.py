"""In which order the layers of a checkpoint form a chain, by their names and shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metanet_zoo.errors import CheckpointError

HOW_TO_SUPPLY = (
    "Put a spec beside the file (model.spec.json or model.spec, written by WeightSpec.to_json or str(spec)), "
    "or inspect the network itself as package.module:factory with --input"
)

_LEAVES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_CONVOLUTION_DIMS = (3, 4, 5)


@dataclass(frozen=True)
class Layer:
    """Entries that share a prefix: leaf -> shape."""

    prefix: str
    leaves: Mapping[str, tuple[int, ...]]

    @property
    def is_norm(self) -> bool:
        """Whether it has one number per channel: a normalisation."""
        return len(self.leaves.get("weight", (0,))) == 1

    @property
    def weight(self) -> tuple[int, ...]:
        """Shape of the weight, ``(out, in, *kernel)`` unless it is a normalisation."""
        return self.leaves["weight"]


def read_layers(shapes: Mapping[str, tuple[int, ...]]) -> list[Layer]:
    """Gather entries by their prefixes into linear layers, convolutions and normalisations.

    Raises:
        CheckpointError: an entry or a layer is something else.
    """
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        prefix, _, leaf = name.rpartition(".")
        if leaf not in _LEAVES or not prefix:
            raise refuse(f"found {name!r} {list(shape)}, which is no weight, bias or statistic of a layer")
        found.setdefault(prefix, {})[leaf] = tuple(shape)
    layers = [Layer(prefix, leaves) for prefix, leaves in found.items()]
    for layer in layers:
        _check(layer)
    return layers


def _check(layer: Layer) -> None:
    if layer.is_norm:
        units = {shape for leaf, shape in layer.leaves.items() if leaf != "num_batches_tracked"}
        if len(units) != 1 or len(next(iter(units))) != 1:
            raise refuse(f"layer {layer.prefix!r} is no normalisation: {_listed(layer)}")
    elif len(layer.weight) not in (2, *_CONVOLUTION_DIMS) or set(layer.leaves) - {"weight", "bias"}:
        raise refuse(f"layer {layer.prefix!r} is neither linear nor a convolution: {_listed(layer)}")
    elif layer.leaves.get("bias", layer.weight[:1]) != layer.weight[:1]:
        raise refuse(f"layer {layer.prefix!r} has a bias that does not fit: {_listed(layer)}")


def chain(layers: Sequence[Layer]) -> list[Layer]:
    """Return the order in which the layers form a chain, or raise.

    A safetensors file is sorted by name ("10" before "2"), so names that differ in their numbers alone are
    taken by number; else the file's order and two by number are tried, and must not contradict each other.
    """

    def natural(layer: Layer) -> list[tuple[int, int, str]]:
        return [
            (0, int(word), "") if word.isdigit() else (1, 0, word)
            for word in re.split(r"(\d+)", layer.prefix)
        ]

    def number(layer: Layer) -> tuple[float, bool]:
        first = re.search(r"\d+", layer.prefix)
        return (int(first[0]) if first else math.inf, layer.is_norm)

    orders = [sorted(layers, key=natural)]
    if len({re.sub(r"\d+", "", layer.prefix) for layer in layers}) > 1:
        orders = [list(layers), *orders, sorted(layers, key=number)]
    problems = [_break(order) for order in orders]
    chains = {
        tuple(layer.prefix for layer in order): order
        for order, problem in zip(orders, problems, strict=True)
        if problem is None
    }
    if len(chains) > 1:
        first, second = (", ".join(names) for names in list(chains)[:2])
        raise refuse(f"the order of the layers is not clear ({first} or {second})")
    if not chains:
        raise refuse(str(problems[0]))
    return next(iter(chains.values()))


def _break(layers: Sequence[Layer]) -> str | None:
    """Say where a sequence of layers is no chain, or None if it is one."""
    before: Layer | None = None
    convolution = False
    for layer in layers:
        if layer.is_norm:
            units = next(shape for leaf, shape in layer.leaves.items() if leaf != "num_batches_tracked")[0]
            if before is None or before.weight[0] != units:
                return (
                    f"normalisation {layer.prefix!r} of {units} channels does not follow a layer of as many"
                )
            if "running_mean" not in layer.leaves and convolution:
                return f"{layer.prefix!r} behind a convolution may be a layer norm or a group norm"
            continue
        shape = layer.weight
        if before is not None:
            written = before.weight[0]
            flattened = convolution and len(shape) == 2
            if shape[1] != written and not (flattened and shape[1] % written == 0):
                return (
                    f"layer {layer.prefix!r} reads {shape[1]} channels, but {before.prefix!r} before it "
                    f"writes {written}"
                )
            if len(shape) > 2 and len(before.weight) != len(shape):
                return (
                    f"convolution {layer.prefix!r} follows {before.prefix!r}, which is of another dimension"
                )
        before, convolution = layer, len(shape) > 2
    return None if before is not None else "there is no linear layer and no convolution"


def _listed(layer: Layer) -> str:
    return ", ".join(f"{leaf} {list(shape)}" for leaf, shape in layer.leaves.items())


def refuse(reason: str) -> CheckpointError:
    """Return the error for weights that are no plain sequential network: why, and what to do."""
    return CheckpointError(
        f"no spec lies beside these weights, and they are no plain sequential network: {reason}. "
        f"{HOW_TO_SUPPLY}"
    )
