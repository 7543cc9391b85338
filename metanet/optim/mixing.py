"""The equivariant last layer of a network over parameters: rows, columns, tensors and links between them.

Every linear map that commutes with permutations of rows and of columns is made of the value itself and of
means over rows, columns and the tensor. The means of the hidden units are taken chunk by chunk and the linear
maps follow them, so nothing of the size of (units × parameters) is ever whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from metanet.optim.chunks import CHUNK
from metanet.optim.links import SIDES, Links, Side, sides_of
from metanet.optim.rule import Item, Meta, Metas


def mixing_metas(hidden: int, scale: float) -> dict[str, Meta]:
    """Return the meta-parameters of all mixed terms: zeros, so that training starts without them."""
    names = ("row", "column", "tensor", *(f"send_{side}" for side in SIDES))
    found = {name: Meta((0.0,) * hidden, scale) for name in names}
    return {**found, "receive": Meta((1.0,) * len(SIDES), 0.2)}


@dataclass(slots=True)
class Passed:
    """What one pass of the network over a bucket leaves.

    Args:
        moved: ``[K, *shape]``: D + rms(D) w·h, to which the mixed terms are still to be added.
        size: ``[K]``, rms(D).
        terms: side -> ``[K, length]``: mixed terms of rows, columns or single values.
        messages: side -> ``[K, length]``: what the units of the side are sent.
    """

    moved: Tensor
    size: Tensor
    terms: dict[Side, Tensor] = field(default_factory=dict)
    messages: dict[Side, Tensor] = field(default_factory=dict)

    def finish(self) -> Tensor:
        """Return the direction, with all mixed terms."""
        for side, term in self.terms.items():
            scaled = term * self.size[:, None]
            self.moved += scaled if side == "vector" else scaled.unsqueeze(2 if side == "row" else 1)
        return self.moved


def exchange(metas: Metas, items: Sequence[Item], passed: Sequence[Passed], links: Links) -> None:
    """Add the messages between tensors that share units to the terms of their sides."""
    known = {
        item.entry: result
        for item, result in zip(items, passed, strict=True)
        if item.entry is not None and links.knows(item.entry)
    }
    pools = links.gather(
        {
            item.entry: {side: _whole(item, message) for side, message in known[item.entry].messages.items()}
            for item in items
            if item.entry in known
        }
    )
    for entry, result in known.items():
        for side, term in result.terms.items():
            back = links.scatter(entry, side, pools)
            if back is not None:
                receive = metas["receive"][:, SIDES.index(side), None].to(back.device)
                result.terms[side] = term + (back * receive).reshape(term.shape)


def _whole(item: Item, message: Tensor) -> Tensor:
    """Return the message of a side: the slices of a stacked tensor send one together."""
    return message.reshape(1, -1) if item.stacked else message


class UnitMeans:
    """Means of the hidden units over rows, columns and the tensor, and the linear maps that follow them."""

    def __init__(self, item: Item, hidden: int, links: Links | None) -> None:
        self.shape = item.values.shape
        self.sides = sides_of(len(self.shape) - 1)
        self.linked = links is not None and links.knows(item.entry)
        self.total = item.values.new_zeros((len(item.values), hidden))
        self.rows: list[Tensor] = []
        self.columns = item.values.new_zeros((len(item.values), hidden, self.shape[-1]))
        self.sent: list[Tensor] = []

    def add(self, units: Tensor, part: slice, metas: Metas) -> None:
        """Take in the ``[K, hidden, width]`` units of a chunk of whole rows, or of a vector."""
        if len(self.shape) == 2:
            self.total += units.sum(2)
            if self.linked:
                self.sent.append((metas["send_vector"][:, None] @ units)[:, 0])
            return
        grid = units.unflatten(2, (-1, self.shape[2]))
        self.rows.append(grid.mean(3))
        self.columns += grid.sum(2)

    def finish(self, metas: Metas) -> tuple[dict[Side, Tensor], dict[Side, Tensor]]:
        """Return the mixed terms and the messages of every side."""

        def through(name: str, means: Tensor) -> Tensor:
            return (metas[name][:, None] @ means)[:, 0]

        if len(self.shape) == 2:
            mean = (metas["tensor"] * self.total).sum(1, keepdim=True) / self.shape[1]
            messages: dict[Side, Tensor] = {"vector": torch.cat(self.sent, 1)} if self.linked else {}
            return {"vector": mean.expand(self.shape)}, messages
        rows, columns = torch.cat(self.rows, 2), self.columns / self.shape[1]
        terms: dict[Side, Tensor] = {
            "row": through("row", rows) + (metas["tensor"] * rows.mean(2)).sum(1, keepdim=True),
            "column": through("column", columns),
        }
        if not self.linked:
            return terms, {}
        return terms, {"row": through("send_row", rows), "column": through("send_column", columns)}


def chunk_width(values: Tensor) -> int:
    """Return the number of values of one tensor that a chunk has: whole rows of matrices."""
    width = max(CHUNK // len(values), 1)
    if values.ndim == 3:
        width = max(width // values.shape[2], 1) * values.shape[2]
    return min(width, values[0].numel())


def whole_rows(values: Tensor) -> Iterator[slice]:
    """Yield the chunks of the flattened values of a bucket."""
    width, count = chunk_width(values), values[0].numel()
    for start in range(0, count, width):
        yield slice(start, min(start + width, count))


def rms(flat: Tensor) -> Tensor:
    """Return the ``[K]`` root mean squares of ``[K, n]``."""
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norms / sqrt(flat.shape[1])
