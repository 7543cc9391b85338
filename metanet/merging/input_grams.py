"""What flows into the linear layers of a network, as Gram matrices: what RegMean knows of the data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def input_grams(
    model: nn.Module, batches: Iterable[Any], *, layers: Collection[str] | None = None
) -> dict[str, Tensor]:
    r"""Sum the Gram matrices of the inputs of linear layers over data.

        G = Σ_x x xᵀ,   over every position at which the layer is applied.

    Args:
        model: the network; its mode is left as it was.
        batches: a tensor, a tuple of arguments or a mapping of keyword arguments each. Positions of padding
            count like others: leave them out.
        layers: names of the linear layers to take; None takes all.

    Returns:
        name of a layer's weight -> ``[in, in]``, in float64 for weights that are, otherwise in float32.

    Raises:
        ValueError: no data, no such layer, or a layer through which nothing flowed.

    References:
        Jin et al. 2023, Dataless knowledge fusion by merging weights of language models,
        https://arxiv.org/abs/2212.09849, §3.2.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if unknown := sorted(set(layers or ()) - set(found)):
        raise ValueError(f"no linear layers {', '.join(unknown)}; found {', '.join(found) or 'none'}")
    chosen = {name: module for name, module in found.items() if layers is None or name in layers}
    if not chosen:
        raise ValueError("this network has no linear layer (torch.nn.Linear); RegMean has nothing to go by")
    grams: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Linear) -> Any:
        def add(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            wide = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
            inputs = arguments[0].detach().reshape(-1, layer.in_features).to(wide)
            total = grams.get(name)
            if total is None:
                grams[name] = inputs.T @ inputs
            else:
                total.addmm_(inputs.T, inputs)

        return layer.register_forward_pre_hook(add)

    handles = [watch(name, layer) for name, layer in chosen.items()]
    modes = [(module, module.training) for module in model.modules()]
    count = 0
    try:
        model.eval()
        for batch in batches:
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(*(batch if isinstance(batch, tuple | list) else (batch,)))
            count += 1
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    if not count:
        raise ValueError("Gram matrices need data: no batch came")
    if silent := sorted(set(chosen) - set(grams)):
        raise ValueError(f"nothing flowed through {', '.join(silent)}; name the layers that the data reaches")
    return {f"{name}.weight" if name else "weight": grams[name].cpu() for name in chosen}
