"""Learned optimizers in the loops that people train with: Lightning, accumulation, several processes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metanet.optim import LearnedOptimizer, Nowcaster
from metanet.spec import WeightSpec
from tests.metanet.optim import two_processes
from tests.metanet.optim.contract import OPTIMIZERS, optimizer_for
from tests.metanet.optim.networks import cnn, mlp, train, weights


class Module(lightning.LightningModule):
    """An MLP that is trained by automatic optimisation."""

    def __init__(self, name: str, *, example: bool) -> None:
        super().__init__()
        self.network = mlp()
        self.name = name
        self.seen: list[float] = []
        if example:
            self.example_input_array = torch.zeros(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, 3]`` logits."""
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.seen.append(loss.item())
        return loss

    def configure_optimizers(self) -> Optimizer:
        """Return the learned optimizer, which derives the spec from the example."""
        return optimizer_for(self.name, self, None)


def fit(module: Module, checkpoint: Path | None = None, **options: Any) -> lightning.Trainer:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 5, generator=generator)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long()), batch_size=4
    )
    settings: dict[str, Any] = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False, **settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, about workers and deprecated names
        trainer.fit(module, loader, ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lightning_trains_automatically_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    straight, begun, resumed = (Module(name, example=True) for _ in range(3))
    fit(straight, max_epochs=2)
    fit(begun).save_checkpoint(tmp_path / "begun.ckpt")
    trainer = fit(resumed, tmp_path / "begun.ckpt", max_epochs=2)
    assert trainer.global_step == 12
    assert begun.seen + resumed.seen == straight.seen
    for mine, theirs in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["mixing", "nowcaster graph"])
def test_lightning_trains_as_a_loop_does_and_brings_the_spec(name: str) -> None:
    module = Module(name, example=True)
    by_hand = copy.deepcopy(module)
    fit(module)
    optimizer = module.optimizers()
    assert isinstance(optimizer, lightning.pytorch.core.optimizer.LightningOptimizer)
    inner = optimizer.optimizer
    assert isinstance(inner, (LearnedOptimizer, Nowcaster))
    assert inner.links is not None
    assert (inner.steps if isinstance(inner, Nowcaster) else inner.param_groups[0]["step"]) == 6

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 5, generator=generator)
    y = (x.sum(1) > 0).long()
    plain = by_hand.configure_optimizers()
    for i in range(0, 24, 4):
        plain.zero_grad()
        by_hand.training_step([x[i : i + 4], y[i : i + 4]], 0).backward()
        plain.step()
    assert module.seen == by_hand.seen
    for mine, theirs in zip(module.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_lightning_accumulates_and_treats_tensors_alone_without_an_example() -> None:
    module = Module("mixing", example=False)
    fit(module, accumulate_grad_batches=2, gradient_clip_val=1.0)
    optimizer: Any = module.optimizers()
    assert optimizer.optimizer.param_groups[0]["step"] == 3
    assert "tensors one by one" in optimizer.optimizer.describe()


def test_an_example_that_does_not_fit_is_warned_about() -> None:
    module = Module("mixing", example=False)
    module.example_input_array = torch.zeros(2, 7)
    with pytest.warns(UserWarning, match="no spec could be derived from the model's example_input_array"):
        optimizer = LearnedOptimizer.from_pretrained(weights("mixing"), module, total_steps=3)
    assert optimizer.links is None


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    whole, parts = mlp().double(), mlp().double()
    x = torch.randn(8, 5, dtype=torch.float64)
    y = (x.sum(1) > 0).long()
    optimizers = [
        LearnedOptimizer(m.named_parameters(), total_steps=9, weights=weights("mixing"))
        for m in (whole, parts)
    ]
    for _ in range(3):
        optimizers[0].zero_grad()
        nn.functional.cross_entropy(whole(x), y).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        for i in (0, 4):
            (nn.functional.cross_entropy(parts(x[i : i + 4]), y[i : i + 4]) / 2).backward()
        optimizers[1].step()
    for mine, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_a_group_that_comes_later_keeps_the_states_of_the_others() -> None:
    model = mlp()
    made = weights("structured")
    early = [(n, p) for n, p in model.named_parameters() if n != "7.weight"]
    optimizer = LearnedOptimizer(early, total_steps=20, weights=made)
    train(model, optimizer, 3)
    first = model[0].weight  # type: ignore[index]
    momenta = optimizer.state[first]["momenta"].clone()
    last = model[7].weight  # type: ignore[index]
    optimizer.add_param_group({"params": [("7.weight", last)], "role": "output"})
    assert optimizer.param_groups[1]["step"] == 3
    optimizer.buckets()
    before = last.clone()
    first.grad = torch.zeros_like(first)
    last.grad = torch.ones_like(last)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[first]["momenta"][0], momenta[0] * 0.8)
    assert optimizer.state[first]["count"] == 4
    assert optimizer.state[last]["count"] == 1
    assert not torch.equal(before, last)
    again = LearnedOptimizer(early, total_steps=20, weights=made)
    again.add_param_group({"params": [("7.weight", last)], "role": "output"})
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[1]["role"] == "output"


def test_specs_of_other_models_are_refused() -> None:
    model = mlp()
    spec = WeightSpec.parse("groups h: 8\n0.weight h 6\n0.bias h")
    with pytest.raises(ValueError, match=r"the spec says 0.weight is \[8, 6\], the parameter is \[8, 5\]"):
        LearnedOptimizer(model.named_parameters(), total_steps=3, weights=weights("mixing"), spec=spec)
    spec = WeightSpec.parse("groups h: 8\nbody.0.weight h 5\nbody.0.bias h")
    with pytest.raises(ValueError, match=r"the parameters are named '0.weight', .*: none agree"):
        LearnedOptimizer(model.named_parameters(), total_steps=3, weights=weights("mixing"), spec=spec)
    with pytest.raises(ValueError, match="named not at all"):
        LearnedOptimizer(model.parameters(), total_steps=3, weights=weights("mixing"), spec=spec)


def test_the_printout_names_the_units_that_link_tensors() -> None:
    model = cnn()
    optimizer = LearnedOptimizer.from_pretrained(
        weights("mixing"), model, total_steps=3, example_args=(torch.zeros(2, 1, 6, 6),)
    )
    table = optimizer.describe()
    assert "tensors linked over shared units" in table
    lines = {line.split("]")[1].split()[0]: line.split() for line in table.splitlines()[1:]}
    first, second, norm = lines["0.weight"], lines["3.weight"], lines["1.weight"]
    shared = first[-1].strip("[]")
    assert shared == norm[-1].strip("[]")
    assert any(word.strip("[],") == shared for word in second), "columns of the next layer"
    alone = LearnedOptimizer.from_pretrained(weights("structured"), model, total_steps=3)
    assert "tensors one by one" in alone.describe()


@pytest.mark.slow
def test_two_processes_are_one_and_shards_are_refused(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_processes.py")
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in OPTIMIZERS:
        for key, tensor in two_processes.train(mlp().double(), name, slice(0, 8)).items():
            assert torch.equal(first[name][key], second[name][key]), "ranks must agree to the bit"
            torch.testing.assert_close(tensor, first[name][key], rtol=1e-9, atol=1e-9)
