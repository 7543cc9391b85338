"""EquivariantLinear: every equivariant linear map between two feature spaces, one matrix per signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from metanet.features import BlockLayout
from metanet.nn.views import Plan, gather, make_plan, pool, scatter, spread

Init = Literal["balanced", "unf", "dws"]
"""How the matrices start: ``unf`` N(0, 1/(c_in · terms)) and ``dws`` He-like over the number of tensors as
published; ``balanced`` gives every signature an equal share of the output's variance, so that what is not
pooled does not fade with the number of terms."""


def draw_weight(plan: Plan, number: int, reads: Sequence[int], writes: Sequence[int], init: Init) -> Tensor:
    """Draw the matrix of one signature, ``[sum of reading widths, sum of writing widths]``.

    Args:
        plan: of the layer.
        number: of the signature.
        reads: input width of every block.
        writes: output width of every block.
        init: which rule.
    """
    product = plan.products[number]
    rows = [reads[b] for b in product.read_blocks]
    columns = []
    for target in product.write_blocks:
        width = writes[target]
        if init == "dws":
            tensors = len(plan.shapes)
            stds = [sqrt(4 * c / (c + width)) / tensors / sqrt(c) for c in rows]
        elif init == "unf":
            fan_in = sum(
                sum(reads[b] for b in p.read_blocks) * sum(w == target for w in p.write_blocks)
                for p in plan.products
            )
            stds = [1 / sqrt(fan_in)] * len(rows)
        else:
            share = sum(sum(w == target for w in p.write_blocks) for p in plan.products)
            stds = [sqrt(2 / (share * sum(rows)))] * len(rows)
        columns.append(torch.cat([torch.randn(c, width) * std for c, std in zip(rows, stds, strict=True)]))
    return torch.cat(columns, 1)


class EquivariantLinear(nn.Module):
    """All equivariant linear maps from blocks of given widths to blocks of given widths.

        Y_l = Σ_S Σ_{w ∈ writings of S to l} w( concat_{r ∈ readings of S} r(X) · M_S ) + invariant biases

    Args:
        layout: the blocks.
        sizes: of the groups.
        in_widths: width of every input block.
        out_widths: width of every output block.
        init: how the matrices start (`Init`).

    References:
        Navon et al.: Equivariant Architectures for Learning in Deep Weight Spaces (2023), arXiv:2301.12780.
        Zhou, Finn, Harrison: Universal Neural Functionals (2024), arXiv:2402.05232.
    """

    def __init__(
        self,
        layout: tuple[BlockLayout, ...],
        sizes: Mapping[str, int],
        in_widths: Sequence[int],
        out_widths: Sequence[int],
        init: Init = "balanced",
    ) -> None:
        super().__init__()
        if init not in get_args(Init):
            raise ValueError(f"unknown init {init!r}; the known ones are {', '.join(get_args(Init))}")
        self.plan = make_plan(layout, sizes)
        self.in_widths, self.out_widths = tuple(in_widths), tuple(out_widths)
        self.weights = nn.ParameterList(
            draw_weight(self.plan, s, self.in_widths, self.out_widths, init)
            for s in range(len(self.plan.products))
        )
        self.bias = nn.Parameter(
            torch.zeros(sum(self.out_widths[b] for b in self.plan.products[0].write_blocks))
        )

        for number, product in enumerate(self.plan.products):
            rows = zip(product.read_blocks, product.counts, strict=True)
            counts = [torch.full((self.in_widths[block], 1), float(count)) for block, count in rows]
            self.register_buffer(f"counts_{number}", torch.cat(counts), persistent=False)

    def matrices(self) -> list[Tensor]:
        """Return the matrix of every signature, for readings that are sums: rows over what is averaged."""
        return [
            weight / self.get_buffer(f"counts_{number}") if max(product.counts) > 1 else weight
            for number, (weight, product) in enumerate(zip(self.weights, self.plan.products, strict=True))
        ]

    @property
    def num_terms(self) -> int:
        """Number of terms of the basis."""
        return self.plan.basis.num_terms

    def forward(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Map blocks ``[b, *group axes, in width]`` to ``[b, *group axes, out width]``."""
        nodes = pool(self.plan, blocks)
        values: list[Tensor | None] = [None] * len(nodes)
        for product, matrix in zip(self.plan.products, self.matrices(), strict=True):
            result = gather(product.readings, nodes) @ matrix
            if not product.groups:
                result = result + self.bias
            parts = result.split([self.out_widths[block] for block in product.write_blocks], -1)
            scatter(product.writings, parts, values)
        return spread(self.plan, values)

    def extra_repr(self) -> str:
        """Say how many terms and coefficients there are."""
        return f"{len(self.plan.shapes)} blocks, {self.num_terms} terms, {len(self.weights)} signatures"


class BlockLinear(nn.Module):
    """A linear map of every block's width on its own: folds fixed axes into hidden channels, or unfolds them.

        Y_l = X_l · M_l + b_l

    Args:
        in_widths: width of every input block.
        out_widths: width of every output block.
    """

    def __init__(self, in_widths: Sequence[int], out_widths: Sequence[int]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(i, o) for i, o in zip(in_widths, out_widths, strict=True))

    def forward(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Map blocks ``[b, *group axes, in width]`` to ``[b, *group axes, out width]``."""
        return [layer(block) for layer, block in zip(self.maps, blocks, strict=True)]
