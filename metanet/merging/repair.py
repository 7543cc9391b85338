"""After a merge: statistics of activations, which averaging shrinks, are brought back with data.

Units that were matched correlate only in part, so that the variance of their average falls layer by layer.
Networks with batch norm get its statistics computed anew (`reset_batch_norm`); others get every layer's mean
and variance restored to what they are between the ends (`repair`), or its variance alone (`rescale`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

State = Mapping[str, Tensor]
Affine: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | _BatchNorm
AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, _BatchNorm)
Correction = Literal["repair", "rescale"]
MIN_DEVIATION = 1e-6
"""Units whose deviation is smaller than this are off and stay as they are."""


def reset_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Compute the running statistics of every batch norm anew, in place.

    Args:
        model: the network; its mode is left as it was.
        batches: inputs; every batch counts alike.

    Returns:
        the number of batch norms.

    Raises:
        ValueError: there are no batches.

    References:
        Jordan et al. 2023, REPAIR, https://arxiv.org/abs/2211.08403, §3 (reset).
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    before = [(norm.momentum, norm.training) for norm in norms]
    modes = [(module, module.training) for module in model.modules()]
    count = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for batch in batches:
                model(batch)
                count += 1
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, (momentum, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
    if not count:
        raise ValueError("batch norm cannot be reset without data: no batch came")
    return len(norms)


def repair(
    model: nn.Module,
    merged: State,
    a: State,
    b: State,
    inputs: Tensor,
    *,
    weight: float = 0.5,
    correction: Correction = "repair",
) -> dict[str, Tensor]:
    r"""Restore the statistics of a merged network's hidden layers to what they are between the ends.

    With mean μ and deviation σ per unit of a layer's output, a goal interpolated between the ends, and y the
    merged layer's output behind layers that are already corrected,

        repair   y -> (y − μ)·σ*/σ + μ*        rescale   y -> y·σ*/σ .

    The correction goes into the layer's own weight and bias. Batch norms get new statistics and, as affine
    layers, the same correction; convolutions without a bias pass theirs on to the batch norm behind them.

    Args:
        model: a network with these names; its weights are replaced and left at the result.
        merged: the merge.
        a: state dict at weight 0.
        b: state dict at weight 1, aligned to a.
        inputs: one large batch of data.
        weight: where between a and b the merge lies.
        correction: mean and variance, or the variance alone.

    Returns:
        The corrected state dict.

    References:
        Jordan et al. 2023, REPAIR: REnormalizing Permuted Activations for Interpolation Repair,
        https://arxiv.org/abs/2211.08403. Qu and Horvath 2024, https://arxiv.org/abs/2402.05966 (rescale).
    """
    with _evaluating(model):
        ends = [_statistics(model, state, inputs) for state in (a, b)]
        model.load_state_dict(dict(merged))
        reset_batch_norm(model, [inputs])
        names = list(ends[0])[:-1]

        def correct(name: str, layer: Affine, output: Tensor) -> Tensor:
            if name not in names:
                return output
            (mean_a, deviation_a), (mean_b, deviation_b) = (end[name] for end in ends)
            goal_mean = torch.lerp(mean_a, mean_b, weight)
            goal = torch.lerp(deviation_a, deviation_b, weight)
            mean, deviation = _moments(layer, output)
            alive = (deviation > MIN_DEVIATION) & (goal > MIN_DEVIATION)
            factor = torch.where(alive, goal / deviation.clamp_min(MIN_DEVIATION), torch.ones_like(goal))
            shift = torch.where(alive, goal_mean - factor * mean, torch.zeros_like(goal))
            if correction == "rescale":
                shift = torch.zeros_like(shift)
            shape = _shape(layer, output)
            assert layer.bias is not None
            layer.weight.mul_(factor.reshape(-1, *(1,) * (layer.weight.ndim - 1)))
            layer.bias.mul_(factor).add_(shift)
            return output * factor.reshape(shape) + shift.reshape(shape)

        _run(model, inputs, correct)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _statistics(model: nn.Module, state: State, inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    model.load_state_dict(dict(state))
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name: str, layer: Affine, output: Tensor) -> Tensor:
        found[name] = _moments(layer, output)
        return output

    _run(model, inputs, look)
    return found


def _run(model: nn.Module, inputs: Tensor, visit: Callable[[str, Affine, Tensor], Tensor]) -> None:
    """Run a network once; every layer with weight and bias has its output visited, in order."""
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, AFFINE) and layer.weight is not None and layer.bias is not None:

            def hook(module: nn.Module, _: Any, output: Tensor, name: str = name) -> Tensor:
                assert isinstance(module, AFFINE)
                return visit(name, module, output)

            handles.append(layer.register_forward_hook(hook))
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()


def _moments(layer: Affine, output: Tensor) -> tuple[Tensor, Tensor]:
    channel = _channel(layer, output)
    others = [dim for dim in range(output.ndim) if dim != channel]
    wide = output.to(torch.promote_types(output.dtype, torch.float32))
    return wide.mean(others), wide.std(others)


def _channel(layer: Affine, output: Tensor) -> int:
    return output.ndim - 1 if isinstance(layer, nn.Linear) else 1


def _shape(layer: Affine, output: Tensor) -> list[int]:
    channel = _channel(layer, output)
    return [-1 if dim == channel else 1 for dim in range(output.ndim)]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
