"""Inner tasks: many small networks of one shape trained at once, each with an optimizer of its own.

All particles stand on the first dimension: a layer of N networks is one batched product, and no Python runs
per particle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional

from metanet.optim.links import Links
from metanet.spec import WeightSpec

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "gelu": functional.gelu,
    "silu": functional.silu,
}

_aten = torch.ops.aten
BACKWARD: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda upper, _, after: _aten.threshold_backward.grad_input(upper, after, 0, grad_input=upper),
    "tanh": lambda upper, _, after: _aten.tanh_backward.grad_input(upper, after, grad_input=upper),
    "gelu": lambda upper, before, _: _aten.gelu_backward.grad_input(upper, before, grad_input=upper),
    "silu": lambda upper, before, _: _aten.silu_backward.grad_input(upper, before, grad_input=upper),
}
"""(gradient above, values before, values after) -> gradient below, in place, of every activation."""


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

    References:
        Moudgil et al. 2026, Celo2, https://arxiv.org/abs/2602.19142 (global reparametrisation).
    """

    data: Classification
    widths: tuple[int, ...]
    activation: str = "relu"
    batch_size: int = 128
    scale: float = 1.0

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
    def links(self) -> Links:
        """Return which units the tensors share: rows, bias, and the columns of the next layer."""
        return _links(self.widths)

    def initialize(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Draw ``count`` networks: weights ``[count, out, in]`` and biases ``[count, out]``."""
        device = self.data.inputs.device
        parameters = []
        for fan_in, fan_out in zip(self.widths, self.widths[1:], strict=False):
            for shape in ((count, fan_out, fan_in), (count, fan_out)):
                uniform = torch.rand(shape, generator=generator, device=generator.device).to(device)
                parameters.append((uniform * 2 - 1) / sqrt(fan_in) / self.scale)
        return parameters

    def losses(self, parameters: Sequence[Tensor], indices: Tensor) -> Tensor:
        """Return the ``[N]`` mean cross-entropies of N networks on the examples ``[N, B]``."""
        hidden, labels = self.data.batch(indices)
        activation = ACTIVATIONS[self.activation]
        layers = len(self.widths) - 1
        for i in range(layers):
            weight, bias = parameters[2 * i] * self.scale, parameters[2 * i + 1] * self.scale
            hidden = torch.baddbmm(bias[:, None], hidden, weight.mT)
            if i < layers - 1:
                hidden = activation(hidden)
        losses = functional.cross_entropy(hidden.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view(indices.shape).mean(1)

    def gradients(self, parameters: Sequence[Tensor], indices: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return ``[N]`` losses and the gradients of all networks, by backpropagation written out."""
        inputs, labels = self.data.batch(indices)
        activation, backward = ACTIVATIONS[self.activation], BACKWARD[self.activation]
        scaled = [parameter * self.scale for parameter in parameters] if self.scale != 1 else parameters
        layers = len(self.widths) - 1
        after, before = [inputs], []
        for i in range(layers):
            before.append(torch.baddbmm(scaled[2 * i + 1][:, None], after[-1], scaled[2 * i].mT))
            if i < layers - 1:
                after.append(activation(before[-1]))
        logs = functional.log_softmax(before[-1], 2)
        chosen = labels[..., None]
        losses = -logs.gather(2, chosen)[..., 0].mean(1)
        ones = logs.new_ones(1, 1, 1).expand(chosen.shape)
        upper = logs.exp_().scatter_add_(2, chosen, -ones).div_(indices.shape[1])
        found: list[Tensor] = []
        for i in reversed(range(layers)):
            found = [upper.mT @ after[i], upper.sum(1), *found]
            if i:
                upper = backward(upper @ scaled[2 * i], before[i - 1], after[i])
        return losses, [gradient * self.scale for gradient in found] if self.scale != 1 else found
