"""The contract of `torch.optim.Optimizer`, for every rule."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metanet.optim import LearnedOptimizer, MetaWeights, load_meta_weights
from metanet.optim.pretrained import RULES
from tests.metanet.optim.networks import Tied, cnn, mlp, mlp_spec, train, weights

every_rule = pytest.mark.parametrize("rule", list(RULES))


def optimizer_of(model: nn.Module, rule: str, **options: Any) -> LearnedOptimizer:
    spec = mlp_spec() if RULES[rule].needs_spec else None
    settings = {"total_steps": 20, "weights": weights(rule), "spec": spec, **options}
    return LearnedOptimizer(model.named_parameters(), **settings)


@every_rule
def test_a_resumed_training_is_the_same_bit_for_bit(rule: str) -> None:
    straight, resumed = mlp(), mlp()
    optimizer = optimizer_of(straight, rule)
    train(straight, optimizer, 5)
    buffer = io.BytesIO()
    torch.save([straight.state_dict(), optimizer.state_dict()], buffer)
    expected = train(straight, optimizer, 5, start=5)
    buffer.seek(0)
    model_state, optimizer_state = torch.load(buffer, weights_only=True)
    resumed.load_state_dict(model_state)
    before = copy.deepcopy(optimizer_state)
    again = optimizer_of(resumed, rule)
    again.load_state_dict(optimizer_state)
    assert str(before) == str(optimizer_state), "loading must not change the caller's dict"
    assert train(resumed, again, 5, start=5) == expected
    for mine, theirs in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_state_of_other_meta_weights_is_refused() -> None:
    model = mlp()
    optimizer = optimizer_of(model, "structured")
    train(model, optimizer, 1)
    other = LearnedOptimizer(model.named_parameters(), total_steps=20, weights=weights("structured", seed=9))
    with pytest.raises(ValueError, match="made with the meta-weights"):
        other.load_state_dict(optimizer.state_dict())


@every_rule
def test_closures_are_called_with_gradients_and_their_loss_is_returned(rule: str) -> None:
    plain, closed = mlp(), mlp()
    x, y = torch.randn(16, 5), torch.randint(0, 3, (16,))
    first, second = optimizer_of(plain, rule), optimizer_of(closed, rule)
    for _ in range(3):
        first.zero_grad()
        loss = nn.functional.cross_entropy(plain(x), y)
        loss.backward()
        assert first.step(loss=loss) is loss

        def closure() -> torch.Tensor:
            second.zero_grad()
            found = nn.functional.cross_entropy(closed(x), y)
            found.backward()
            return found

        returned = second.step(closure)
        assert isinstance(returned, torch.Tensor)
        assert returned.item() == loss.item()
    for mine, theirs in zip(plain.parameters(), closed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@every_rule
def test_what_has_no_gradient_stays(rule: str) -> None:
    model = mlp()
    frozen = model[3].weight  # type: ignore[index]
    frozen.requires_grad_(False)
    before = frozen.clone()
    optimizer = optimizer_of(model, rule)
    train(model, optimizer, 3)
    assert torch.equal(frozen, before)
    assert frozen not in optimizer.state or not optimizer.state[frozen].get("count")


def test_a_tensor_moves_alike_alone_and_stacked_with_others_of_its_shape() -> None:
    whole, parts = mlp().double(), mlp().double()
    one = optimizer_of(whole, "structured")
    groups = [{"params": [(name, p)]} for name, p in parts.named_parameters()]
    other = LearnedOptimizer(groups, total_steps=20, weights=weights("structured"))
    assert len(one.buckets()) < len(other.buckets())
    train(whole, one, 4)
    train(parts, other, 4)
    for mine, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_missing_gradient_skips_one_tensor_of_a_bucket() -> None:
    model = mlp()
    optimizer = optimizer_of(model, "structured")
    train(model, optimizer, 2)
    first, second = model[3].weight, model[5].weight  # type: ignore[index]
    before = second.clone()
    first.grad, second.grad = torch.ones_like(first), None
    optimizer.step()
    assert torch.equal(second, before)
    assert optimizer.state[first]["count"] == 3
    assert optimizer.state[second]["count"] == 2


@every_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_state_is_wide_whatever_the_parameters_are(rule: str, dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    optimizer = optimizer_of(model, rule)
    losses = train(model, optimizer, 3)
    assert all(loss == loss for loss in losses)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    state = optimizer.state[model[0].weight]  # type: ignore[index]
    assert {t.dtype for t in state.values() if isinstance(t, torch.Tensor)} == {wide}
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state = optimizer.state[model[0].weight]  # type: ignore[index]
    assert {t.dtype for t in state.values() if isinstance(t, torch.Tensor)} == {wide}


@every_rule
def test_gradients_that_are_not_finite_do_no_harm(rule: str) -> None:
    model = mlp()
    optimizer = optimizer_of(model, rule)
    train(model, optimizer, 2)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert all(loss == loss for loss in train(model, optimizer, 3))


def test_decay_pulls_matrices_alone_towards_zero() -> None:
    model = mlp().double()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = LearnedOptimizer(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim == 1]},
        ],
        total_steps=10,
        weights=MetaWeights.initial(RULES["structured"]()),
    )
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        if parameter.ndim > 1:
            assert bool(((parameter / old) < 1).all())
            assert bool(((parameter / old) > 0.99).all())
        else:
            assert torch.equal(parameter, old)


def test_tied_parameters_move_once(tmp_path: Path) -> None:
    weights("structured").save(tmp_path / "w.safetensors")
    model = Tied()
    optimizer = LearnedOptimizer.from_pretrained(str(tmp_path / "w.safetensors"), model, total_steps=5)
    assert [group["role"] for group in optimizer.param_groups] == ["output", "embedding", "vector"]
    tokens = torch.randint(0, 11, (8, 3))
    model(tokens).square().mean().backward()
    optimizer.step()
    assert model.head.weight is model.embedding.weight
    assert optimizer.state[model.embedding.weight]["count"] == 1
    assert "embedding" in optimizer.describe()
    assert "[11, 6]" in optimizer.describe()


def test_pickled_optimizers_and_compiled_models(tmp_path: Path) -> None:
    weights("mixing").save(tmp_path / "w.safetensors")
    model = mlp()
    wrapped: Any = torch.compile(model, backend="eager")
    optimizer = LearnedOptimizer.from_pretrained(
        str(tmp_path / "w.safetensors"), wrapped, total_steps=5, example_args=(torch.zeros(2, 5),)
    )
    assert "0.weight" in optimizer.describe()
    assert optimizer.links is not None
    train(model, optimizer, 2)
    copied = pickle.loads(pickle.dumps(optimizer))
    assert str(copied.state_dict()) == str(optimizer.state_dict())


def test_more_steps_than_promised_are_warned_about_once() -> None:
    model = mlp()
    optimizer = optimizer_of(model, "structured", total_steps=2)
    train(model, optimizer, 2)
    with pytest.warns(UserWarning, match="total_steps=2"):
        train(model, optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "positive integer, found 0"),
        ({"total_steps": None}, "positive integer, found None"),
        ({"total_steps": 5, "lr": -1.0}, "must not be negative"),
        ({"total_steps": 5, "weight_decay": -1.0}, "must not be negative"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedOptimizer(mlp().parameters(), weights=weights("structured"), **options)


def test_a_rule_on_the_graph_asks_for_a_spec() -> None:
    with pytest.raises(ValueError, match=r"'graph' works on the graph .* there is none"):
        LearnedOptimizer.from_pretrained(weights("graph"), mlp(), total_steps=5)
    optimizer = LearnedOptimizer.from_pretrained(
        weights("graph"), mlp(), total_steps=5, example_args=(torch.zeros(2, 5),)
    )
    assert "tensors linked over shared units" in optimizer.describe()


def test_wrong_parameters_and_roles_are_refused() -> None:
    made = weights("structured")
    with pytest.raises(TypeError, match="complex"):
        LearnedOptimizer(
            [torch.zeros(3, dtype=torch.complex64, requires_grad=True)], total_steps=5, weights=made
        )
    with pytest.raises(ValueError, match="unknown role 'nose'"):
        LearnedOptimizer([{"params": list(mlp().parameters()), "role": "nose"}], total_steps=5, weights=made)
    with pytest.raises(ValueError, match="no meta-weights 'nonsense'"):
        load_meta_weights("nonsense")
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = LearnedOptimizer(embedding.parameters(), total_steps=5, weights=made)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse gradients"):
        optimizer.step()


def test_damaged_meta_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    made = weights("structured")
    made.save(path)
    whole = path.read_bytes()
    for length in (0, 5, 200, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged or no file of meta-weights"):
            load_meta_weights(str(path))
    made.metas["adam"][0, 0] = float("nan")
    made.save(path)
    with pytest.raises(ValueError, match="adam hold values that are not finite"):
        load_meta_weights(str(path))
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_meta_weights_are_kept_whole(tmp_path: Path) -> None:
    made = weights("mixing")
    made.save(tmp_path / "w.safetensors")
    loaded = load_meta_weights(str(tmp_path / "w.safetensors"))
    assert loaded.hash == made.hash
    assert loaded.rule.name == "mixing"


def test_convolutions_and_buffers(tmp_path: Path) -> None:
    model = cnn()
    optimizer = optimizer_of(model, "mixing", total_steps=30)
    losses = train(model, optimizer, 3)
    assert all(loss == loss for loss in losses)
