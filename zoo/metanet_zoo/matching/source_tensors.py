"""Tensors of a merge's source by name, read whole when asked for; the same moved by a group element."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from metanet.group import GroupElement
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.aligned import AlignedSource, element_moves
from metanet_zoo.merging.sources import TensorSource
from metanet_zoo.safetensors_file import DTYPES


class SourceTensors(Mapping[str, Tensor]):
    """A `TensorSource` as a lazy mapping; reading goes through buffers and not through mapped pages.

    Args:
        source: the tensors.
    """

    def __init__(self, source: TensorSource) -> None:
        self.source = source

    def __getitem__(self, name: str) -> Tensor:
        entry = self.source.entries()[name]
        raw = np.empty(entry.size * entry.item_size, np.uint8)
        if raw.size:
            self.source.read(name, 0, entry.size, raw)
        return torch.from_numpy(raw).view(DTYPES[entry.dtype]).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.source.entries())

    def __len__(self) -> int:
        return len(self.source.entries())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: entry.shape for name, entry in self.source.entries().items()}


def aligned_source(source: TensorSource, element: GroupElement) -> TensorSource:
    """Return a model's tensors as a group element leaves them, moved while they are read.

    Raises:
        CheckpointError: the element belongs to another architecture, or would change integers.
    """
    try:
        element.spec.check({name: entry.shape for name, entry in source.entries().items()})
        return AlignedSource(source, element_moves(element, source.entries()))
    except ValueError as error:
        raise CheckpointError(f"the group element does not fit this model: {error}") from None
