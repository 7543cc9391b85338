"""Plain sequential networks, rebuilt from nothing but the names and shapes of a checkpoint's tensors.

An MLP or a chain of convolutions that ends in an MLP says in its shapes how its layers follow one another. It
does not say what stands between them: the activation, strides, padding and pooling are assumed, and the
assumptions are listed. All but the activation leave the symmetry as it is; an unknown activation is taken as
one without a symmetry of its own, which gives a smaller group but never a wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metanet_zoo.layer_chain import Layer, chain, read_layers, refuse

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
}
"""Activations that can be named; `sine:ω` is the one with a parameter."""

UNKNOWN_ACTIVATION = "gelu"
"""Stands in for an activation that nobody named: neither odd, even nor homogeneous; permutations only."""

_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True)
class SequentialGuess:
    """A sequential network with the names and shapes of a checkpoint.

    Args:
        model: the network, in evaluation mode; its weights are not the checkpoint's.
        inputs: arguments it runs on.
        description: the chain of layers, ``conv2d(1-32) -> ? -> flatten -> linear(1600-10)``.
        assumptions: what names and shapes do not say, one sentence each.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    description: str
    assumptions: tuple[str, ...]


def guess_sequential(shapes: Mapping[str, tuple[int, ...]], activation: str | None = None) -> SequentialGuess:
    """Rebuild a plain sequential MLP or CNN from names and shapes.

    The order of the layers is the checkpoint's own, or that of the numbers in the names, whichever gives a
    chain; every layer must read as many channels as the one before it writes (a linear layer behind a
    convolution: a multiple of them, the flattened positions).

    Args:
        shapes: entry name -> shape.
        activation: one of `ACTIVATIONS` or ``sine:ω`` (``sine:30``); None assumes one without symmetry.

    Returns:
        The network, an input for it, and what was assumed.

    Raises:
        CheckpointError: not such a network; the message says why, and how to supply a spec instead.
        ValueError: an unknown activation.

    Example:
        >>> shapes = {"0.weight": (32, 2), "0.bias": (32,), "2.weight": (1, 32), "2.bias": (1,)}
        >>> guess_sequential(shapes, "tanh").description
        'linear(2-32) -> tanh -> linear(32-1)'
    """
    apply = _activation(activation)
    layers = read_layers(shapes)
    builder = _Builder(apply, "?" if activation is None else activation)
    for layer in chain(layers):
        builder.add(layer)
    return builder.finish()


class SequentialNetwork(nn.Module):
    """Layers under given dotted names, applied one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[Callable[[Tensor], Tensor]] = []

    def append(self, step: Callable[[Tensor], Tensor], name: str | None = None) -> None:
        """Add a step; a layer is registered under its dotted name."""
        if name is not None:
            assert isinstance(step, nn.Module)
            parent: nn.Module = self
            *folders, last = name.split(".")
            for folder in folders:
                if folder not in parent._modules:
                    parent.add_module(folder, nn.Module())
                parent = parent.get_submodule(folder)
            parent.add_module(last, step)
        self._steps.append(step)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the steps to ``[batch, …]``."""
        for step in self._steps:
            x = step(x)
        return x


class _Builder:
    def __init__(self, apply: Activation, name: str) -> None:
        self.apply, self.activation = apply, name
        self.network = SequentialNetwork()
        self.words: list[str] = []
        self.input: list[int] = []
        self.kernels: list[tuple[int, ...]] = []
        self.channels = 0
        self.positions: tuple[int, ...] | None = None
        self.pending = False

    def add(self, layer: Layer) -> None:
        if layer.is_norm:
            norm = self._norm(layer)
            self._append(norm, layer.prefix, f"{_kind(norm)}({self.channels})")
            return
        if self.pending:
            self._append(self.apply, None, self.activation)
        shape = layer.weight
        if len(shape) == 2 and self.kernels and self.positions is None:
            self.positions = _factor(shape[1] // self.channels, len(self.kernels[-1]))
            self._append(_flatten, None, "flatten")
        self.input = self.input or [shape[1]]
        if len(shape) == 2:
            module: nn.Module = nn.Linear(shape[1], shape[0], bias="bias" in layer.leaves)
        else:
            self.kernels.append(shape[2:])
            module = _CONVOLUTIONS[len(shape)](shape[1], shape[0], shape[2:], bias="bias" in layer.leaves)  # type: ignore[arg-type]
        self.channels = shape[0]
        self._append(module, layer.prefix, f"{_kind(module)}({shape[1]}-{shape[0]})")
        self.pending = True

    def _norm(self, layer: Layer) -> nn.Module:
        affine = "weight" in layer.leaves
        if "running_mean" not in layer.leaves:
            return nn.LayerNorm(self.channels, bias="bias" in layer.leaves)
        spatial = len(self.kernels[-1]) if self.kernels and self.positions is None else 0
        norm = _BATCH_NORMS[spatial](self.channels, affine=affine)
        if affine and "bias" not in layer.leaves:
            norm.register_parameter("bias", None)
        if "num_batches_tracked" not in layer.leaves:
            norm.num_batches_tracked = None
        return norm

    def _append(self, step: Callable[[Tensor], Tensor], name: str | None, word: str) -> None:
        try:
            self.network.append(step, name)
        except KeyError as error:
            raise refuse(f"a layer cannot be called {name!r} ({error.args[0]})") from None
        self.words.append(word)

    def finish(self) -> SequentialGuess:
        size: tuple[int, ...] = ()
        if self.kernels:
            positions = self.positions or (1,) * len(self.kernels[-1])
            size = tuple(p + sum(k[i] - 1 for k in self.kernels) for i, p in enumerate(positions))
        assumptions = []
        if self.activation == "?" and self.words.count("?"):
            assumptions.append(
                "the activation is unknown and taken as one without a symmetry of its own: permutations only "
                f"(name it for more: {', '.join(ACTIVATIONS)} or sine:ω)"
            )
        elif self.words.count(self.activation):
            assumptions.append(f"the activation between the layers is {self.activation}, as given")
        if self.kernels:
            assumptions.append(
                "strides, padding and pooling are unknown; the symmetry does not depend on them"
            )
        if self.positions is not None:
            assumptions.append(f"flattened in the order channel, then {math.prod(self.positions)} positions")
        example = torch.randn(2, *self.input, *size, generator=torch.Generator().manual_seed(0))
        description = " -> ".join(self.words)
        return SequentialGuess(self.network.eval(), (example,), description, tuple(assumptions))


def _activation(name: str | None) -> Activation:
    if name is None:
        return ACTIVATIONS[UNKNOWN_ACTIVATION]
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    kind, _, parameter = name.partition(":")
    try:
        omega = float(parameter)
    except ValueError:
        omega = 0.0
    if kind != "sine" or omega == 0 or not math.isfinite(omega):
        raise ValueError(
            f"unknown activation {name!r}; expected one of {', '.join(ACTIVATIONS)} or sine:ω, e.g. sine:30"
        )
    return lambda x: torch.sin(omega * x)


def _factor(positions: int, dims: int) -> tuple[int, ...]:
    """Split a number of positions into a grid that is as square as it can be."""
    if dims == 1:
        return (positions,)
    side = round(positions ** (1 / dims))
    while positions % side:
        side -= 1
    return (side, *_factor(positions // side, dims - 1))


def _flatten(x: Tensor) -> Tensor:
    return x.flatten(1)


def _kind(module: nn.Module) -> str:
    name = type(module).__name__
    return {"LayerNorm": "layer_norm"}.get(name, "batch_norm" if "Norm" in name else name.lower())
