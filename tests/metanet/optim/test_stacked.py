"""Stacked tensors: experts in one parameter move as if every one stood alone."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

from metanet import GroupElement, WeightSpec
from metanet.optim import LearnedOptimizer
from metanet.optim.pretrained import RULES
from metanet.optim.roles import roles_of, stacked_of
from tests.metanet.optim.networks import cnn, weights

EXPERTS, WIDTH, HIDDEN = 3, 5, 4
SPEC = WeightSpec.parse(
    f"""groups e: {EXPERTS}  m: {WIDTH}  f: {HIDDEN} under e
    embedding.weight 7 m
    router.weight e m
    experts.up e f m
    experts.up_bias e f
    experts.down e m f
    head.weight 7 m"""
)


class Experts(nn.Module):
    """Experts that are weighted by a softmax, their matrices stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) * 0.4)
        self.up_bias = nn.Parameter(torch.randn(EXPERTS, HIDDEN) * 0.1)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) * 0.4)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Return ``[batch, width]``."""
        hidden = torch.einsum("efm,bm->bef", self.up, x) + self.up_bias
        return torch.einsum("emf,bef,be->bm", self.down, hidden.relu(), gates)


class Mixture(nn.Module):
    """A residual block of experts between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, WIDTH)
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = Experts()
        self.head = nn.Linear(WIDTH, 7, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[batch, 7]``."""
        x = self.embedding(tokens)
        logits: Tensor = self.head(x + self.experts(x, self.router(x).softmax(1)))
        return logits


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        tokens = torch.randint(7, (12,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), (3 * tokens + 1) % 7).backward()
        optimizer.step()


def mixture() -> Mixture:
    torch.manual_seed(0)
    return Mixture().double()


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if not rule.needs_spec])
def test_a_stacked_tensor_moves_as_its_slices_would(rule: str) -> None:
    model = mixture()
    optimizer = LearnedOptimizer.from_pretrained(weights(rule), model, total_steps=5)
    assert "a stack of 3" in optimizer.describe()
    slices = {name: [s.clone().requires_grad_() for s in p.detach()] for name, p in _stacks(model)}
    others = [
        LearnedOptimizer([{"params": parts, "role": "hidden"}], total_steps=5, weights=weights(rule))
        for parts in slices.values()
    ]
    for step in range(3):
        for number, (name, parameter) in enumerate(_stacks(model)):
            generator = torch.Generator().manual_seed(10 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            for part, gradient in zip(slices[name], parameter.grad, strict=True):
                part.grad = gradient.clone()
        optimizer.step()
        for other in others:
            other.step()
    for name, parameter in _stacks(model):
        torch.testing.assert_close(parameter.detach(), torch.stack([s.detach() for s in slices[name]]))


def _stacks(model: Mixture) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if n.startswith("experts")]


def test_experts_are_stacks_by_module_and_by_spec_and_kernels_are_none() -> None:
    stacks = {"experts.up", "experts.up_bias", "experts.down"}
    assert stacked_of(mixture()) == stacks
    assert stacked_of(mixture(), SPEC) == stacks
    roles = roles_of(mixture())
    assert [roles[name] for name in ("experts.up", "experts.up_bias", "head.weight")] == [
        "hidden",
        "vector",
        "output",
    ]
    assert stacked_of(cnn()) == set()
    assert stacked_of(nn.Sequential(nn.Conv1d(3, 4, 2), nn.Bilinear(2, 3, 4))) == set()
    optimizer = LearnedOptimizer(
        mixture().named_parameters(), total_steps=3, weights=weights("structured"), spec=SPEC
    )
    assert {b.shape for b in optimizer.buckets() if b.stacked} == {(4, 5), (4,), (5, 4)}


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.linked])
def test_experts_and_their_units_are_linked_and_steps_commute(rule: str) -> None:
    model, moved = mixture(), mixture()
    element = GroupElement.random(SPEC, torch.Generator().manual_seed(1))
    moved.load_state_dict(element @ moved.state_dict())
    for network in (model, moved):
        optimizer = LearnedOptimizer.from_pretrained(weights(rule), network, total_steps=5, spec=SPEC)
        train(network, optimizer)
    assert "(a stack of 3)  [e, f, m]" in optimizer.describe()
    expected = element @ model.state_dict()
    for name, tensor in moved.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-8)


def test_states_of_stacks_resume_and_pickle() -> None:
    made = weights("mixing")
    model = mixture()
    optimizer = LearnedOptimizer.from_pretrained(made, model, total_steps=9, spec=SPEC)
    train(model, optimizer)
    other = mixture()
    other.load_state_dict(model.state_dict())
    again = LearnedOptimizer.from_pretrained(made, other, total_steps=9, spec=SPEC)
    again.load_state_dict(optimizer.state_dict())
    pickled = pickle.loads(pickle.dumps((model, optimizer)))
    for network, continued in ((model, optimizer), (other, again), pickled):
        train(network, continued)
    for mine, theirs, third in zip(*(m.parameters() for m in (model, other, pickled[0])), strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(mine, third)


def test_vectors_are_no_stacks() -> None:
    group = {"params": [torch.zeros(3, requires_grad=True)], "stacked": True}
    with pytest.raises(ValueError, match=r"a stacked tensor has two or more dimensions, found .* \[3\]"):
        LearnedOptimizer([group], total_steps=3, weights=weights("structured"))
