"""EquivariantStack: equivariant linear layers with what stands between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet.features import BlockLayout
from metanet.nn.fused import Trunk, run_trunk
from metanet.nn.linear import EquivariantLinear, Init
from metanet.nn.views import Plan
from metanet.nn.walk import make_walk

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
        fused: run stacks of linear layers and ReLUs as one function, which is fastest; it cannot be
            differentiated twice or transformed by `torch.func`, for which there is False. Either way a batch
            is worked on in chunks that stay in cache.
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
        fused: bool = True,
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
        self.residual, self.dropout, self.final, self.fused = residual, dropout, final, fused
        self.layers = nn.ModuleList(
            EquivariantLinear(layout, sizes, before, after, init) for before, after in pairwise(widths)
        )
        hidden = widths[1:] if final else widths[1:-1]
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.LayerNorm(width) for width in row) for row in (hidden if norm else [])
        )

        self.widths = tuple(tuple(row) for row in widths)
        plan = self.layers[0].plan
        assert isinstance(plan, Plan)
        self.walks = (make_walk(plan, backward=False), make_walk(plan, backward=True))

    def forward(self, blocks: Sequence[Tensor], *, means: bool = False) -> list[Tensor]:
        """Map blocks ``[b, *group axes, width]`` through all layers.

        Args:
            blocks: one per block of the layout.
            means: return every block's mean over its group axes, ``[b, width]``, instead of the block.
        """
        trunk = Trunk(self.walks, self.widths, self.final, means)
        if self.can_fuse(blocks[0]):
            return run_trunk(trunk, blocks, self._matrices())
        parts = [self._plain([block[part] for block in blocks], means) for part in trunk.chunks(blocks)]
        return parts[0] if len(parts) == 1 else [torch.cat(part) for part in zip(*parts, strict=True)]

    def _matrices(self) -> list[Tensor]:
        parameters: list[Tensor] = []
        for layer in self.layers:
            assert isinstance(layer, EquivariantLinear)
            parameters += [layer.bias, *layer.matrices()]
        return parameters

    def can_fuse(self, tensor: Tensor) -> bool:
        """Whether the fast route does the same as the plain one, here and now."""
        plain = self.activation == "relu" and not len(self.norms) and not self.residual
        dropping = self.dropout > 0 and self.training
        return self.fused and plain and not dropping and not torch.is_autocast_enabled(tensor.device.type)

    def _plain(self, blocks: Sequence[Tensor], means: bool) -> list[Tensor]:
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
        return [x.flatten(1, -2).mean(1) if x.ndim > 2 else x for x in current] if means else current

    def _drop(self, tensor: Tensor) -> Tensor:
        if not self.dropout or not self.training:
            return tensor
        mask = tensor.new_ones(tensor.shape[0], *[1] * (tensor.ndim - 2), tensor.shape[-1])
        return tensor * F.dropout(mask, self.dropout)
