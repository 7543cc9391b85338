"""The barrier between two checkpoints, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metanet import GroupElement, spec_of
from metanet.matching.singular import singular_vector_alignment
from metanet_tasks.cli import main
from metanet_zoo import open_images, save_checkpoint


@pytest.fixture(scope="module")
def digits_mlp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An MLP trained a little on the digits, and a permuted copy of it."""
    torch.manual_seed(0)
    images = open_images("digits")
    assert images.labels is not None
    x = images.images.float().flatten(1) / (255 if images.images.dtype == torch.uint8 else 1)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), images.labels).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("mlp")
    planted = GroupElement.random(spec_of(model, x[:1]), torch.Generator().manual_seed(1))
    save_checkpoint(folder / "a.safetensors", model.state_dict())
    save_checkpoint(folder / "b.safetensors", planted @ model.state_dict())
    return folder / "a.safetensors", folder / "b.safetensors"


def test_alignment_takes_the_barrier_of_a_permuted_copy_away(
    digits_mlp: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = map(str, digits_mlp)
    plot = tmp_path / "barrier.png"
    options = ["--activation", "relu", "--data", "digits", "--limit", "400", "--points", "5"]
    assert main(["barrier", a, b, *options, "--correct", "repair", "--plot", str(plot), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    naive, aligned = report["paths"]["naive"], report["paths"]["aligned"]
    assert naive["barrier"] > 0.1
    assert aligned["barrier"] < 1e-5
    assert naive["accuracy"][0] == naive["accuracy"][-1] == aligned["accuracy"][2]
    assert report["paths"]["aligned, repair"]["accuracy"][2] == pytest.approx(
        aligned["accuracy"][2], abs=0.01
    )
    assert report["squared_distance"][1] == 0.0
    assert report["singular_vector_alignment"][1] == pytest.approx(1.0, abs=1e-4)
    assert report["singular_vector_alignment"][0] < 0.5
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_no_data_is_refused_and_the_table_is_shown(
    digits_mlp: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = map(str, digits_mlp)
    assert main(["barrier", a, b]) == 2
    assert "--data" in capsys.readouterr().err
    options = ["--activation", "relu", "--data", "digits", "--limit", "100", "--points", "3", "--no-align"]
    assert main(["barrier", a, b, *options]) == 0
    shown = capsys.readouterr().out
    assert "naive" in shown
    assert "aligned" not in shown


def test_singular_vectors_of_a_network_and_itself_agree() -> None:
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 4))
    spec = spec_of(model, torch.zeros(1, 5))
    same = singular_vector_alignment(spec, model.state_dict(), model.state_dict())
    assert set(same) == {"0.weight", "2.weight"}
    assert all(value == pytest.approx(1.0, abs=1e-5) for value in same.values())
