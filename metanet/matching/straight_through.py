"""Straight-through matching: the element is learned from the loss half-way between two networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from metanet.matching.pair import STATISTICS
from metanet.matching.weights import Matching, moved_fractions, weight_matching
from metanet.spec import WeightSpec

State = Mapping[str, Tensor]


def straight_through_matching(
    spec: WeightSpec,
    a: State,
    b: State,
    loss: Callable[[dict[str, Tensor]], Tensor],
    *,
    fixed: Collection[str] = (),
    steps: int = 100,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Matching:
    r"""Learn an element by descending on the loss at the midpoint, straight through the assignment.

    A virtual network â, begun at a, is what b is matched to in every step; the loss is that of the midpoint
    of a and the matched b, and its gradient goes to â as if matching were the identity:

        g = argmin ‖â − g·b‖²,    L(½(a + g·b)),    â <- â − η ∂L/∂(g·b) .

    It begins at weight matching and returns the element with the smallest loss that it met, so that it is
    never worse than weight matching where the loss is the same function in every step.

    Args:
        spec: of both networks.
        a: state dict of the network that stays.
        b: state dict of the network to be moved.
        loss: of a state dict, differentiable in its tensors (`torch.func.functional_call`); it may take
            another batch in every call.
        fixed: groups that stay as they are.
        steps: of Adam.
        learning_rate: η, of Adam.
        seed: of matching.

    Returns:
        The matching; what it measures is the loss at the midpoint.

    Raises:
        ValueError: no steps.

    References:
        Ainsworth, Hayase and Srinivasa 2023, Git Re-Basin, https://arxiv.org/abs/2209.04836, §3.3.
    """
    if steps < 1:
        raise ValueError(f"learning takes at least one step, found steps={steps}")
    virtual = {
        name: tensor.detach().clone().requires_grad_()
        for name, tensor in a.items()
        if tensor.is_floating_point() and not name.endswith(STATISTICS)
    }
    optimizer = torch.optim.Adam(virtual.values(), learning_rate)
    first = weight_matching(spec, a, b, fixed=fixed, seed=seed)
    element = best = first.element
    lowest, history, sweeps = float("inf"), list[float](), first.sweeps
    for _ in range(steps):
        moved = element @ b
        middle = {
            name: 0.5 * (tensor + moved[name] + virtual[name] - virtual[name].detach())
            if name in virtual
            else tensor
            for name, tensor in a.items()
        }
        value = loss(middle)
        history.append(float(value.detach()))
        if history[-1] < lowest:
            lowest, best = history[-1], element
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        target = {name: virtual[name].detach() if name in virtual else x for name, x in a.items()}
        step = weight_matching(spec, target, moved, fixed=fixed, starts=["identity"], max_sweeps=2, seed=seed)
        element, sweeps = step.element @ element, sweeps + step.sweeps
    with torch.no_grad():
        naive = loss({n: 0.5 * (x + b[n]) if n in virtual else x for n, x in a.items()})
    return Matching(
        best,
        float(naive),
        lowest,
        tuple(history),
        ("straight-through",),
        sweeps,
        moved_fractions(best),
        "loss at the midpoint",
    )
