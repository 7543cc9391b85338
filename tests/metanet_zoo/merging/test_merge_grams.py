"""Merging by what flows into linear layers: Gram matrices collected, stored beside models, found again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metanet.merging.input_grams import input_grams
from metanet.merging.recipe import RecipeError
from metanet_tasks.cli import main
from metanet_zoo import CheckpointError, open_checkpoint, save_checkpoint
from metanet_zoo.merging.estimate import gram_memory
from metanet_zoo.merging.grams import save_input_grams
from metanet_zoo.merging.run import merge_checkpoints
from metanet_zoo.merging.sources import Entry


class Embedded(nn.Module):
    """Tokens, a linear layer, and one without bias that is applied at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3, bias=False)

    def forward(self, ids: Tensor, scale: float = 1.0) -> Tensor:
        logits: Tensor = self.head(scale * self.inner(self.embed(ids)))
        return logits


def test_gram_matrices_are_sums_over_all_positions() -> None:
    torch.manual_seed(0)
    model = Embedded().train()
    ids = [torch.randint(11, (2, 7)), torch.randint(11, (3, 4))]
    found = input_grams(model, [{"ids": ids[0]}, (ids[1], 1.0)])
    with torch.no_grad():
        x = torch.cat([model.embed(batch).flatten(0, 1) for batch in ids])
        y = model.inner(x)
    torch.testing.assert_close(found, {"inner.weight": x.T @ x, "head.weight": y.T @ y}, rtol=1e-5, atol=1e-5)
    assert model.training
    assert set(input_grams(model, ids, layers=["head"])) == {"head.weight"}
    with pytest.raises(ValueError, match="no batch came"):
        input_grams(model, [])
    with pytest.raises(ValueError, match="no linear layers nowhere; found inner, head"):
        input_grams(model, ids, layers=["nowhere"])
    with pytest.raises(ValueError, match="no linear layer"):
        input_grams(nn.ReLU(), ids)


def pair(folder: Path) -> tuple[list[nn.Linear], list[Tensor], list[str]]:
    """Two linear models in float64, their data, and their checkpoints with Gram matrices beside them."""
    torch.manual_seed(0)
    models = [nn.Linear(6, 4).double() for _ in range(2)]
    data = [
        torch.randn(40, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) for _ in range(2)
    ]
    paths = [str(folder / f"{i}.safetensors") for i in range(2)]
    for model, inputs, path in zip(models, data, paths, strict=True):
        save_checkpoint(path, model.state_dict())
        save_input_grams(path, model, inputs.split(16), facts={"samples": 40})
    return models, data, paths


def test_a_merge_of_linear_models_is_the_least_squares_fit(tmp_path: Path) -> None:
    models, data, paths = pair(tmp_path)
    out = tmp_path / "out.safetensors"
    command = ["merge", *paths, "--method", "regmean", "--set", "alpha=1", "-o", str(out), "--quiet"]
    assert main(command) == 0
    merged = open_checkpoint(out)
    # Biases are averaged, so that the weights are fitted to the outputs without them.
    targets = torch.cat([x @ model.weight.T for x, model in zip(data, models, strict=True)])
    wanted = torch.linalg.lstsq(torch.cat(data), targets).solution.T
    torch.testing.assert_close(merged["weight"], wanted.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(merged["bias"], (models[0].bias + models[1].bias).detach() / 2)

    def error(weight: Tensor) -> float:
        return sum(
            float((x @ (weight - model.weight).T).detach().square().sum())
            for x, model in zip(data, models, strict=True)
        )

    least = error(merged["weight"])
    assert least < error((models[0].weight + models[1].weight) / 2)
    for direction in torch.eye(24, dtype=torch.float64).reshape(24, 4, 6):
        assert min(error(merged["weight"] + step * direction) for step in (1e-3, -1e-3)) > least


def test_the_estimate_counts_the_widest_layer_that_is_solved() -> None:
    def job(shape: tuple[int, ...], *, grams: bool) -> Any:
        return SimpleNamespace(
            task=SimpleNamespace(grams=grams), entry=Entry("F32", shape), inputs=("a", "b", "c")
        )

    plan: Any = SimpleNamespace(
        jobs=[job((4, 6), grams=True), job((4, 5), grams=True), job((4, 9), grams=False)]
    )
    assert gram_memory(plan) == 8 * 6**2 * (3 + 4)  # three as read; as maps and while solved
    plan.jobs = plan.jobs[2:]
    assert gram_memory(plan) == 0


def test_gram_matrices_are_found_named_or_missed(tmp_path: Path) -> None:
    _, _, paths = pair(tmp_path)
    recipe = {"merge_method": "regmean", "models": [{"model": path} for path in paths]}
    report = merge_checkpoints(recipe, tmp_path / "found.safetensors")
    assert any("1 tensors merged by the Gram matrices" in note for note in report.notes)
    moved = [tmp_path / f"elsewhere{i}.safetensors" for i in range(2)]
    for i, path in enumerate(moved):
        (tmp_path / f"{i}.gram.safetensors").rename(path)
    with pytest.raises(RecipeError, match=r"0\.safetensors: found no .*0\.gram\.safetensors"):
        merge_checkpoints(recipe, tmp_path / "missed.safetensors")
    named = [arg for path in moved for arg in ("--importance", str(path))]
    out = tmp_path / "named.safetensors"
    assert main(["merge", *paths, "--method", "regmean", *named, "-o", str(out), "--quiet"]) == 0
    for name, tensor in open_checkpoint(tmp_path / "found.safetensors").items():
        assert torch.equal(tensor, open_checkpoint(out)[name])


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, _, paths = pair(tmp_path)

    def merge(*grams: dict[str, Tensor]) -> None:
        for i, own in enumerate(grams):
            save_checkpoint(tmp_path / f"g{i}.safetensors", own)
        models = [
            {"model": path, "importance": str(tmp_path / f"g{i}.safetensors")} for i, path in enumerate(paths)
        ]
        merge_checkpoints({"merge_method": "regmean", "models": models}, tmp_path / "out.safetensors")

    good = {"weight": torch.eye(6)}
    with pytest.raises(CheckpointError, match=r"'weight' is F32 \[4, 4\], expected floats \[6, 6\]"):
        merge(good, {"weight": torch.eye(4)})
    with pytest.raises(CheckpointError, match=r"g1\.safetensors: no Gram matrix of 'weight'"):
        merge(good, {"other": torch.eye(6)})
    with pytest.raises(CheckpointError, match="no tensor of the models has a Gram matrix"):
        merge({"other": torch.eye(6)}, {"other": torch.eye(6)})
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        merge(good, {"weight": torch.full((6, 6), torch.nan)})
    assert not (tmp_path / "out.safetensors").exists()


def test_a_folder_keeps_its_gram_matrices_beside_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        model = Embedded()
        save_checkpoint(tmp_path / name / "weights.safetensors", model.state_dict())
        file = save_input_grams(tmp_path / name, model, [torch.randint(11, (4, 9))])
        assert file == tmp_path / name / "gram.safetensors"
    recipe = {"merge_method": "regmean", "models": [{"model": str(tmp_path / name)} for name in "ab"]}
    report = merge_checkpoints(recipe, tmp_path / "out")
    assert any("2 tensors merged by the Gram matrices" in note for note in report.notes)
    a, b, merged = (open_checkpoint(path) for path in (tmp_path / "a", tmp_path / "b", tmp_path / "out"))
    torch.testing.assert_close(merged["embed.weight"], (a["embed.weight"] + b["embed.weight"]) / 2)
