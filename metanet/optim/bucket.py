"""Buckets: parameters of one shape, role and device that one call of the rule moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from metanet.optim.buffers import Buffers
from metanet.optim.chunks import Part
from metanet.optim.roles import is_matrix
from metanet.optim.rule import Item, UpdateRule

STACKED = 1 << 16
"""Tensors with fewer elements are stacked with others of their shape; larger ones gain nothing by it."""
TOGETHER = 1 << 20
"""Elements of tensors that are stacked: what a step holds of them is bounded."""


def bucket_key(parameter: Tensor, *, stacked: bool = False) -> tuple[Any, ...]:
    """Return what parameters of one bucket share; large tensors stand alone."""
    alone = id(parameter) if parameter.numel() > STACKED else 0
    depth = parameter.shape[0] if stacked else 0
    shape = matrix_shape(parameter, stacked=stacked)
    return (depth, shape, parameter.dtype, parameter.device, alone)


def matrix_shape(parameter: Tensor, *, stacked: bool = False) -> tuple[int, ...]:
    """Return ``(rows, columns)``, kernel offsets being columns, or ``(n,)``; of a slice if it is stacked."""
    parameter = parameter[0] if stacked else parameter
    if is_matrix(parameter):
        return (parameter.shape[0], parameter[0].numel())
    return (parameter.numel(),)


def check_parameter(parameter: Tensor) -> None:
    """Raise for parameters that the rules do not understand.

    Raises:
        TypeError: sparse, complex, or sharded over devices.
    """
    if type(parameter).__name__ == "DTensor" or hasattr(parameter, "placements"):
        raise TypeError(
            "this parameter is sharded over devices (DTensor, FSDP2); the rule needs whole matrices. Use "
            "distributed data parallel, or keep these parameters in another optimizer"
        )
    if parameter.is_complex() or parameter.is_sparse or not parameter.is_floating_point():
        raise TypeError(f"expected dense real floating-point parameters, found {parameter.dtype}")


class Bucket:
    """Parameters that are moved at once.

    Their state tensors are slices of one stacked tensor, so that nothing is copied between steps.

    Args:
        group: index of their parameter group.
        role: see `metanet.optim.rule.ROLES`.
        parameters: of one shape.
        entries: names of the parameters in the spec, if they share units with others.
        stacked: the first dimension of the parameters counts tensors, which the rule sees one by one.
    """

    def __init__(
        self,
        group: int,
        role: str,
        parameters: Sequence[Tensor],
        entries: Sequence[str] = (),
        *,
        stacked: bool = False,
    ) -> None:
        self.entries = tuple(entries)
        self.group = group
        self.role = role
        self.stacked = stacked
        self.parameters = list(parameters)
        self.shape = matrix_shape(self.parameters[0], stacked=stacked)
        self.depth = self.parameters[0].shape[0] if stacked else 1
        self._state: dict[str, Tensor] | None = None

    def split(self) -> list[Bucket]:
        """Return buckets of at most `TOGETHER` elements, or of one parameter."""
        count = max(TOGETHER // max(self.parameters[0].numel(), 1), 1)
        return [
            Bucket(
                self.group,
                self.role,
                self.parameters[start : start + count],
                self.entries[start : start + count],
                stacked=self.stacked,
            )
            for start in range(0, len(self.parameters), count)
        ]

    def items(
        self,
        rule: UpdateRule,
        states: MutableMapping[Tensor, dict[str, Any]],
        *,
        finite: bool = False,
        buffers: Buffers | None = None,
    ) -> Iterator[tuple[list[Tensor], Item]]:
        """Yield what the rule sees of the parameters that have a gradient, all at once where possible.

        A gradient that is not finite is taken for zero, so that one bad step cannot spoil the state.

        Args:
            rule: the update rule.
            states: of the optimizer, by parameter.
            finite: all gradients are known to be finite.
            buffers: memory for stacked values and gradients, which the next item takes again.
        """
        buffers = Buffers() if buffers is None else buffers
        present = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if not present:
            return
        stacked = self._stacked(rule, states)
        counts = {int(states[self.parameters[i]]["count"]) for i in present}
        if len(present) == len(self.parameters) and len(counts) == 1:
            yield self._item(states, stacked, present, finite=finite, buffers=buffers)
            return
        for i in present:
            alone = {name: s[:, self._slices(i)] for name, s in stacked.items()}
            yield self._item(states, alone, [i], finite=finite, buffers=buffers)

    def _item(
        self,
        states: MutableMapping[Tensor, dict[str, Any]],
        state: Mapping[str, Tensor],
        members: Sequence[int],
        *,
        finite: bool,
        buffers: Buffers,
    ) -> tuple[list[Tensor], Item]:
        chosen = [self.parameters[i] for i in members]
        gradients = self._gather([gradient_of(p) for p in chosen], "gradients", buffers)
        if not finite:
            norms = torch.linalg.vector_norm(gradients.flatten(1), dim=1)
            whole = norms.isfinite().reshape(-1, *(1,) * len(self.shape))
            gradients = gradients.where(whole, 0.0)
        count = int(states[chosen[0]]["count"]) + 1
        for parameter in chosen:
            states[parameter]["count"] = count
        values = self._gather(chosen, "values", buffers)
        entries = tuple(self.entries[i] for i in members if self.entries)
        entry, entries = (entries[0], ()) if len(entries) == 1 else (None, entries)
        return chosen, Item(self.role, values, gradients, state, count, entry, self.stacked, entries)

    def _slices(self, i: int) -> slice:
        """Return where a parameter stands among the tensors of the bucket."""
        return slice(i * self.depth, (i + 1) * self.depth)

    def _gather(self, tensors: Sequence[Tensor], name: str, buffers: Buffers) -> Tensor:
        """Return tensors of one type as ``[K, *shape]``; one that is wide enough as it is."""
        rows = [t.detach().reshape(self.depth, *self.shape) for t in tensors]
        wide = torch.promote_types(rows[0].dtype, torch.float32)
        if len(rows) == 1:
            return rows[0].to(wide)
        shape = (len(rows) * self.depth, *self.shape)
        return torch.cat(rows, out=buffers.take(name, shape, rows[0].new_empty(0, dtype=wide)))

    def _stacked(self, rule: UpdateRule, states: MutableMapping[Tensor, dict[str, Any]]) -> dict[str, Tensor]:
        """Return the stacked state ``[slots, K, *shape]``, made of what the parameters have or of zeros."""
        if self._state is None:
            like = self._gather(self.parameters[:1], "values", Buffers())
            stacked = rule.state((len(self.parameters) * self.depth, *self.shape), like)
            for i, parameter in enumerate(self.parameters):
                kept = states.get(parameter) or {}
                for name, tensor in stacked.items():
                    own = tensor[:, self._slices(i)] if self.stacked else tensor[:, i]
                    if name in kept:
                        own.copy_(kept[name])
                    kept[name] = own
                kept.setdefault("count", 0)
                states[parameter] = kept
            self._state = stacked
        return self._state


class BucketMover:
    """Moves a bucket part by part, as a rule hands out the parts of its direction.

    Parameters of a narrow type are moved in a wide copy and rounded once, in `finish`. A part whose direction
    is not finite moves by the rule's fallback.

    Args:
        rule: the update rule.
        parameters: of the bucket.
        item: what the rule sees of them.
        rate: step size.
        decay: decoupled weight decay.
    """

    def __init__(
        self, rule: UpdateRule, parameters: Sequence[Tensor], item: Item, rate: float, decay: float
    ) -> None:
        self.rule, self.parameters, self.item = rule, parameters, item
        self.rate, self.decay = rate, decay
        self.values = item.values.flatten(1)

    def __call__(self, at: Part, direction: Tensor, *, again: bool = False) -> None:
        """Move a part: ``p <- p - rate * (direction + decay * p)``, the decay once."""
        values = self.values[at]
        if not isfinite(torch.linalg.vector_norm(direction).item()):
            if again:
                return
            direction = self.rule.fallback(self.item).flatten(1)[at]
        if self.decay and not again:
            values.mul_(1 - self.rate * self.decay)
        values.sub_(direction, alpha=self.rate)

    def finish(self) -> None:
        """Write the values back into parameters that do not share their memory."""
        depth = len(self.values) // len(self.parameters)
        for parameter, moved in zip(self.parameters, self.values.split(depth), strict=True):
            if parameter.data_ptr() != moved.data_ptr():
                parameter.copy_(moved.reshape(parameter.shape))


def gradient_of(parameter: Tensor) -> Tensor:
    """Return the dense gradient of a parameter that has one."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        raise TypeError("sparse gradients are not supported; use nn.Embedding(sparse=False)")
    return gradient
