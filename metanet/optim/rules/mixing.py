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

from metanet.optim.buffers import Buffers
from metanet.optim.chunks import CHUNK, Part
from metanet.optim.rule import Item, Meta, Metas
from metanet.optim.rules.links import SIDES, Links, Side


def mixing_metas(hidden: int, scale: float) -> dict[str, Meta]:
    """Return the meta-parameters of all mixed terms: zeros, so that training starts without them."""
    names = ("row", "column", "tensor", *(f"send_{side}" for side in SIDES))
    found = {name: Meta((0.0,) * hidden, scale) for name in names}
    return {**found, "receive": Meta((1.0,) * len(SIDES), 0.2)}


@dataclass(slots=True)
class Passed:
    """What one pass of the network over a bucket leaves for when all of it, and of others, is known.

    Args:
        size: ``[K]``, what the terms are multiplied with: rms(D).
        terms: side -> ``[K, length]``: mixed terms of rows, columns or single values.
        messages: side -> ``[K, length]``: what the units of the side are sent.
    """

    size: Tensor
    terms: dict[Side, Tensor] = field(default_factory=dict)
    messages: dict[Side, Tensor] = field(default_factory=dict)

    def part(self, at: Part, values: Tensor, buffers: Buffers | None = None) -> Tensor:
        """Return the mixed terms of a part of the ``[K, *shape]`` values, in whole rows of matrices.

        Args:
            at: the part.
            values: of the bucket.
            buffers: memory for the result, which the next call overwrites; that of a pass, which is over.
        """
        some, part = at
        size = self.size[some, None]
        if "vector" in self.terms:
            return self.terms["vector"][some, part] * size
        length = values.shape[2]
        rows = self.terms["row"][some, part.start // length : part.stop // length] * size
        columns = self.terms["column"][some] * size
        shape = (len(rows), rows.shape[1], length)
        found = None if buffers is None else buffers.take("inputs", shape, values)
        return torch.add(rows[:, :, None], columns[:, None], out=found).flatten(1)


def exchange(metas: Metas, items: Sequence[Item], passed: Sequence[Passed], links: Links) -> None:
    """Add the messages between tensors that share units to the terms of their sides."""
    sent = [
        (item, result, side) for item, result in zip(items, passed, strict=True) for side in result.messages
    ]
    if not sent:
        return
    messages = [_whole(item, result.messages[side]) for item, result, side in sent]
    route = links.route(tuple((tuple(item.named), side) for item, _, side in sent), messages[0])
    receive = metas["receive"].to(messages[0].device)
    for (_, result, side), back in zip(sent, route.scatter(route.gather(messages)), strict=True):
        term, at = result.terms[side], SIDES.index(side)
        result.terms[side] = torch.addcmul(term, back.reshape(-1, term.shape[1]), receive[:, at, None])


def _whole(item: Item, message: Tensor) -> Tensor:
    """Return the message of a side: those of one network send one together, particles each."""
    return message.reshape(1, -1) if item.stacked or item.entries else message


class UnitMeans:
    """Means over rows, columns and the tensor of linear maps of the hidden units.

    The maps come first and the means follow, which is the same and leaves fewer of them: of a matrix those of
    the terms of its rows, of its tensor, of the messages of its rows (if it is linked), of the terms of its
    columns and of their messages; of a vector those of its tensor and of its messages.

    Args:
        item: the bucket.
        links: which units tensors share.
    """

    def __init__(self, item: Item, links: Links | None) -> None:
        values, self.shape = item.values, item.values.shape
        self.linked = links is not None and any(links.knows(entry) for entry in item.named)
        count, first = self.shape[0], self.shape[1]
        self.of_rows = 2 + self.linked
        if len(self.shape) == 2:
            self.total = values.new_zeros(count)
            self.sent = values.new_empty((count, first if self.linked else 0))
        else:
            self.rows = values.new_empty((count, self.of_rows, first))
            self.columns = values.new_zeros((count, 1 + self.linked, self.shape[2]))

    def maps(self, metas: Metas) -> Tensor:
        """Return the ``[P, maps, hidden]`` weights of the maps, in order."""
        if len(self.shape) == 2:
            names = ["tensor", "send_vector"][: 1 + self.linked]
        else:
            names = ["row", "tensor", "send_row"][: self.of_rows] + ["column", "send_column"][
                : 1 + self.linked
            ]
        return torch.stack([metas[name] for name in names], 1)

    def add(self, found: Tensor, at: Part) -> None:
        """Take in the ``[k, maps, width]`` maps of some tensors, in whole rows of matrices."""
        some, part = at
        if len(self.shape) == 2:
            self.total[some].add_(found[:, 0].sum(1))
            if self.linked:
                self.sent[some, part] = found[:, 1]
            return
        grid = found.unflatten(2, (-1, self.shape[2]))
        inside = slice(part.start // self.shape[2], part.stop // self.shape[2])
        self.rows[some, :, inside] = grid[:, : self.of_rows].sum(3)
        self.columns[some].add_(grid[:, self.of_rows :].sum(2))

    def finish(self) -> tuple[dict[Side, Tensor], dict[Side, Tensor]]:
        """Return the mixed terms and the messages of every side."""
        if len(self.shape) == 2:
            mean = self.total[:, None] / self.shape[1]
            messages: dict[Side, Tensor] = {"vector": self.sent} if self.linked else {}
            return {"vector": mean.expand(self.shape)}, messages
        rows, columns = self.rows / self.shape[2], self.columns / self.shape[1]
        terms: dict[Side, Tensor] = {
            "row": rows[:, 0] + rows[:, 1].mean(1, keepdim=True),
            "column": columns[:, 0],
        }
        if not self.linked:
            return terms, {}
        return terms, {"row": rows[:, 2], "column": columns[:, 1]}


def of_some(meta: Tensor, some: slice) -> Tensor:
    """Return the meta-parameters of some of the tensors."""
    return meta if len(meta) == 1 else meta[some]


def whole_rows(values: Tensor) -> Iterator[slice]:
    """Yield the chunks of the flattened values of a bucket: whole rows of matrices."""
    width, count = max(CHUNK // len(values), 1), values[0].numel()
    if values.ndim == 3:
        width = max(width // values.shape[2], 1) * values.shape[2]
    for start in range(0, count, width):
        yield slice(start, min(start + width, count))


def rms(flat: Tensor) -> Tensor:
    """Return the ``[K]`` root mean squares of ``[K, n]``."""
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norms / sqrt(flat.shape[1])
