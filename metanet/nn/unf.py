"""Universal neural functionals: equivariant networks on the weights of any architecture."""

from __future__ import annotations

from torch import Tensor, nn

from metanet.features import WeightFeatures, feature_layout
from metanet.nn.doors import give_blocks, take_blocks
from metanet.nn.linear import BlockLinear, EquivariantLinear, Init
from metanet.nn.stack import Activation, EquivariantStack, Norm
from metanet.spec import WeightSpec


class UNFLayer(nn.Module):
    """One equivariant linear layer on hidden features (fixed axes folded away).

    Args:
        spec: of the weights.
        in_channels: hidden channels of every input block.
        out_channels: hidden channels of every output block.
        init: how the matrices start.

    References:
        Zhou, Finn, Harrison: Universal Neural Functionals (2024), arXiv:2402.05232, Algorithm 1; here all
        terms of one signature are one matrix product.
    """

    def __init__(self, spec: WeightSpec, in_channels: int, out_channels: int, init: Init = "unf") -> None:
        super().__init__()
        self.spec, self.in_channels, self.out_channels = spec, in_channels, out_channels
        layout = feature_layout(spec)
        self.linear = EquivariantLinear(
            layout, spec.sizes, [in_channels] * len(layout), [out_channels] * len(layout), init
        )

    def forward(self, features: WeightFeatures) -> WeightFeatures:
        """Map hidden features with C_in channels to hidden features with C_out."""
        blocks = take_blocks(self.spec, features, self.in_channels, folded=True)
        return give_blocks(self.spec, features, self.linear(blocks), self.out_channels, folded=True)

    def __repr__(self) -> str:
        terms = self.linear.num_terms
        return f"UNFLayer({self.spec!r}, {self.in_channels} -> {self.out_channels} channels | {terms} terms)"


class UNF(nn.Module):
    """Equivariant network on weights: UNF layers with activations, fixed axes folded into channels.

    The first layer reads the fixed axes as channels and the last one writes them so; where they are wider
    than the hidden channels (vocabularies, images) each block is first folded into its hidden channels, or
    unfolded from them, by a linear map of its own.

    Args:
        spec: of the weights.
        in_channels: channels per parameter that come in.
        hidden_channels: channels of hidden features.
        out_channels: channels per parameter that come out; None returns hidden features.
        num_layers: number of equivariant layers.
        activation: relu, gelu, silu or tanh.
        norm: ``"layer"`` normalises over channels; None does not.
        residual: add a layer's input to its output where widths agree.
        dropout: probability of zeroing a channel of one network's block.
        init: how the matrices start.
        fused: False computes layer by layer in plain operations, which may be differentiated twice.

    References:
        Zhou, Finn, Harrison: Universal Neural Functionals (2024), arXiv:2402.05232. Departures: fixed axes
        (inputs, outputs, kernel offsets) stay apart instead of being permuted, and matrices start balanced
        over signatures (``init="unf"`` is the published rule).
    """

    def __init__(
        self,
        spec: WeightSpec,
        in_channels: int = 1,
        hidden_channels: int = 16,
        out_channels: int | None = 1,
        num_layers: int = 3,
        *,
        activation: Activation = "relu",
        norm: Norm | None = None,
        residual: bool = False,
        dropout: float = 0.0,
        init: Init = "balanced",
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.spec, self.in_channels, self.hidden_channels = spec, in_channels, hidden_channels
        self.out_channels, self.num_layers = out_channels, num_layers
        layout = feature_layout(spec)
        hidden = [hidden_channels] * len(layout)
        first = [block.fixed * in_channels for block in layout]
        last = [block.fixed * (out_channels or 0) for block in layout] if out_channels else hidden
        self.fold = BlockLinear(first, hidden) if max(first) > hidden_channels else None
        self.unfold = BlockLinear(hidden, last) if max(last) > hidden_channels else None
        widths = [
            hidden if self.fold else first,
            *[hidden] * (num_layers - 1),
            hidden if self.unfold else last,
        ]
        self.stack = EquivariantStack(
            layout,
            spec.sizes,
            widths,
            activation=activation,
            norm=norm,
            residual=residual,
            dropout=dropout,
            final=out_channels is None or self.unfold is not None,
            init=init,
            fused=fused,
        )

    def forward(self, features: WeightFeatures) -> WeightFeatures:
        """Map features with C_in channels per parameter to C_out of them, or to hidden features."""
        blocks: list[Tensor] = self.stack(self._enter(features))
        if self.unfold is not None:
            blocks = self.unfold(blocks)
        if self.out_channels is None:
            return give_blocks(self.spec, features, blocks, self.hidden_channels, folded=True)
        return give_blocks(self.spec, features, blocks, self.out_channels, folded=False)

    def means(self, features: WeightFeatures) -> list[Tensor]:
        """Return the mean of every hidden block over its group axes, ``[b, C]``, without keeping the blocks.

        Raises:
            ValueError: the network was not built with ``out_channels=None``.
        """
        if self.out_channels is not None:
            raise ValueError("means are taken of hidden features: build the network with out_channels=None")
        return self.stack(self._enter(features), means=True)  # type: ignore[no-any-return]

    def _enter(self, features: WeightFeatures) -> list[Tensor]:
        blocks = take_blocks(self.spec, features, self.in_channels, folded=False)
        return blocks if self.fold is None else self.fold(blocks)

    def __repr__(self) -> str:
        channels = [self.in_channels, *[self.hidden_channels] * (self.num_layers - 1)]
        arrows = " -> ".join(map(str, [*channels, self.out_channels or self.hidden_channels]))
        terms = self.stack.layers[0].num_terms
        return f"UNF({self.spec!r}, {arrows} channels | {terms} terms)"
