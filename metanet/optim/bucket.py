"""Buckets: parameters of one shape, role and device that one call of the rule moves."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metanet.optim.pretrained import MetaWeights
from metanet.optim.roles import is_matrix

STACKED = 1 << 16
"""Tensors with fewer elements are stacked with others of their shape; larger ones gain nothing by it."""


def bucket_key(parameter: Tensor) -> tuple[Any, ...]:
    """Return what parameters of one bucket share; large tensors stand alone."""
    alone = id(parameter) if parameter.numel() > STACKED else 0
    return (matrix_shape(parameter), parameter.dtype, parameter.device, alone)


def matrix_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return ``(rows, columns)``, kernel offsets being columns, or ``(n,)``."""
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
    """

    def __init__(self, group: int, role: str, parameters: Sequence[Tensor]) -> None:
        self.group = group
        self.role = role
        self.parameters = list(parameters)
        self.shape = matrix_shape(self.parameters[0])
        self._state: dict[str, Tensor] | None = None

    def step(
        self, weights: MetaWeights, group: Mapping[str, Any], states: MutableMapping[Tensor, dict[str, Any]]
    ) -> None:
        """Move the parameters that have a gradient."""
        present = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if not present:
            return
        stacked = self._stacked(weights, states)
        counts = {int(states[self.parameters[i]]["count"]) for i in present}
        if len(present) == len(self.parameters) and len(counts) == 1:
            self._move(weights, group, states, stacked, present)
            return
        for i in present:
            self._move(weights, group, states, {k: s[:, i : i + 1] for k, s in stacked.items()}, [i])

    def _move(
        self,
        weights: MetaWeights,
        group: Mapping[str, Any],
        states: MutableMapping[Tensor, dict[str, Any]],
        state: Mapping[str, Tensor],
        members: Sequence[int],
    ) -> None:
        chosen = [self.parameters[i] for i in members]
        gradients = self._gather([self._gradient(p) for p in chosen])
        values = self._gather(chosen)
        whole = gradients.isfinite().flatten(1).all(1)
        gradients = gradients.nan_to_num(0.0, 0.0, 0.0) * whole.reshape(-1, *(1,) * len(self.shape))
        count = int(states[chosen[0]]["count"]) + 1
        step, total = int(group["step"]), int(group["total_steps"])
        metas = weights.on(values.device)
        moved = weights.rule.direction(
            metas, self.role, values, gradients, state, count, min((step + 0.5) / total, 1.0)
        )
        eta = weights.rule.rate(metas, self.role, min(step, total - 1), total)
        if group["weight_decay"]:
            moved = moved.add(values, alpha=group["weight_decay"])
        moved = moved.nan_to_num(0.0, 0.0, 0.0) * (eta * group["lr"]).reshape(-1, *(1,) * len(self.shape))
        for parameter, change in zip(chosen, moved, strict=True):
            change = change.reshape(parameter.shape)
            if parameter.dtype == change.dtype:
                parameter.sub_(change)
            else:
                parameter.copy_(parameter.to(change.dtype) - change)
            states[parameter]["count"] = count

    def _gather(self, tensors: Sequence[Tensor]) -> Tensor:
        rows = [t.detach().reshape(self.shape) for t in tensors]
        wide = torch.float64 if rows[0].dtype == torch.float64 else torch.float32
        stacked = rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)
        return stacked.to(wide)

    @staticmethod
    def _gradient(parameter: Tensor) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            raise TypeError("sparse gradients are not supported; use nn.Embedding(sparse=False)")
        return gradient

    def _stacked(
        self, weights: MetaWeights, states: MutableMapping[Tensor, dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Return the stacked state ``[slots, K, *shape]``, made of what the parameters have or of zeros."""
        if self._state is None:
            like = self._gather(self.parameters[:1])
            stacked = weights.rule.state((len(self.parameters), *self.shape), like)
            for i, parameter in enumerate(self.parameters):
                kept = states.get(parameter) or {}
                for name, tensor in stacked.items():
                    if name in kept:
                        tensor[:, i] = kept[name].to(tensor)
                    kept[name] = tensor[:, i]
                kept.setdefault("count", 0)
                states[parameter] = kept
            self._state = stacked
        return self._state
