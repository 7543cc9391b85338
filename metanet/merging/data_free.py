"""Data-free correction of a merge: deviations are estimated from the norms of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

State = Mapping[str, Tensor]
PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def rescale_without_data(
    model: nn.Module, merged: State, a: State, b: State, example: Tensor, *, weight: float = 0.5
) -> dict[str, Tensor]:
    r"""Undo the loss of variance of a merge, unit by unit, from norms of rows alone.

    Were a layer's inputs uncorrelated and of equal variance, a unit's deviation would be the norm of its row
    w. The merge's row is brought to the norm between the ends; a batch norm behind it has its running
    variance (between the ends) divided by the square of the same ratio instead:

        s = ((1−t)·‖w_a‖ + t·‖w_b‖) / ‖w‖,      w -> s·w,  b -> s·b      or      var -> σ*² / s² .

    Args:
        model: a network with these names; its weights are left at the result.
        merged: the merge.
        a: state dict at weight 0.
        b: state dict at weight 1, aligned to a.
        example: an input, which tells the order of the layers.
        weight: where between a and b the merge lies.

    Returns:
        The corrected state dict.

    References:
        Qu and Horvath 2024, Vanishing Feature, https://arxiv.org/abs/2402.05966 (data-free rescale, reset).
    """
    model.load_state_dict(dict(merged))
    order = _order(model, example)
    corrected = {name: tensor.clone() for name, tensor in merged.items()}
    for (name, layer), (behind, norm) in zip(order, [*order[1:], ("", None)], strict=True):
        if not isinstance(layer, PLAIN):
            continue
        key = f"{name}.weight"
        ratio = _ratio(a[key], b[key], merged[key], weight)
        if isinstance(norm, _BatchNorm) and norm.num_features == len(ratio):
            key = f"{behind}.running_var"
            deviation = torch.lerp(a[key].sqrt(), b[key].sqrt(), weight)
            corrected[key] = (deviation / ratio).square()
        elif norm is not None:
            # The last layer's outputs are logits: their scale is part of the function.
            corrected[f"{name}.weight"] *= ratio.reshape(-1, *(1,) * (layer.weight.ndim - 1))
            if layer.bias is not None:
                corrected[f"{name}.bias"] *= ratio
    model.load_state_dict(corrected)
    return corrected


def _ratio(a: Tensor, b: Tensor, merged: Tensor, weight: float) -> Tensor:
    norms = [tensor.flatten(1).norm(dim=1) for tensor in (a, b, merged)]
    goal = torch.lerp(norms[0], norms[1], weight)
    return torch.where(norms[2] > 0, goal / norms[2].clamp_min(1e-12), torch.ones_like(goal))


def _order(model: nn.Module, example: Tensor) -> list[tuple[str, nn.Module | None]]:
    """Return the layers and batch norms in the order in which they run."""
    found: list[tuple[str, nn.Module | None]] = []
    handles = [
        layer.register_forward_pre_hook(lambda module, _, name=name: found.append((name, module)))
        for name, layer in model.named_modules()
        if isinstance(layer, (*PLAIN, _BatchNorm))
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found
