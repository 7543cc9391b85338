r"""The structured rule and a network that passes messages on the parameter graph: neural graphs.

Every weight is an edge between units of the spec and carries its gradient, momenta, Adam's direction, the
structured direction D and its own value, each divided by its root mean square over the tensor. The network of
`metanet.optim.rules.unit_network` gives every edge an output f, and

    direction = D + rms(D) f

Its last weights are zero at first, so training starts from the structured rule. A step commutes with the
permutations of the spec, which the rule cannot do without: it is the graph.

References:
    Kofinas et al. 2024, Graph neural networks for learning equivariant representations of neural networks,
    https://arxiv.org/abs/2403.12143 (section 4.3: learning to optimize). Here D is a strong nominal direction
    instead of none, and nothing depends on the layout of one architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metanet.optim.chunks import Part
from metanet.optim.rule import Item, Meta, Metas, UpdateRule
from metanet.optim.rules.links import Links
from metanet.optim.rules.mixing import rms
from metanet.optim.rules.network import FEATURES, FLOORS
from metanet.optim.rules.structured import METAS, StructuredRule
from metanet.optim.rules.unit_network import Edges, UnitNetwork

NETWORK = UnitNetwork(FEATURES, context=2)
DIRECTION = 5
"""Position of D among the features."""


class GraphRule(StructuredRule):
    """See the module's docstring."""

    name = "graph"
    linked = True
    needs_spec = True
    bucketed = True
    metas: Mapping[str, Meta] = {**METAS, **NETWORK.metas()}
    move = UpdateRule.move  # by whole directions

    def directions(
        self, metas: Metas, items: Sequence[Item], progress: float, links: Links | None = None
    ) -> list[Tensor]:
        """Return D + rms(D) f for every bucket."""
        if links is None:
            raise ValueError(
                "the rule 'graph' passes messages between the units of a spec and has none: pass spec or "
                "example_args"
            )
        bases = self.bases(metas, items, progress)
        edges, sizes = [], []
        for item, (moved, adam) in zip(items, bases, strict=True):
            edge, size = self._edges(item, moved, adam)
            edges.append(edge)
            sizes.append(size)
        context = (progress - 0.5, 4 * (progress - 0.5) ** 2)
        found = NETWORK(metas, context, edges, links)
        return [
            moved.flatten(1).addcmul(output, size[:, None]).view_as(moved)
            for (moved, _), output, size in zip(bases, found, sizes, strict=True)
        ]

    def _edges(self, item: Item, moved: Tensor, adam: Tensor) -> tuple[Edges, Tensor]:
        """Return the edges of a bucket and rms(D), ``[K]``."""
        features = [item.gradients, *item.state["momenta"], adam, moved, item.values]
        flat = [feature.flatten(1) for feature in features]
        sizes = torch.stack([rms(feature) for feature in flat], 1)
        divisors = sizes + sizes.new_tensor(FLOORS)

        def inputs(at: Part) -> Tensor:
            return torch.stack([feature[at] for feature in flat], 1)

        edges = Edges(item.values, inputs, divisors, item.role, item.named, item.stacked)
        return edges, sizes[:, DIRECTION]
