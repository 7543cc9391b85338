"""The engine against slow oracles: naive terms, plain layers, numerical gradients, other chunks."""

import copy

import pytest
import torch
from torch import Tensor

from metanet.features import feature_layout
from metanet.nn import fused
from metanet.nn.linear import EquivariantLinear
from metanet.nn.stack import EquivariantStack
from metanet.spec import WeightSpec
from tests.metanet.nn.oracle import SPECS, naive_linear

EVERY = pytest.mark.parametrize("name", SPECS)


def random_blocks(spec: WeightSpec, widths: list[int], batch: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [[spec.sizes[g] for g in block.groups] for block in feature_layout(spec)]
    return [
        torch.randn(batch, *shape, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape, width in zip(shapes, widths, strict=True)
    ]


def random_stack(spec: WeightSpec, *, final: bool, layers: int = 3) -> EquivariantStack:
    """Return a stack in which every block has widths of its own, with biases that matter."""
    torch.manual_seed(0)
    layout = feature_layout(spec)
    widths = [[1 + (i + row) % 3 for i in range(len(layout))] for row in range(layers + 1)]
    stack = EquivariantStack(layout, spec.sizes, widths, final=final).double()
    for layer in stack.layers:
        assert isinstance(layer, EquivariantLinear)
        torch.nn.init.normal_(layer.bias)
    return stack


def results(
    stack: EquivariantStack, blocks: list[Tensor], *, means: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs, and gradients of a fixed functional of them for inputs and parameters."""
    outputs = stack(blocks, means=means)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) for x in outputs]
    loss = sum((w * x).sum() for w, x in zip(weights, outputs, strict=True))
    assert isinstance(loss, Tensor)
    return outputs, list(torch.autograd.grad(loss, [*blocks, *stack.parameters()]))


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance)


@EVERY
def test_layer_is_the_sum_of_its_terms(name: str) -> None:
    spec = SPECS[name]
    layer = random_stack(spec, final=False, layers=1).layers[0]
    assert isinstance(layer, EquivariantLinear)
    blocks = random_blocks(spec, list(layer.in_widths), 2)
    assert_same(layer(blocks), naive_linear(layer, blocks))


@EVERY
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("means", [True, False])
def test_fused_is_plain(name: str, final: bool, means: bool) -> None:
    spec = SPECS[name]
    stack = random_stack(spec, final=final)
    blocks = random_blocks(spec, list(stack.widths[0]), 3)
    assert stack.can_fuse(blocks[0])
    fast = results(stack, blocks, means=means)
    stack.fused = False
    slow = results(stack, blocks, means=means)
    assert_same(fast[0], slow[0])
    assert_same(fast[1], slow[1])


@EVERY
@pytest.mark.parametrize("fast", [True, False], ids=["fused", "plain"])
def test_chunked_is_unchunked(name: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS[name]
    stack = random_stack(spec, final=True)
    stack.fused = fast
    blocks = random_blocks(spec, list(stack.widths[0]), 5)
    whole = results(stack, blocks)
    monkeypatch.setattr(fused, "CHUNK_BYTES", 1)
    single = results(stack, blocks)
    assert_same(single[0], whole[0])
    assert_same(single[1], whole[1])
    with torch.no_grad():
        assert_same(stack(blocks), whole[0])


@pytest.mark.parametrize("name", ["siren", "rnn", "nested"])
def test_gradients_are_derivatives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CHUNK_BYTES", 1)
    spec = SPECS[name]
    stack = random_stack(spec, final=True, layers=2)
    blocks = random_blocks(spec, list(stack.widths[0]), 2)
    parameters = dict(stack.named_parameters())

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(parameters, tensors[len(blocks) :], strict=True))
        given = (list(tensors[: len(blocks)]),)
        return tuple(torch.func.functional_call(stack, values, given, {"means": True}))

    assert torch.autograd.gradcheck(run, (*blocks, *parameters.values()), fast_mode=True)


def test_backward_twice_through_a_retained_graph() -> None:
    stack = random_stack(SPECS["siren"], final=True)
    blocks = random_blocks(SPECS["siren"], list(stack.widths[0]), 2)
    loss = torch.stack([x.square().sum() for x in stack(blocks)]).sum()
    first = torch.autograd.grad(loss, list(stack.parameters()), retain_graph=True)
    assert_same(list(torch.autograd.grad(loss, list(stack.parameters()))), list(first), 0.0)


def test_second_derivatives_are_refused_by_the_fused_route_only() -> None:
    stack = random_stack(SPECS["siren"], final=True)
    blocks = random_blocks(SPECS["siren"], list(stack.widths[0]), 2)

    def penalty() -> Tensor:
        loss = torch.stack([x.square().sum() for x in stack(blocks)]).sum()
        (gradient,) = torch.autograd.grad(loss, blocks[:1], create_graph=True)
        return gradient.square().sum()

    with pytest.raises(RuntimeError, match="once_differentiable"):
        penalty().backward()
    stack.fused = False
    penalty().backward()
    assert blocks[1].grad is not None
    assert blocks[1].grad.abs().sum() > 0


def test_published_initialisation_of_unf() -> None:
    """Every output is a sum over terms and input channels: N(0, 1 / (terms · channels)) keeps variance."""
    spec = SPECS["rnn"]
    layout = feature_layout(spec)
    torch.manual_seed(0)
    layer = EquivariantLinear(layout, spec.sizes, [30] * len(layout), [40] * len(layout), "unf")
    basis = layer.plan.basis
    for signature, weight in zip(basis.signatures, layer.weights, strict=True):
        for writing, columns in zip(signature.writings, weight.detach().split(40, 1), strict=True):
            terms = sum(basis.num_terms_between(source, writing.block) for source in range(len(layout)))
            assert abs(float(columns.std()) * (30 * terms) ** 0.5 - 1) < 0.1


def test_inputs_are_not_written_to() -> None:
    stack = random_stack(SPECS["rnn"], final=True)
    blocks = random_blocks(SPECS["rnn"], list(stack.widths[0]), 2)
    before = [block.detach().clone() for block in blocks]
    outputs = stack(blocks)
    upstream = [torch.randn_like(x) for x in outputs]
    kept = [x.clone() for x in upstream]
    torch.autograd.grad(outputs, blocks, upstream)
    assert_same(upstream, kept, 0.0)
    assert_same([block.detach() for block in blocks], before, 0.0)


def test_autocast_takes_the_plain_route() -> None:
    stack = random_stack(SPECS["siren"], final=False).float()
    blocks = [block.float() for block in random_blocks(SPECS["siren"], list(stack.widths[0]), 2)]
    exact = stack(blocks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not stack.can_fuse(blocks[0])
        rough = stack(blocks)
    for x, y in zip(rough, exact, strict=True):
        assert (x.float() - y).abs().max() < 0.1 * y.abs().max()


def test_an_empty_batch_stays_empty() -> None:
    stack = random_stack(SPECS["siren"], final=True)
    blocks = random_blocks(SPECS["siren"], list(stack.widths[0]), 0)
    assert [x.shape[0] for x in stack(blocks)] == [0] * len(blocks)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in results(stack, blocks)[1])


@pytest.mark.parametrize("init", ["balanced", "unf", "dws"])
def test_initial_outputs_are_of_order_one(init: str) -> None:
    """Inputs that do not vanish in the mean; He-like rules divided by the number of tensors shrink more."""
    spec = SPECS["siren"]
    layout = feature_layout(spec)
    torch.manual_seed(0)
    widths = [[32] * len(layout)] * 2
    layer = EquivariantStack(layout, spec.sizes, widths, init=init, final=False)  # type: ignore[arg-type]
    shapes = [[spec.sizes[g] for g in block.groups] for block in layout]
    inputs = [torch.randn(64, *[1] * len(shape), 32).expand(64, *shape, 32) for shape in shapes]
    spread = torch.stack([x.std() for x in layer(inputs)])
    assert spread.min() > 0.3
    assert spread.max() < 3


@pytest.mark.gpu
@EVERY
def test_gpu_is_cpu(name: str) -> None:
    stack = random_stack(SPECS[name], final=True)
    blocks = random_blocks(SPECS[name], list(stack.widths[0]), 3)
    here = results(stack, blocks)
    there = results(copy.deepcopy(stack).cuda(), [b.detach().cuda().requires_grad_() for b in blocks])
    for x, y in zip(here, there, strict=True):
        assert_same([t.cpu() for t in y], x, 1e-9)


def test_copies_and_seeds() -> None:
    first, second = random_stack(SPECS["conv"], final=True), random_stack(SPECS["conv"], final=True)
    blocks = random_blocks(SPECS["conv"], list(first.widths[0]), 2)
    assert_same(first(blocks), second(blocks), 0.0)
    assert_same(copy.deepcopy(first)(blocks), first(blocks), 0.0)


def test_options_are_checked() -> None:
    spec = SPECS["mlp"]
    layout = feature_layout(spec)
    widths = [[2] * len(layout)] * 3
    for options, message in [
        ({"activation": "step"}, "unknown activation 'step'"),
        ({"norm": "batch"}, "unknown norm 'batch'"),
        ({"dropout": 1.0}, "probability below 1"),
        ({"init": "zeros"}, "unknown init 'zeros'"),
    ]:
        with pytest.raises(ValueError, match=message):
            EquivariantStack(layout, spec.sizes, widths, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_layers"):
        EquivariantStack(layout, spec.sizes, widths[:1])
