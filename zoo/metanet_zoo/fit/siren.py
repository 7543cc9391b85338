"""A stack of SIRENs trained side by side, without autograd and without allocating.

Every network of the stack is a row of one matrix of parameters; layers are views of it, so that Adam is a
handful of operations on one matrix. Products run over the stack (`torch.bmm`) into buffers that are kept:
with fresh tensors in every step, page faults cost as much as the arithmetic.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from metanet_zoo.architectures import Siren

ALIGNMENT = 16
"""Rows of parameters begin at multiples of this many values (64 bytes), so that no slot is special."""


class SirenStack:
    """Networks of one architecture in `size` slots, each at its own step of its own fit by Adam.

    A network does not notice its neighbours: slots share no arithmetic but batched products, which work on
    one network at a time. A slot is frozen as soon as its mean squared error reaches `threshold`
    or it has made `steps` steps; `load` puts the next network into it.

    Args:
        architecture: what to fit; its own parameters are not used.
        coordinates: `[points, in_features]`, the same for all networks.
        size: number of slots.
        steps: most steps a network makes.
        learning_rate: of Adam, with β = (0.9, 0.999), ε = 1e-8 and no weight decay.
        threshold: mean squared error at which a network is frozen; 0 lets each make all its steps.

    References:
        Kingma and Ba (2015), Adam: A Method for Stochastic Optimization, https://arxiv.org/abs/1412.6980.
    """

    betas = (0.9, 0.999)
    epsilon = 1e-8

    def __init__(
        self,
        architecture: Siren,
        coordinates: Tensor,
        size: int,
        *,
        steps: int,
        learning_rate: float,
        threshold: float = 0.0,
    ) -> None:
        self.size = size
        self.steps = steps
        self.threshold = threshold
        device, dtype = coordinates.device, coordinates.dtype
        self.layout = ParameterLayout(architecture)
        self.output_shift = architecture.output_shift
        points = coordinates.shape[0]

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device, dtype=dtype)

        def rows() -> Tensor:
            return zeros(size, self.layout.padded)

        # `scaled` holds ω W and ω b of the hidden layers, so that no activation needs to be scaled.
        self.parameters, self.scaled, self.gradients = rows(), rows(), rows()
        self.first_moments, self.second_moments, self._denominator = rows(), rows(), rows()
        self._scale = self.layout.scale(architecture.omega).to(device, dtype)
        self._weights = self.layout.views(self.scaled)
        self._gradient_views = self.layout.views(self.gradients)

        *hidden, outputs = (units for units, _ in self.layout.shapes)
        self._inputs = coordinates.t().expand(size, -1, -1).contiguous()
        self._phases = [zeros(size, units, points) for units in hidden]
        self._sines = [zeros(size, units, points) for units in hidden]
        self._back = zeros(size, max(hidden), points)
        self._residual = zeros(size, outputs, points)
        self.targets = zeros(size, outputs, points)
        self._numbers = points * outputs

        # Entry t is the step size of a network that has made t steps; the one after the last keeps it still.
        count = torch.arange(1, steps + 1, dtype=torch.float64)
        first, second = (1 - beta**count for beta in self.betas)
        still = torch.zeros(1, dtype=torch.float64)
        self._step_sizes = torch.cat([-learning_rate / first, still]).to(device, dtype)
        self._corrections = torch.cat([1 / second.sqrt(), still + 1]).to(device, dtype)
        self.counts = torch.full((size,), steps, device=device)
        self.errors = zeros(size)
        self.finished = torch.ones(size, device=device, dtype=torch.bool)

    def load(self, slot: int, parameters: Tensor, target: Tensor) -> None:
        """Begin the fit of a network in a slot.

        Args:
            slot: where, below `size`.
            parameters: `[layout.total]`, the initial parameters.
            target: `[points, out_features]`.
        """
        self.parameters[slot, : self.layout.total] = parameters
        self.targets[slot] = target.t() - self.output_shift
        self.first_moments[slot] = 0.0
        self.second_moments[slot] = 0.0
        self.counts[slot] = 0
        self.finished[slot] = False

    def unload(self, slot: int) -> tuple[Tensor, float, int]:
        """A finished network: parameters `[layout.total]` on the CPU, mean squared error, steps made."""
        parameters = self.parameters[slot, : self.layout.total].clone().cpu()
        return parameters, float(self.errors[slot]), int(self.counts[slot])

    def step(self) -> None:
        """Evaluate every network; freeze those that have finished, take a step of Adam with the others.

        Afterwards `errors` holds the mean squared errors *before* the step (which for a finished network are
        those of the parameters it keeps), `finished` says who has finished and `counts` the steps made.
        """
        self._forward()
        self.finished |= (self.errors <= self.threshold) | (self.counts >= self.steps)
        self._backward()
        self._adam()
        self.counts += ~self.finished

    def _forward(self) -> None:
        torch.mul(self.parameters, self._scale, out=self.scaled)
        below = self._inputs
        for depth, (weight, bias) in enumerate(self._weights):
            hidden = depth < len(self._phases)
            out = self._phases[depth] if hidden else self._residual
            torch.baddbmm(bias.expand_as(out), weight, below, out=out)
            if hidden:
                below = _sin(out, out=self._sines[depth])
        self._residual -= self.targets
        flat = self._residual.view(self.size, 1, -1)
        torch.bmm(flat, flat.transpose(1, 2), out=self.errors.view(self.size, 1, 1))
        self.errors /= self._numbers

    def _backward(self) -> None:
        delta = self._residual.mul_(2.0 / self._numbers)
        for depth in reversed(range(len(self._weights))):
            weight, (weight_gradient, bias_gradient) = self._weights[depth][0], self._gradient_views[depth]
            below = self._sines[depth - 1] if depth else self._inputs
            torch.bmm(delta, below.transpose(1, 2), out=weight_gradient)
            torch.sum(delta, dim=2, keepdim=True, out=bias_gradient)
            if depth:
                phase = self._phases[depth - 1]
                back = self._back[:, : phase.shape[1]]
                if delta.shape[1] == 1:
                    torch.mul(weight.transpose(1, 2), delta, out=back)
                else:
                    torch.bmm(weight.transpose(1, 2), delta, out=back)
                delta = _cos(phase, out=phase).mul_(back)
        self.gradients *= self._scale

    def _adam(self) -> None:
        beta1, beta2 = self.betas
        index = torch.where(self.finished, self.steps, self.counts)
        self.first_moments.lerp_(self.gradients, 1 - beta1)
        self.second_moments.mul_(beta2).addcmul_(self.gradients, self.gradients, value=1 - beta2)
        denominator = torch.sqrt(self.second_moments, out=self._denominator)
        denominator.mul_(self._corrections[index].unsqueeze(1)).add_(self.epsilon)
        update = torch.div(self.first_moments, denominator, out=denominator)
        self.parameters.addcmul_(update, self._step_sizes[index].unsqueeze(1))


class ParameterLayout:
    """Where each tensor of a SIREN lies in a row of parameters: weight and bias, layer by layer.

    Args:
        architecture: whose shapes, names and initial distribution to use.
    """

    def __init__(self, architecture: Siren) -> None:
        self.shapes = [(layer.out_features, layer.in_features) for layer in architecture.linears]
        self.names = [name for name, _ in architecture.named_parameters()]
        self.offsets: list[tuple[int, int, int]] = []
        self.total = 0
        for rows, columns in self.shapes:
            bias = self.total + rows * columns
            self.offsets.append((self.total, bias, bias + rows))
            self.total = bias + rows
        self.padded = math.ceil(self.total / ALIGNMENT) * ALIGNMENT
        self._bounds = torch.cat(
            [
                torch.cat([torch.full((rows * columns,), weight), torch.full((rows,), bias)])
                for (rows, columns), (weight, bias) in zip(
                    self.shapes, architecture.initial_bounds(), strict=True
                )
            ]
        )

    def views(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weights `[stack, out, in]` and biases `[stack, out, 1]` as views of `rows [stack, padded]`."""
        return [
            (rows[:, a:b].unflatten(1, shape), rows[:, b:c].unsqueeze(2))
            for (a, b, c), shape in zip(self.offsets, self.shapes, strict=True)
        ]

    def scale(self, omega: float) -> Tensor:
        """`[padded]`, ω on what enters a sine and one elsewhere."""
        scale = torch.ones(self.padded)
        scale[: self.offsets[-1][0]] = omega
        return scale

    def draw(self, generator: np.random.Generator) -> Tensor:
        """Initial parameters `[total]` of one network."""
        return (2 * torch.from_numpy(generator.random(self.total, dtype=np.float32)) - 1) * self._bounds

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """Stacked state-dict entries `[models, …]` from `rows [models, total]`, contiguous."""
        parts = [
            part
            for (a, b, c), shape in zip(self.offsets, self.shapes, strict=True)
            for part in (rows[:, a:b].unflatten(1, shape), rows[:, b:c])
        ]
        return {name: part.contiguous() for name, part in zip(self.names, parts, strict=True)}


def _sin(x: Tensor, out: Tensor) -> Tensor:
    """Sine into `out`; NumPy's float32 loop takes less than half the time of torch's on a CPU."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        np.sin(x.numpy(), out=out.numpy())
        return out
    return torch.sin(x, out=out)


def _cos(x: Tensor, out: Tensor) -> Tensor:
    """Cosine into `out`, which may be `x`."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        np.cos(x.numpy(), out=out.numpy())
        return out
    return torch.cos(x, out=out)
