"""EquivariantStack: equivariant linear layers with what stands between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from metanet.features import BlockLayout
from metanet.nn.linear import EquivariantLinear, Init

Activation = Literal["relu", "gelu", "silu", "tanh"]
Norm = Literal["layer"]

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": F.tanh,
}


class EquivariantStack(nn.Module):
    """Linear layers with activations between them, and on request norms, residuals and dropout.

    A hidden layer is ``X <- dropout(act(norm(linear(X))))``, plus X where residual and the widths agree.
    The last layer is followed by the same, unless ``final`` is False. Norms are taken over the channels of
    one index of one network: what else is in the batch never matters.

    Args:
        layout: the blocks.
        sizes: of the groups.
        widths: width of every block before and after every layer, ``num_layers + 1`` rows.
        activation: relu, gelu, silu or tanh.
        norm: ``"layer"`` or None.
        residual: add a layer's input to its output.
        dropout: probability of zeroing a channel of one network's block (all its indices alike).
        final: whether the last layer is followed by norm, activation and dropout too.
        init: how the matrices start.
    """

    def __init__(
        self,
        layout: tuple[BlockLayout, ...],
        sizes: Mapping[str, int],
        widths: Sequence[Sequence[int]],
        *,
        activation: Activation = "relu",
        norm: Norm | None = None,
        residual: bool = False,
        dropout: float = 0.0,
        final: bool = True,
        init: Init = "balanced",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {activation!r}; the known ones are {', '.join(ACTIVATIONS)}"
            )
        if norm not in (None, *get_args(Norm)):
            raise ValueError(f"unknown norm {norm!r}; expected 'layer' or None")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is a probability below 1; found {dropout}")
        if len(widths) < 2:
            raise ValueError("num_layers must be at least 1")
        self.activation: Activation = activation
        self.residual, self.dropout, self.final = residual, dropout, final
        self.layers = nn.ModuleList(
            EquivariantLinear(layout, sizes, before, after, init) for before, after in pairwise(widths)
        )
        hidden = widths[1:] if final else widths[1:-1]
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.LayerNorm(width) for width in row) for row in (hidden if norm else [])
        )

    def forward(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Map blocks ``[b, *group axes, width]`` through all layers."""
        act = ACTIVATIONS[self.activation]
        current = list(blocks)
        for number, layer in enumerate(self.layers):
            result: list[Tensor] = layer(current)
            if self.final or number + 1 < len(self.layers):
                if len(self.norms):
                    norms = self.norms[number]
                    assert isinstance(norms, nn.ModuleList)
                    result = [norm(x) for norm, x in zip(norms, result, strict=True)]
                result = [self._drop(act(x)) for x in result]
                if self.residual:
                    result = [
                        y + x if y.shape == x.shape else y for x, y in zip(current, result, strict=True)
                    ]
            current = result
        return current

    def _drop(self, tensor: Tensor) -> Tensor:
        if not self.dropout or not self.training:
            return tensor
        mask = tensor.new_ones(tensor.shape[0], *[1] * (tensor.ndim - 2), tensor.shape[-1])
        return tensor * F.dropout(mask, self.dropout)
