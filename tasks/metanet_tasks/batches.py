"""Batches of stacked networks: cut without worker processes, augmented, reproducible by seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metanet.canonical.form import canonicalize
from metanet.features import WeightFeatures
from metanet.spec import WeightSpec
from metanet_tasks.augmentation import ElementBatch, GroupAugmentation, add_noise
from metanet_zoo.transforms import coordinate_layer, move_coordinates, random_motion

Batch = tuple[WeightFeatures, Tensor]


@dataclass(frozen=True)
class StackedNetworks:
    """Networks of one architecture in memory.

    Args:
        tensors: entry name -> ``[models, *shape]``.
        labels: ``[models]``.
        indices: ``[models]``, their places in the zoo.
    """

    tensors: Mapping[str, Tensor]
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class BatchLoader:
    """Batches of `WeightFeatures` and labels; order, noise and group elements depend on seed and epoch alone.

    Lightning tells the epoch to whatever is called ``sampler``, so a resumed run sees the same batches.

    Args:
        spec: of the networks.
        networks: what to cut into batches.
        batch_size: networks per batch; the last one may be smaller.
        seed: None keeps the order and adds nothing.
        noise: in units of ``scales``.
        scales: entry name -> standard deviation of its values.
        group_augmentation: random group elements, one per network.
        motion: strength of random affine motions of the coordinates of INRs (`random_motion`).
        canonical: bring what was moved into canonical form again.
    """

    batch_sampler = None
    """Lightning asks for it wherever there is a ``sampler``."""

    def __init__(
        self,
        spec: WeightSpec,
        networks: StackedNetworks,
        batch_size: int,
        *,
        seed: int | None = None,
        noise: float = 0.0,
        scales: Mapping[str, float] | None = None,
        group_augmentation: GroupAugmentation = "none",
        motion: float = 0.0,
        canonical: bool = False,
    ) -> None:
        self.spec, self.networks, self.batch_size = spec, networks, batch_size
        self.motion, self.canonical = motion, canonical
        self.seed, self.noise, self.scales = seed, noise, scales or {}
        self.group_augmentation: GroupAugmentation = group_augmentation
        self.epoch = 0

    @property
    def sampler(self) -> BatchLoader:
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass belongs to."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.networks) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.networks)
        if self.seed is None:
            for start in range(0, count, self.batch_size):
                chosen = slice(start, start + self.batch_size)
                yield (
                    self._features({n: t[chosen] for n, t in self.networks.tensors.items()}),
                    self.networks.labels[chosen],
                )
            return
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        for index in torch.randperm(count, generator=generator).split(self.batch_size):
            tensors = {name: tensor[index] for name, tensor in self.networks.tensors.items()}
            if self.motion:
                tensors = self._move(tensors, generator)
            if self.noise:
                tensors = add_noise(tensors, self.scales, self.noise, generator)
            if self.group_augmentation != "none":
                elements = ElementBatch.random(self.spec, len(index), generator, self.group_augmentation)
                tensors = elements.act(tensors)
            yield self._features(tensors), self.networks.labels[index]

    def _move(self, tensors: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        weight, _ = coordinate_layer(self.spec)
        b, _, d = tensors[weight].shape
        moved = move_coordinates(self.spec, tensors, *random_motion(b, d, self.motion, generator))
        return canonicalize(self.spec, moved) if self.canonical else moved

    def _features(self, tensors: Mapping[str, Tensor]) -> WeightFeatures:
        return WeightFeatures.from_state_dict(self.spec, tensors, batched=True)


def epoch_seed(seed: int, epoch: int) -> int:
    """Return a seed for one epoch of a run; different pairs give unrelated streams.

    Example:
        >>> epoch_seed(0, 1) != epoch_seed(1, 0)
        True
    """
    state = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + 1) & (2**64 - 1)
    state = ((state ^ (state >> 31)) * 0x94D049BB133111EB) & (2**64 - 1)
    return state >> 1
