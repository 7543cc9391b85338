"""In-place code under automatic differentiation: what differentiates the update rules as they are.

Rules write their states, write results into memory that is kept (``out=``) and walk over the slots of a
tensor. Autograd refuses the second and third, and the first wherever what was overwritten is needed again.
Inside `Recording` the same code is recorded:

- ``out=`` is a result that is copied: a copy into a view is recorded;
- the parts of ``unbind`` are views that may be written;
- what is saved for the backward pass is a copy, which nobody overwrites;
- the root of zero has derivative zero, as the norm has: weights without any gradient yet have v = 0;
- what would lose a derivative without a word (a number read from a tensor, ``detach``, ``no_grad``) is an
  error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Function = Callable[..., Any]
ROOTS: tuple[Function, ...] = (torch.sqrt, Tensor.sqrt)
UNBIND: tuple[Function, ...] = (torch.unbind, Tensor.unbind)
CUTS: dict[Function, str] = {
    Tensor.item: "item",
    Tensor.tolist: "tolist",
    Tensor.__float__: "__float__",
    Tensor.__complex__: "__complex__",
    Tensor.numpy: "numpy",
    Tensor.detach: "detach",
    torch.detach: "detach",
    Tensor.detach_: "detach_",
    torch.detach_: "detach_",
    Tensor.data.__get__: "data",  # type: ignore[attr-defined]
    Tensor.data.__set__: "data",  # type: ignore[attr-defined]
    Tensor.as_strided: "as_strided",
    torch.as_strided: "as_strided",
}
"""What gives the values of a tensor and loses all or a part of their derivatives."""
COPIES: tuple[Function, ...] = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
"""What does so with tensors in lists, too."""


class Recording(TorchFunctionMode):
    """A context in which in-place code is recorded by autograd; see the module's docstring.

    Args:
        name: of what is recorded, for errors.

    Raises:
        ValueError: in the context, by what would lose a derivative.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._stack = ExitStack()

    def __enter__(self) -> Recording:
        """Begin to record."""
        self._stack.enter_context(torch.enable_grad())
        self._stack.enter_context(torch.autograd.graph.saved_tensors_hooks(torch.clone, _as_it_is))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop recording."""
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._stack.close()

    def __torch_function__(
        self,
        func: Function,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch in a form that autograd records."""
        named = dict(kwargs or {})
        if not torch.is_grad_enabled():
            raise ValueError(f"{self.name} cannot be differentiated: it turns gradients off; leave them on")
        if func in CUTS:
            self._refuse(CUTS[func], [*args, *named.values()])
        elif func in COPIES and not (func is torch.as_tensor and isinstance(args[0], Tensor)):
            self._refuse(func.__name__, tree_leaves([args[func is Tensor.new_tensor :], named]))
        if func in UNBIND:
            return _unbound(*args, **named)
        if func.__name__.endswith("_") and isinstance(args[0], Tensor):
            _ = args[0].grad_fn  # a view that was made before its base was written learns of it
        out: Tensor | None = named.pop("out", None)
        if func is Tensor.sqrt_:
            out = args[0]
        found = _root(args[0]) if func in ROOTS or func is Tensor.sqrt_ else func(*args, **named)
        return found if out is None else out.copy_(found)

    def _refuse(self, what: str, given: Sequence[object]) -> None:
        """Raise if one of some arguments is differentiated."""
        for tensor in given:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                raise ValueError(
                    f"{self.name} cannot be differentiated: it takes {what} of a tensor of shape "
                    f"{tuple(tensor.shape)} that depends on what is differentiated; keep it a tensor"
                )


def _root(squares: Tensor) -> Tensor:
    """Return square roots, whose derivative at zero is zero."""
    positive = squares > 0
    roots = torch.where(positive, squares, 1.0).sqrt()
    return torch.where(positive, roots, squares.detach().sqrt())


def _unbound(tensor: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    return tuple(tensor.select(dim, i) for i in range(tensor.shape[dim]))


def _as_it_is(saved: Tensor) -> Tensor:
    return saved
