"""In-place code is recorded as its out-of-place twin would be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metanet.optim.meta.recording import Recording


def in_place(x: Tensor, weight: Tensor) -> Tensor:
    """Write into memory that is used twice, and into the slots of a tensor."""
    slots, memory = x.new_zeros(2, len(x)), x.new_zeros(len(x))
    for slot, by in zip(slots, (2.0, 3.0), strict=True):
        slot.add_(torch.mul(x, weight, out=memory), alpha=by).mul_(x)
        memory.sqrt_().mul_(weight)
        slot.add_(memory)
    return slots.sum()


def twin(x: Tensor, weight: Tensor) -> Tensor:
    product = x * weight
    return sum((by * product * x + product.sqrt() * weight).sum() for by in (2.0, 3.0))  # type: ignore[return-value]


def test_in_place_code_has_the_gradient_of_its_twin() -> None:
    x = torch.rand(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    weight = (x.detach() + 1).requires_grad_()
    expected = torch.autograd.grad(twin(x, weight), (x, weight))
    with Recording("the code"):
        value = in_place(x, weight)
    torch.testing.assert_close(value, twin(x, weight))
    for found, wanted in zip(torch.autograd.grad(value, (x, weight)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_root_of_zero_has_derivative_zero() -> None:
    x = torch.tensor([0.0, 4.0, -1.0, torch.inf], requires_grad=True)
    with Recording("the code"):
        roots = torch.sqrt(x)
    torch.testing.assert_close(roots, x.sqrt(), equal_nan=True)
    (found,) = torch.autograd.grad(roots[:2].sum(), x)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.25, 0.0, 0.0]))


def overwrite(value: Tensor) -> None:
    """Give a tensor the data of another one."""
    torch.zeros(()).data = value


@pytest.mark.parametrize(
    "cut",
    [
        Tensor.item,
        Tensor.tolist,
        Tensor.detach,
        torch.detach,
        float,
        complex,
        lambda tensor: tensor.data,
        overwrite,
        lambda tensor: torch.tensor([tensor, tensor]),
        lambda tensor: torch.as_tensor([[tensor], [1.0]]),
        lambda tensor: tensor.new_tensor([tensor]),
    ],
)
def test_what_loses_a_derivative_is_refused(cut: object) -> None:
    constant, differentiated = torch.ones(()), torch.ones((), requires_grad=True)
    assert callable(cut)
    with Recording("the code"):
        cut(constant)
        with pytest.raises(ValueError, match=r"the code cannot be differentiated: it takes \w+ of a tensor"):
            cut(differentiated)


def test_what_is_new_beside_a_tensor_is_no_loss() -> None:
    x = torch.ones(2, requires_grad=True)
    with Recording("the code"):
        assert torch.as_tensor(x) is x
        (x * x.new_tensor([2.0, 3.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2, 3]


def test_gradients_stay_on() -> None:
    x = torch.ones(2, requires_grad=True)
    with Recording("the code"), pytest.raises(ValueError, match=r"the code cannot .* turns gradients off"):
        torch.no_grad()(torch.square)(x)
    with torch.no_grad():
        assert torch.square(x).sum().item() == 2  # all is as before behind the context
