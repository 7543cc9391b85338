"""Inner tasks: many small networks of one shape trained at once, each with an optimizer of its own.

All particles stand on the first dimension: a layer of N networks is one batched product, and no Python runs
per particle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import sqrt
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from metanet.optim.buffers import Buffers, laid, padded
from metanet.optim.rules.links import Links
from metanet.spec import WeightSpec

_aten = torch.ops.aten
Forward: TypeAlias = Callable[[Tensor, Tensor], Tensor]
ACTIVATIONS: Mapping[str, tuple[Callable[[Tensor], Tensor], Forward | None]] = {
    "relu": (torch.relu_, None),
    "tanh": (torch.tanh_, None),
    "gelu": (functional.gelu, lambda before, after: _aten.gelu.out(before, out=after)),
    "silu": (functional.silu, lambda before, after: _aten.silu.out(before, out=after)),
}
"""Activations, and how to write their values beside those before them where the gradient needs both."""

BACKWARD: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda upper, _, after: _aten.threshold_backward.grad_input(upper, after, 0, grad_input=upper),
    "tanh": lambda upper, _, after: _aten.tanh_backward.grad_input(upper, after, grad_input=upper),
    "gelu": lambda upper, before, _: _aten.gelu_backward.grad_input(upper, before, grad_input=upper),
    "silu": lambda upper, before, _: _aten.silu_backward.grad_input(upper, before, grad_input=upper),
}
"""(gradient above, values before, values after) -> gradient below, in place, of every activation."""

CACHED = 1 << 20
"""Numbers that networks which are differentiated at once may hold: what stays in cache."""


@dataclass(frozen=True)
class Classification:
    """A data set of a classification task, held on one device.

    Args:
        inputs: ``[examples, features]``.
        labels: ``[examples]``, int64.
    """

    inputs: Tensor
    labels: Tensor

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``[N, B, features]`` inputs and ``[N, B]`` labels for ``[N, B]`` indices."""
        return self.inputs[indices], self.labels[indices]


@lru_cache(maxsize=256)
def _links(widths: tuple[int, ...]) -> Links:
    layers = len(widths) - 1
    axes = [str(widths[0]), *(f"h{i}" for i in range(1, layers)), str(widths[-1])]
    lines = ["groups " + " ".join(f"h{i}: {widths[i]}" for i in range(1, layers))]
    for i in range(layers):
        lines += [f"{i}.weight {axes[i + 1]} {axes[i]}", f"{i}.bias {axes[i + 1]}"]
    return Links(WeightSpec.parse("\n".join(lines)))


@dataclass(frozen=True)
class MLPTask:
    """Classification by an MLP with PyTorch's own initialisation.

    Args:
        data: what is learned.
        widths: features, hidden widths, classes.
        activation: one of `ACTIVATIONS`.
        batch_size: examples per step.
        scale: the network's weights are stored divided by this and multiplied back when they are used: a
            reparametrisation that changes no function and every gradient (augmentation of Celo2).
        widening: how many times as wide the rule is to take the network for: weights into the hidden units
            of the first layer, and the biases of hidden units, are stored divided by √widening too, those of
            the last layer times it, which are the multipliers of µP.

    References:
        Moudgil et al. 2026, Celo2, https://arxiv.org/abs/2602.19142 (global reparametrisation). Yang et al.
        2022, Tensor Programs V, https://arxiv.org/abs/2203.03466, table 9 (µP by multipliers).
    """

    data: Classification
    widths: tuple[int, ...]
    activation: str = "relu"
    batch_size: int = 128
    scale: float = 1.0
    widening: float = 1.0
    buffers: Buffers = field(default_factory=Buffers, init=False, repr=False, compare=False)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the parameters, in order: weight and bias of every layer."""
        layers = len(self.widths) - 1
        return tuple(
            role for i in range(layers) for role in ("output" if i == layers - 1 else "hidden", "vector")
        )

    @property
    def entries(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(f"{i}.{kind}" for i in range(len(self.widths) - 1) for kind in ("weight", "bias"))

    @property
    def multipliers(self) -> tuple[float, ...]:
        """What the stored parameters are multiplied with when they are used, in order."""
        layers, root = len(self.widths) - 1, sqrt(self.widening)
        weights = [root, *(1.0 for _ in range(layers - 2)), 1 / root] if layers > 1 else [1.0]
        biases = [*(root for _ in range(layers - 1)), 1.0]
        pairs = zip(weights, biases, strict=True)
        return tuple(self.scale * own for pair in pairs for own in pair)

    @property
    def links(self) -> Links:
        """Return which units the tensors share: rows, bias, and the columns of the next layer."""
        return _links(self.widths)

    def initialize(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Draw networks of the data's type: weights ``[count, out, in]`` and biases ``[count, out]``."""
        parameters = []
        for fan_in, fan_out in zip(self.widths, self.widths[1:], strict=False):
            for shape in ((count, fan_out, fan_in), (count, fan_out)):
                uniform = torch.rand(shape, generator=generator, device=generator.device).to(self.data.inputs)
                parameters.append((uniform * 2 - 1) / sqrt(fan_in))
        return [drawn / own for drawn, own in zip(parameters, self.multipliers, strict=True)]

    def losses(self, parameters: Sequence[Tensor], indices: Tensor) -> Tensor:
        """Return the ``[N]`` mean cross-entropies of N networks on the examples ``[N, B]``."""
        hidden, labels = self.data.batch(indices)
        activation, _ = ACTIVATIONS[self.activation]
        layers = len(self.widths) - 1
        used = [stored * own for stored, own in zip(parameters, self.multipliers, strict=True)]
        for i in range(layers):
            weight, bias = used[2 * i : 2 * i + 2]
            hidden = torch.baddbmm(bias[:, None], hidden, weight.mT)
            if i < layers - 1:
                hidden = activation(hidden)
        losses = functional.cross_entropy(hidden.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view(indices.shape).mean(1)

    def gradients(self, parameters: Sequence[Tensor], indices: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return ``[N]`` losses and the gradients of all networks, by backpropagation written out.

        The gradients are views of one buffer, which the next call overwrites.
        """
        count, batch = indices.shape
        found = laid(self.buffers.take("gradients", (count, padded(parameters)), parameters[0]), parameters)
        losses = parameters[0].new_empty(count)
        width = max(CACHED // (batch * (self.widths[0] + 2 * sum(self.widths[1:]))), 1)
        for start in range(0, count, width):
            part = slice(start, start + width)
            self._backpropagate(
                [parameter[part] for parameter in parameters],
                indices[part],
                losses[part],
                [gradient[part] for gradient in found],
            )
        return losses, found

    def _backpropagate(
        self, parameters: Sequence[Tensor], indices: Tensor, losses: Tensor, found: Sequence[Tensor]
    ) -> None:
        """Write the losses and gradients of some networks; units stand before examples."""
        count, batch = indices.shape

        def take(name: str, *shape: int) -> Tensor:
            return self.buffers.take(name, (count, *shape), parameters[0])

        inputs = take("inputs", batch, self.widths[0])
        torch.index_select(self.data.inputs, 0, indices.flatten(), out=inputs.flatten(0, 1))
        labels = self.data.labels[indices][:, None]
        scales = self.multipliers
        parameters = [
            p if own == 1 else torch.mul(p, own, out=take(f"scaled {i}", *p.shape[1:]))
            for i, (p, own) in enumerate(zip(parameters, scales, strict=True))
        ]
        forward, aside = ACTIVATIONS[self.activation]
        layers = len(self.widths) - 1
        after, before = [inputs.mT], []
        for i in range(layers):
            hidden = take(f"before {i}", self.widths[i + 1], batch)
            torch.bmm(parameters[2 * i], after[-1], out=hidden).add_(parameters[2 * i + 1][:, :, None])
            before.append(hidden)
            if i < layers - 1:
                after.append(
                    aside(hidden, take(f"after {i}", *hidden.shape[1:])) if aside else forward(hidden)
                )
        logs = take("logs", self.widths[-1], batch)
        torch._log_softmax(before[-1], 1, False, out=logs)
        torch.mean(logs.gather(1, labels)[:, 0], 1, out=losses).neg_()
        upper = torch.exp(logs, out=before[-1])
        upper.scatter_add_(1, labels, upper.new_full((), -1.0).expand(labels.shape))
        upper.mul_(1 / batch)
        for i in reversed(range(layers)):
            whole = take(f"gradient {i}", *found[2 * i].shape[1:])  # batched products write whole tensors
            found[2 * i].copy_(torch.bmm(upper, after[i].mT, out=whole))
            torch.sum(upper, 2, out=found[2 * i + 1])
            for gradient, own in zip(found[2 * i : 2 * i + 2], scales[2 * i : 2 * i + 2], strict=True):
                if own != 1:
                    gradient.mul_(own)
            if i:
                lower = take(f"upper {i}", self.widths[i], batch)
                torch.bmm(parameters[2 * i].mT, upper, out=lower)
                upper = BACKWARD[self.activation](lower, before[i - 1], after[i])
