"""Running a module in float64 whatever it casts to: proofs to 1e-9 cannot be had in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

WIDE = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64,
        torch.complex64: torch.complex128, torch.complex32: torch.complex128}  # fmt: skip
"""Types of lower precision, and what they become."""


def double(model: nn.Module) -> nn.Module:
    """Put a module's floating-point and complex tensors into float64 and complex128, in place."""

    def widened(tensor: Tensor) -> Tensor:
        return tensor.to(WIDE.get(tensor.dtype, tensor.dtype))

    wide: nn.Module = model._apply(widened)
    return wide


@contextmanager
def float64() -> Iterator[None]:
    """Keep in float64, and complex128, whatever the body casts to or makes in another precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widening():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)


class _Widening(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def widen(value: Any) -> Any:
            if isinstance(value, torch.dtype):
                return WIDE.get(value, value)
            narrow = isinstance(value, Tensor) and value.dtype in WIDE
            return value.to(WIDE[value.dtype]) if narrow and not func._schema.is_mutable else value

        args, kwargs = tree_map(widen, (tuple(args), dict(kwargs or {})))
        return SUBSTITUTES.get(str(func), func)(*args, **kwargs)


def _grouped_mm(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: Any = None
) -> Tensor:
    """Multiply group by group, which torch does in lower precisions only.

    ``[n, k] x [g, k, m]`` and ``[g, n, k] x [k, m]`` with the ends of the groups in ``offs``,
    ``[n, k] x [k, m]`` with groups along k, or ``[g, n, k] x [g, k, m]``.
    """
    if a.ndim == b.ndim == 3:
        product = torch.bmm(a, b)
    else:
        assert offs is not None
        ends = [int(end) for end in offs.tolist()]
        parts = list(zip([0, *ends[:-1]], ends, strict=True))
        if a.ndim == 2 and b.ndim == 3:
            rows = [a[start:end] @ b[i] for i, (start, end) in enumerate(parts)]
            product = torch.cat([*rows, a.new_zeros(a.shape[0] - ends[-1], b.shape[2])])
        elif a.ndim == 3:
            columns = [a[i] @ b[:, start:end] for i, (start, end) in enumerate(parts)]
            product = torch.cat([*columns, a.new_zeros(a.shape[1], b.shape[1] - ends[-1])], 1)
        else:
            product = torch.stack([a[:, start:end] @ b[start:end] for start, end in parts])
    return product if bias is None else product + bias


SUBSTITUTES: dict[str, Callable[..., Any]] = {"aten._grouped_mm.default": _grouped_mm}
"""Operations that exist in lower precision only, and what computes them in float64."""
