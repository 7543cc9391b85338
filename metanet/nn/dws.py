"""DWSNet: all equivariant linear maps of a deep weight space, fixed axes kept apart."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from metanet.features import WeightFeatures, feature_layout
from metanet.nn.doors import give_blocks, take_blocks
from metanet.nn.linear import EquivariantLinear, Init
from metanet.nn.stack import Activation, EquivariantStack, Norm
from metanet.spec import WeightSpec

SetLayer = Literal["ds"]
"""How a set of units is mapped: ``ds``, DeepSets with means (the linear maps of the paper's theorem)."""


class DWSLayer(nn.Module):
    """One equivariant linear layer on parameter-like features: the full characterisation of the paper.

    Every index of a fixed axis (inputs, outputs, kernel offsets) has coefficients of its own: width
    ``prod(fixed) · C``. Coefficients grow with the square of the fixed sizes; large ones want a `UNF`.

    Args:
        spec: of the weights.
        in_channels: channels per parameter that come in.
        out_channels: channels per parameter that come out.
        init: how the matrices start.

    References:
        Navon et al.: Equivariant Architectures for Learning in Deep Weight Spaces (2023), arXiv:2301.12780,
        Theorem 5.1 and Tables 5-8. Means take the place of the published code's maximum, so that the layer
        is linear, and the last weight layer keeps the maps that code loses for more than one output.
    """

    def __init__(self, spec: WeightSpec, in_channels: int, out_channels: int, init: Init = "dws") -> None:
        super().__init__()
        self.spec, self.in_channels, self.out_channels = spec, in_channels, out_channels
        layout = feature_layout(spec)
        before = [block.fixed * in_channels for block in layout]
        after = [block.fixed * out_channels for block in layout]
        self.linear = EquivariantLinear(layout, spec.sizes, before, after, init)

    def forward(self, features: WeightFeatures) -> WeightFeatures:
        """Map features with C_in channels per parameter to C_out of them."""
        blocks = take_blocks(self.spec, features, self.in_channels, folded=False)
        return give_blocks(self.spec, features, self.linear(blocks), self.out_channels, folded=False)

    def __repr__(self) -> str:
        terms = self.linear.num_terms
        return f"DWSLayer({self.spec!r}, {self.in_channels} -> {self.out_channels} channels | {terms} terms)"


class DWSNet(nn.Module):
    """Equivariant network on weights: DWS layers with activations between them.

    Args:
        spec: of the weights.
        in_channels: channels per parameter that come in.
        hidden_channels: channels per parameter inside.
        out_channels: channels per parameter that come out; None returns the hidden ones, activated.
        num_layers: number of DWS layers.
        set_layer: ``"ds"``.
        activation: relu, gelu, silu or tanh.
        norm: ``"layer"`` normalises over channels; None does not. (The published code's BatchNorm makes one
            network's output depend on the rest of the batch.)
        residual: add a layer's input to its output where widths agree.
        dropout: probability of zeroing a channel of one network's block.
        init: how the matrices start; ``"dws"`` is the published rule (He over the number of tensors).
        fused: False computes layer by layer in plain operations, which may be differentiated twice.

    References:
        Navon et al.: Equivariant Architectures for Learning in Deep Weight Spaces (2023), arXiv:2301.12780.
        Departures: any spec instead of MLPs, means for maxima, no norm over the batch, and matrices that
        start balanced over signatures.
    """

    def __init__(
        self,
        spec: WeightSpec,
        in_channels: int = 1,
        hidden_channels: int = 32,
        out_channels: int | None = 1,
        num_layers: int = 4,
        *,
        set_layer: SetLayer = "ds",
        activation: Activation = "relu",
        norm: Norm | None = None,
        residual: bool = False,
        dropout: float = 0.0,
        init: Init = "balanced",
        fused: bool = True,
    ) -> None:
        super().__init__()
        if set_layer not in get_args(SetLayer):
            raise ValueError(f"unknown set layer {set_layer!r}; expected 'ds'")
        self.spec, self.in_channels, self.hidden_channels = spec, in_channels, hidden_channels
        self.out_channels, self.num_layers = out_channels, num_layers
        layout = feature_layout(spec)
        channels = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels or hidden_channels]
        self.stack = EquivariantStack(
            layout,
            spec.sizes,
            [[block.fixed * c for block in layout] for c in channels],
            activation=activation,
            norm=norm,
            residual=residual,
            dropout=dropout,
            final=out_channels is None,
            init=init,
            fused=fused,
        )

    def forward(self, features: WeightFeatures) -> WeightFeatures:
        """Map features with C_in channels per parameter to C_out, or to the hidden channels."""
        blocks = self.stack(take_blocks(self.spec, features, self.in_channels, folded=False))
        return give_blocks(
            self.spec, features, blocks, self.out_channels or self.hidden_channels, folded=False
        )

    def means(self, features: WeightFeatures) -> list[Tensor]:
        """Return the mean of every block over its group axes, ``[b, prod(fixed) · C]``."""
        blocks = take_blocks(self.spec, features, self.in_channels, folded=False)
        return self.stack(blocks, means=True)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        channels = [self.in_channels, *[self.hidden_channels] * (self.num_layers - 1)]
        arrows = " -> ".join(map(str, [*channels, self.out_channels or self.hidden_channels]))
        terms = self.stack.layers[0].num_terms
        return f"DWSNet({self.spec!r}, {arrows} channels | {terms} terms)"
