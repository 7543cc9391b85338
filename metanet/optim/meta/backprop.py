r"""Truncated backpropagation through inner training: exact meta-gradients of a stretch, blind beyond it.

A stretch of inner steps with parameters W, states s, gradients g_t = ∇ℓ_t(W_t) and the update rule U_θ

    (W_{t+1}, s_{t+1}) = U_θ(W_t, s_t, g_t),    L = Σ_t w_t ℓ_t(W_t)

is run as always, in place and without a graph, and W_t and s_t of every step are kept. Going back, one step
at a time is recorded anew (`metanet.optim.meta.recording`), so no graph of more than one step is ever held:

    (θ̂, λ, μ, γ) = (∂U/∂(θ, W, s, g))ᵀ (λ_{t+1}, μ_{t+1})
    ∇L += θ̂,    λ_t = w_t g_t + λ + ∇²ℓ_t γ,    μ_t = μ

The cotangents λ, μ are zero behind the last step and forgotten before the first one: that is the truncation.
The first-order form leaves ∇²ℓ_t γ out: gradients count as constants.

There is no noise of perturbations, and there are two known faults: the estimate prefers what pays within the
stretch (small rates), and it explodes with the length of the stretch where inner training is unstable.

References:
    Maclaurin, Duvenaud and Adams 2015, Gradient-based hyperparameter optimization through reversible
    learning, https://arxiv.org/abs/1502.03492. Andrychowicz et al. 2016, Learning to learn by gradient
    descent by gradient descent, https://arxiv.org/abs/1606.04474 (truncated, first order). Wu, Ren, Liao and
    Grosse 2018, Understanding short-horizon bias in stochastic meta-optimization,
    https://arxiv.org/abs/1803.02021. Metz et al. 2019, Understanding and correcting pathologies in the
    training of learned optimizers, https://arxiv.org/abs/1810.10180 (exploding gradients).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from metanet.optim.meta.group import Group, advance
from metanet.optim.meta.recording import Recording
from metanet.optim.rule import UpdateRule


@dataclass(frozen=True, slots=True)
class Moment:
    """A group before an inner step.

    Args:
        group: with networks and states of its own: `Group.copy`.
        indices: ``[K, B]``, the examples of the step.
        weights: ``[K]``, of the losses in what is minimised; zero for a loss that is clipped.
    """

    group: Group
    indices: Tensor
    weights: Tensor

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the inner task, which the next call overwrites."""
        return self.group.task.gradients([p.detach() for p in self.group.parameters], self.indices)[1]

    def recorded_gradients(self) -> Sequence[Tensor]:
        """Return the gradients of the inner task with their graph."""
        with torch.enable_grad():
            losses = self.group.task.losses(self.group.parameters, self.indices)
            return torch.autograd.grad(losses.sum(), self.group.parameters, create_graph=True)


def backpropagate(
    rule: UpdateRule, theta: Tensor, moments: Sequence[Moment], *, second_order: bool = True
) -> Tensor:
    """Return the gradient of the weighted losses of a stretch, for every particle.

    Args:
        rule: what took the steps; that it works in place does not matter.
        theta: ``[size]`` meta-parameters of all particles.
        moments: one per inner step, in order.
        second_order: differentiate the gradients of the inner task too.

    Returns:
        ``[K, size]``. Losses of weight zero have no part in it, whatever became of their networks; the row of
        a particle whose gradient overflows is zero.

    Raises:
        ValueError: the rule reads numbers out of tensors, which loses their derivative.
    """
    total = theta.new_zeros(len(moments[0].weights), len(theta))
    later: list[Tensor] = []
    for moment in reversed(moments):
        found, later = _step_back(rule, theta, moment, later, second_order=second_order)
        total += found
    return torch.where(total.isfinite().all(1, keepdim=True), total, 0.0)


def _step_back(
    rule: UpdateRule, theta: Tensor, moment: Moment, later: Sequence[Tensor], *, second_order: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return the part of θ in a step, and the cotangents of parameters and states before it.

    Args:
        rule: the rule.
        theta: ``[size]``.
        moment: before the step.
        later: the cotangents after it; nothing where no later loss counts.
        second_order: see `backpropagate`.
    """
    group, weights = moment.group, moment.weights
    rows = theta.expand(len(weights), -1).clone().requires_grad_()
    states = [value.requires_grad_() for state in group.states for value in state.values()]
    parameters = [parameter.requires_grad_() for parameter in group.parameters]
    gradients = moment.recorded_gradients() if second_order else moment.gradients()
    own = [_kept(_along(weights, g) * g.detach(), weights != 0) for g in gradients]
    if not later:
        return torch.zeros_like(rows), [*own, *(torch.zeros_like(value) for value in states)]
    leaves = [gradient.detach().clone().requires_grad_() for gradient in gradients]
    plain = deepcopy(rule)  # what is recorded stays out of memory that later steps use
    plain.compiled = False  # and the compiler's loops are the same formulas once more
    with Recording(f"the rule {rule.name!r}"):
        after = group.copy()
        advance(plain, rule.unpack(rows), group.task.roles, after, leaves)
    outputs = [*after.parameters, *(value for state in after.states for value in state.values())]
    found, *pulled = _pull(outputs, [rows, *parameters, *states, *leaves], later)
    count = len(own)
    moved, carried, through = pulled[:count], pulled[count:-count], pulled[-count:]
    terms = [moved, _pull(gradients, parameters, through)] if second_order else [moved]
    heard = _heard(later, count)  # 0 · ∞ = 0: what no later loss hears may have overflowed
    for term in terms:
        for total, part in zip(own, term, strict=True):
            total += _kept(part, heard)
    return _kept(found, heard), [*own, *(_kept(value, heard, 1) for value in carried)]


def _pull(outputs: Sequence[Tensor], inputs: Sequence[Tensor], by: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the cotangents of inputs, zeros where an output does not depend on one."""
    return torch.autograd.grad(outputs, inputs, by, allow_unused=True, materialize_grads=True)


def _heard(later: Sequence[Tensor], parameters: int) -> Tensor:
    """Return ``[K]``, whether anything after a step depends on what a particle does in it."""
    by_particle = [*later[:parameters], *(cotangent.transpose(0, 1) for cotangent in later[parameters:])]
    return torch.stack([(cotangent != 0).flatten(1).any(1) for cotangent in by_particle]).any(0)


def _along(by_particle: Tensor, tensor: Tensor, lead: int = 0) -> Tensor:
    """Return ``[K]`` numbers in a shape that broadcasts over ``[K, …]``, with one more dimension ahead."""
    return by_particle.reshape(-1, *(1,) * (tensor.ndim - 1 - lead))


def _kept(cotangent: Tensor, some: Tensor, lead: int = 0) -> Tensor:
    """Return a cotangent with zeros for all but some particles."""
    return torch.where(_along(some, cotangent, lead), cotangent, 0.0)
