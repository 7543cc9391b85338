"""Three and more models, brought into one order of units before they are merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metanet import GroupElement, WeightSpec
from metanet.merging.recipe import RecipeError
from metanet_tasks.cli import main
from metanet_zoo import CheckpointError, find_spec, open_checkpoint, save_checkpoint
from metanet_zoo.matching.many import match_many_checkpoints
from metanet_zoo.matching.source_tensors import SourceTensors, aligned_source
from metanet_zoo.matching.universe import Method, common_order
from metanet_zoo.merging.run import merge_checkpoints
from metanet_zoo.merging.sources import open_model

BLOCKS = """\
groups   stream: 6   f: 8   h: 4   v: 3 under h   k: 5
embed    20 stream
up       f stream
fused    [(h v) | k] stream
out      stream (h v)
keys     9 k
down     stream f
"""
"""Held, the stream leaves three components, two of which share a fused tensor; widths are nested in heads."""


def network(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def write_copies(folder: Path, state: Mapping[str, Tensor], noise: float = 0.0) -> list[str]:
    """Write three permuted copies of a network, the first of them in its own order."""
    save_checkpoint(folder / "0.safetensors", state)
    spec = find_spec(str(folder / "0.safetensors"), activation="relu").spec
    for seed in (1, 2):
        planted = GroupElement.random(spec, torch.Generator().manual_seed(seed))
        own = {name: x + noise * torch.randn_like(x) for name, x in state.items()}
        save_checkpoint(folder / f"{seed}.safetensors", planted @ own)
    return [str(folder / f"{seed}.safetensors") for seed in range(3)]


def merged(models: Sequence[str], out: Path, align: object, **more: Any) -> tuple[dict[str, Tensor], str]:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": model, "parameters": {"weight": 1.0}} for model in models],
        "align": align,
        **more,
    }
    report = merge_checkpoints(recipe, out, overwrite=True)
    return {name: tensor.clone() for name, tensor in open_checkpoint(out).items()}, "; ".join(report.notes)


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    # The mean of three equal numbers may be off by a rounding.
    torch.testing.assert_close(dict(found), dict(wanted), rtol=3e-7, atol=1e-8)


@pytest.mark.parametrize("align", ["auto", "weights", "reference", "cycle-consistent", "merge-many"])
def test_permuted_copies_give_the_network_back(tmp_path: Path, align: str) -> None:
    state = network(0)
    models = write_copies(tmp_path, state)
    found, notes = merged(models, tmp_path / "out.safetensors", align)
    assert_equal(found, state)
    assert ("matched at once" in notes) == (align in ("auto", "cycle-consistent", "merge-many"))
    naive, _ = merged(models, tmp_path / "naive.safetensors", None)
    assert float((naive["2.weight"] - state["2.weight"]).abs().max()) > 0.1


@pytest.mark.parametrize("method", ["cycle-consistent", "merge-many", "weights"])
def test_any_model_can_keep_its_order(tmp_path: Path, method: str) -> None:
    models = write_copies(tmp_path, network(0))
    align = {"method": method, "reference": models[2], "activation": "relu"}
    found, _ = merged(models, tmp_path / "out.safetensors", align)
    assert_equal(found, open_checkpoint(models[2]))


@pytest.mark.parametrize("method", ["cycle-consistent", "merge-many"])
def test_copies_near_one_another_stay_as_they_are(tmp_path: Path, method: str) -> None:
    state = network(0)
    for seed in range(3):
        near = {name: x + 0.003 * torch.randn_like(x) for name, x in state.items()}
        save_checkpoint(tmp_path / f"{seed}.safetensors", near)
    models = [str(tmp_path / f"{seed}.safetensors") for seed in range(3)]
    found, notes = merged(models, tmp_path / "out.safetensors", method)
    assert "left as they are" in notes
    assert_equal(found, merged(models, tmp_path / "naive.safetensors", None)[0])


def test_with_a_base_models_come_to_it(tmp_path: Path) -> None:
    state = network(0)
    models = write_copies(tmp_path, state, noise=0.01)
    more = {"merge_method": "task_arithmetic", "base_model": models[0]}
    found, notes = merged(models[1:], tmp_path / "out.safetensors", True, **more)
    assert notes.count("aligned to") == 2
    assert float((found["2.weight"] - state["2.weight"]).abs().max()) < 0.1
    _, notes = merged(models[1:], tmp_path / "out.safetensors", "merge-many", **more)
    assert "3 models matched at once (merge-many)" in notes


@pytest.mark.parametrize("method", ["cycle-consistent", "merge-many"])
def test_components_are_matched_one_by_one_and_the_figures_add_up(tmp_path: Path, method: Method) -> None:
    spec = WeightSpec.parse(BLOCKS)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        state = {name: torch.randn(shape, generator=generator) for name, shape in spec.shapes.items()}
        save_checkpoint(tmp_path / f"{seed}.safetensors", state)
    sources = {str(seed): open_model(str(tmp_path / f"{seed}.safetensors")).source for seed in range(3)}
    found = common_order(spec, sources, method=method, max_memory=10_000)
    assert found.held == ("stream",)
    moved = [
        SourceTensors(aligned_source(source, element))
        for source, element in zip(sources.values(), found.elements, strict=True)
    ]
    # The embedding carries nothing but the stream, which stays: it is not compared.
    names = [name for name in spec if name != "embed"]
    for states, figure in (
        (moved, found.after),
        ([SourceTensors(s) for s in sources.values()], found.before),
    ):
        stacked = [torch.stack([state[name] for state in states]).double() for name in names]
        assert figure == pytest.approx(sum(float((x - x.mean(0)).square().sum()) for x in stacked), rel=1e-6)
    assert found.after < found.before
    one, two, three = found.anchored(1)
    assert two.allclose(GroupElement.identity(spec))
    assert not three.allclose(GroupElement.identity(spec))
    around = found.elements[0].inverse() @ found.elements[1]
    around = around @ (found.elements[1].inverse() @ found.elements[2])
    around = around @ (found.elements[2].inverse() @ found.elements[0])
    assert around.allclose(GroupElement.identity(spec))
    assert one.allclose(found.elements[1].inverse() @ found.elements[0])


def test_a_component_too_large_for_frank_wolfe_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metanet_zoo.matching.universe.MAX_VALUES", 100)
    models = write_copies(tmp_path, network(0))
    with pytest.raises(CheckpointError, match="Use merge-many"):
        merged(models, tmp_path / "out.safetensors", "cycle-consistent")
    assert match_many_checkpoints(models, method="merge-many").after == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize(
    "options",
    [["--align", "auto"], ["--many", "merge-many"], ["--align", "weights", "--many", "cycle-consistent"]],
)
def test_the_command_line_aligns_three(tmp_path: Path, options: list[str]) -> None:
    state = network(0)
    models = write_copies(tmp_path, state)
    out = tmp_path / "out.safetensors"
    assert main(["merge", *models, *options, "-o", str(out), "--quiet"]) == 0
    assert_equal(open_checkpoint(out), state)


@pytest.mark.parametrize(
    ("align", "message"),
    [
        ("wieghts", "no method 'wieghts'; did you mean 'weights'"),
        ({"method": "merge-many", "min_gian": 0.1}, "unknown key 'min_gian'; did you mean 'min_gain'"),
        ({"min_gain": 2}, "min_gain: found 2"),
        ({"reference": "c"}, "'c' is no model of the recipe"),
        ({"z": "g.safetensors"}, "'z' is no model of the recipe"),
        ({"method": "weights", "elements": {}}, "leave the other settings out"),
        (3, "found 3, expected true"),
    ],
)
def test_settings_are_read_strictly(tmp_path: Path, align: object, message: str) -> None:
    with pytest.raises(RecipeError, match=f"align: .*{message}"):
        merged(["a", "b"], tmp_path / "out", align)
