"""The verb ``merge``: its arguments, its reports, and that it stays light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from metanet.merging.method import METHODS
from metanet_tasks.cli import main
from metanet_tasks.merge_command import size

PLUGIN = """
import numpy as np
from metanet.merging import merge_method

@merge_method("median", reference="coordinate-wise median")
def median(stretch):
    '''Median of the models.'''
    return np.median(np.stack(stretch.values), axis=0)
"""


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path in paths:
        save_file(
            {"w": torch.randn(5, 4, generator=generator), "b": torch.randn(5, generator=generator)}, path
        )
    return [str(path) for path in paths]


def test_a_merge_loads_no_torch(models: list[str], tmp_path: Path) -> None:
    arguments = ["merge", *models, "-o", str(tmp_path / "out"), "--quiet"]
    code = (
        f"import sys; from metanet_tasks.cli import main; code = main({arguments!r}); "
        "heavy = sorted({'torch', 'lightning', 'transformers', 'rich', 'scipy', 'huggingface_hub'} "
        "& sys.modules.keys()); assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_options_make_a_recipe(models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    code = main(["merge", *models, "--weights", "1,2,5", "-o", str(out), "--dtype", "float32", "--json"])
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == "linear"
    assert report["models"] == models
    inputs = [load_file(path) for path in models]
    expected = sum(share * tensors["w"] for share, tensors in zip((1, 2, 5), inputs, strict=True)) / 8
    torch.testing.assert_close(load_file(out)["w"], expected)


def test_a_recipe_and_parameters(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_options, by_recipe = tmp_path / "options.safetensors", tmp_path / "recipe.safetensors"
    chosen = ["--base", models[0], "--method", "ties", "--set", "density=0.5", "--set", "lambda=0.7"]
    assert main(["merge", *models[1:], *chosen, "-o", str(by_options)]) == 0
    assert "wrote" in capsys.readouterr().out
    recipe = tmp_path / "r.yml"
    listed = "".join(f"  - model: {path}\n" for path in models[1:])
    recipe.write_text(
        f"merge_method: ties\nbase_model: {models[0]}\nmodels:\n{listed}"
        "parameters: {density: 0.5, lambda: 0.7, weight: 1}\n"
    )
    assert main(["merge", str(recipe), str(by_recipe)]) == 0
    assert torch.equal(load_file(by_options)["w"], load_file(by_recipe)["w"])
    assert main(["merge", str(recipe), "-o", str(tmp_path / "x"), "--dry-run"]) == 0
    assert "would write" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "no output; name it with -o OUT"),
        ([], "nothing to merge"),
        (["r.yml", "--base", "x", "-o", "o"], "--base was given beside a recipe"),
        (["a", "b", "--weights", "1", "-o", "o"], "--weights has 1 numbers, expected 2"),
        (["a", "--set", "t", "-o", "o"], "expected NAME=VALUE"),
        (["nowhere", "-o", "o"], "'nowhere' is neither an existing path"),
        (["a", "--plugin", "none.py", "-o", "o"], "--plugin none.py: there is no such file"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_methods_are_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "--methods"]) == 0
    shown = capsys.readouterr().out
    for name, method in METHODS.items():
        assert f"{name}: {method.summary}" in shown
        assert method.reference in shown
        assert all(parameter in shown for parameter in method.parameters)


def test_ones_own_method(models: list[str], tmp_path: Path) -> None:
    plugin = tmp_path / "median.py"
    plugin.write_text(PLUGIN)
    out = tmp_path / "out.safetensors"
    try:
        assert main(["merge", *models, "--method", "median", "--plugin", str(plugin), "-o", str(out)]) == 0
    finally:
        METHODS.pop("median", None)
    stacked = torch.stack([load_file(path)["w"] for path in models])
    assert torch.equal(load_file(out)["w"], stacked.median(0).values)


def test_sizes() -> None:
    assert [size(text) for text in ("10", "1.5G", "2GiB", "5 MB")] == [10, 1_500_000_000, 2 << 30, 5_000_000]
