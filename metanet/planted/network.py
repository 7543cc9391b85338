"""Random networks that write down, layer by layer, which units are interchangeable."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from metanet.planted.slots import Label, Planted, fresh, planted

Kind: TypeAlias = Literal["vector", "sequence", "image"]
Operation: TypeAlias = Callable[["PlantedNetwork", "Feature"], None]
Step: TypeAlias = Callable[[Sequence[Tensor], nn.ModuleDict], Tensor]
BATCH, LENGTH, SIDE = 2, 3, 4


@dataclass(frozen=True)
class Feature:
    """A value of the network: ``[b, c]``, ``[b, l, c]`` or ``[b, c, h, w]``, and the labels of c.

    Args:
        index: which value it is.
        kind: its form.
        labels: of its channels.
        side: of an image.
    """

    index: int
    kind: Kind
    labels: list[Label]
    side: int = 0

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.labels)


class PlantedNetwork(nn.Module):
    """A random network whose permutation group is known.

    Args:
        seed: of the draws.
        operations: to draw from; the first one comes first. Each reads a feature and adds others, or does
            nothing where it does not fit.
        length: number of operations beside the heads.
    """

    def __init__(self, seed: int, operations: Sequence[Operation], length: int = 7) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.layers = nn.ModuleDict()
        self.steps: list[Step] = []
        self.entries: dict[str, list[list[Label]]] = {}
        self.beside: dict[tuple[str, int], list[Label]] = {}
        self.mixed: list[tuple[list[Label], list[Label]]] = []
        self.marks = 0
        self.read: set[int] = set()
        kind: Kind = self.draw.choice(["vector", "sequence", "image", "image"])
        shape = {"vector": (6,), "sequence": (LENGTH, 6), "image": (6, SIDE, SIDE)}[kind]
        generator = torch.Generator().manual_seed(seed)
        self.inputs = (torch.randn(BATCH, *shape, generator=generator),)
        self.features = [Feature(0, kind, fresh(6, fixed=True), SIDE)]
        operations[0](self, self.features[0])
        while len(self.steps) < length:
            x = self.draw.choice(self.features[-3:])
            self.draw.choice(operations)(self, x)
        self._heads()

    def forward(self, x: Tensor) -> Tensor:
        """Run all operations; the result is the sum of linear maps of what no other operation reads."""
        values = [x]
        for step in self.steps:
            values.append(step(values, self.layers))
        total = values[-1]
        for count in range(1, self.heads):
            total = total + values[-1 - count]
        return total

    def planted(self) -> Planted:
        """Return the group that the network was built to have."""
        return planted(self.entries, self.beside, self.mixed)

    # Bookkeeping

    def add(self, kind: Kind, labels: list[Label], step: Step, *read: Feature, side: int = 0) -> Feature:
        """Add an operation and return what it makes."""
        self.read |= {feature.index for feature in read}
        self.steps.append(step)
        self.features.append(Feature(len(self.features), kind, labels, side))
        return self.features[-1]

    def layer(
        self, module: nn.Module, outer: Mapping[int, list[Label]] | None = None, **entries: list[list[Label]]
    ) -> str:
        """Keep a module, and note the labels of its entries' dimensions; the others are fixed.

        ``outer`` says which units choose those of a dimension of its weight.
        """
        name = f"{len(self.layers)}"
        self.layers[name] = module
        for entry, tensor in module.state_dict().items():
            dims = entries.get(entry.replace(".", "_"), [])
            rest = [fresh(size, fixed=True) for size in tensor.shape[len(dims) :]]
            self.entries[f"layers.{name}.{entry}"] = [*dims, *rest]
        for dim, labels in (outer or {}).items():
            self.beside[f"layers.{name}.weight", dim] = labels
        return name

    def per_unit(self, module: nn.Module, labels: list[Label]) -> str:
        """Keep a module whose entries have one value per unit."""
        names = ("weight", "bias", "running_mean", "running_var")
        return self.layer(module, None, **{name: [labels] for name in names})

    def mark(self, labels: list[Label]) -> None:
        """Note a set of units that something tells apart from all others."""
        self.marks += 1
        self.entries[f"mark:{self.marks}"] = [labels]

    def _heads(self) -> None:
        left = [feature for feature in self.features if feature.index not in self.read]
        self.heads = len(left)
        for x in left:
            name = self.layer(nn.Linear(x.width, 2), weight=[fresh(2, fixed=True), x.labels])
            self.add("vector", fresh(2, fixed=True), _head(x, name), x)


def _head(x: Feature, name: str) -> Step:
    return lambda v, m: m[name](pooled(v[x.index], x))


def pooled(value: Tensor, feature: Feature) -> Tensor:
    """Return the mean over positions."""
    if feature.kind == "vector":
        return value
    return value.mean(1) if feature.kind == "sequence" else value.mean((2, 3))
