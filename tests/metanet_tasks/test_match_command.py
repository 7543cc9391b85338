"""The verb ``match``: methods with and without data, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metanet import GroupElement, spec_of
from metanet_tasks.cli import main
from metanet_zoo import CheckpointError, open_checkpoint, open_images, save_checkpoint
from metanet_zoo.matching.data import DataOptions
from metanet_zoo.matching.element_file import load_element
from metanet_zoo.matching.run import match_checkpoints
from metanet_zoo.matching.soft_map_file import load_soft_map

PLUGIN = """
from metanet.group import GroupElement
from metanet.matching.method import matcher
from metanet.matching.weights import matching_of

@matcher("backwards", reference="the units in reverse")
def backwards(problem):
    '''Units in reverse.'''
    found = {g.name: __import__("torch").arange(g.size).flip(0) for g in problem.spec.groups}
    return matching_of(GroupElement(problem.spec, found, {}), problem.a, problem.b)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, GroupElement]:
    """An MLP trained a little on the digits, a permuted copy of it, and the element between them."""
    torch.manual_seed(0)
    images = open_images("digits")
    assert images.labels is not None
    x = images.images.flatten(1)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), images.labels).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("mlp")
    planted = GroupElement.random(spec_of(model, x[:1]), torch.Generator().manual_seed(1))
    save_checkpoint(folder / "a.safetensors", planted @ model.state_dict())
    save_checkpoint(folder / "b.safetensors", model.state_dict())
    return str(folder / "a.safetensors"), str(folder / "b.safetensors"), planted


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("weights", ["--start", "sorted"]),
        ("sinkhorn", ["--set", "steps=40"]),
        ("activations", ["--data", "digits", "--limit", "200"]),
        ("straight-through", ["--data", "digits", "--limit", "100", "--set", "steps=2"]),
        (
            "sinkhorn-loss",
            ["--data", "digits", "--limit", "100", "--set", "steps=2", "--set", "learning_rate=1e-1"],
        ),
    ],
)
def test_every_method_finds_a_permuted_copy_and_proves_it(
    pair: tuple[str, str, GroupElement],
    method: str,
    more: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    a, b, planted = pair
    element, out = str(tmp_path / "g.safetensors"), str(tmp_path / "out.safetensors")
    files = ["--out-element", element, "--out", out, "--json"]
    assert main(["match", a, b, "--method", method, "--activation", "relu", *more, *files]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == method
    assert report["proof"]["proven"] is True
    assert report["after"] < report["before"]
    found, facts = load_element(element)
    assert facts["measure"] == report["measure"]
    assert all(torch.equal(found.permutations[name], p) for name, p in planted.permutations.items())
    first, aligned = open_checkpoint(a), open_checkpoint(out)
    assert all(torch.equal(first[name], aligned[name]) for name in first)


def test_the_python_call_is_the_verb(
    pair: tuple[str, str, GroupElement], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, _ = pair
    report = match_checkpoints(
        a,
        b,
        method="activations",
        activation="relu",
        data=DataOptions("digits", limit=150, mean=[0.1], deviation=[0.5]),
    )
    arguments = ["--activation", "relu", "--data", "digits", "--limit", "150", "--mean", "0.1", "--json"]
    assert main(["match", a, b, "--method", "activations", *arguments, "--deviation", "0.5"]) == 0
    shown = json.loads(capsys.readouterr().out)
    expected = json.loads(json.dumps(report.to_dict()))
    assert {**shown, "seconds": 0} == {**expected, "seconds": 0}


def test_a_method_of_ones_own_comes_from_a_file(
    pair: tuple[str, str, GroupElement], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, _ = pair
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    options = ["--method", "backwards", "--plugin", str(file), "--min-gain", "-9", "--json"]
    assert main(["match", a, b, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["moved"] == {"layer0": 1.0, "layer2": 1.0}
    from metanet.matching.method import MATCHERS

    del MATCHERS["backwards"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "activations", "--activation", "relu"], "--data"),
        (["--method", "activations", "--data", "digits"], "--activation"),
        (["--data", "digits"], "looks at the weights alone"),
        (["--method", "aktivations"], "did you mean 'activations'"),
        (["--set", "steps=3"], "no setting 'steps'"),
        (["--method", "sinkhorn", "--free", "layer0"], "leave --free out"),
        (["--method", "sinkhorn", "--max-memory", "1000"], "raise --max-memory"),
        (["--method", "orthogonal"], "fold"),
        (["--method", "activations", "--text", "x.txt", "--activation", "relu"], "tokenizer"),
    ],
)
def test_what_does_not_go_together_is_refused(
    pair: tuple[str, str, GroupElement], options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, _ = pair
    assert main(["match", a, b, *options]) == 2
    assert said in capsys.readouterr().err


def test_a_convolutional_network_is_run_only_if_it_is_at_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        save_checkpoint(tmp_path / f"{seed}.safetensors", model.state_dict())
    options = ["--method", "activations", "--activation", "relu", "--data", "digits"]
    assert main(["match", *(str(tmp_path / f"{seed}.safetensors") for seed in (0, 1)), *options]) == 2
    assert "strides, padding and pooling" in capsys.readouterr().err


def narrow_and_wide(folder: Path) -> tuple[str, str]:
    """An MLP, and one of which every hidden unit has a twin, in another order."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    order = torch.randperm(10)
    wide = {name: tensor.repeat_interleave(2, 0)[order] for name, tensor in state.items() if name[0] == "0"}
    wide |= {"2.weight": state["2.weight"].repeat_interleave(2, 1)[:, order] / 2, "2.bias": state["2.bias"]}
    save_checkpoint(folder / "narrow.safetensors", state)
    save_checkpoint(folder / "wide.safetensors", wide)
    return str(folder / "wide.safetensors"), str(folder / "narrow.safetensors")


def test_transport_writes_a_soft_map_and_a_model_of_other_widths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide, narrow = narrow_and_wide(tmp_path)
    file, out = str(tmp_path / "map.safetensors"), str(tmp_path / "out.safetensors")
    options = ["--method", "transport", "--activation", "relu"]
    assert main(["match", wide, narrow, *options, "--out-element", file, "--out", out, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["widths"] == {"layer0": [5, 10]}
    assert report["costs"]["layer0"] == pytest.approx(0.0, abs=1e-9)
    assert report["element"] is False
    assert any("another function" in note for note in report["notes"])
    expected, moved = open_checkpoint(wide), open_checkpoint(out)
    assert all(torch.allclose(expected[name], moved[name], atol=1e-6) for name in expected)
    soft, facts = load_soft_map(file)
    again = soft @ open_checkpoint(narrow)
    assert all(torch.equal(again[name], moved[name]) for name in moved)
    assert facts["method"] == "transport"
    with pytest.raises(CheckpointError, match="does not keep the function"):
        load_element(file)
    with pytest.raises(CheckpointError, match="expected a soft map"):
        load_soft_map(out)
    assert main(["match", wide, narrow, *options, "--out", out]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["match", wide, narrow, *options, "--min-gain", "0.1"]) == 2
    assert "--min-gain" in capsys.readouterr().err
    assert main(["match", wide, narrow, *options, "--out", out, "--overwrite"]) == 0
    assert "5 units onto 10" in capsys.readouterr().out


def test_zip_merges_both_or_gives_them_one_trunk(
    pair: tuple[str, str, GroupElement], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, _ = pair
    options = ["--activation", "relu", "--data", "digits", "--limit", "300"]
    merged = str(tmp_path / "merged.safetensors")
    assert main(["match", a, b, "--method", "zip", *options, "--out", merged, "--set", "within=0.0"]) == 0
    first, found = open_checkpoint(a), open_checkpoint(merged)
    assert all(torch.allclose(first[name], found[name], atol=1e-6) for name in first)
    capsys.readouterr()
    heads, maps = tmp_path / "heads", tmp_path / "maps"
    more = ["--set", "stop_after=0", "--out", str(heads), "--out-element", str(maps), "--json"]
    assert main(["match", a, b, "--method", "zip-weights", "--activation", "relu", *more]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["outputs"] == [str(heads / "1.safetensors"), str(heads / "2.safetensors")]
    one, other = (open_checkpoint(path) for path in report["outputs"])
    assert torch.equal(one["0.weight"], other["0.weight"])
    assert not torch.equal(one["2.weight"], other["2.weight"])
    soft, _ = load_soft_map(report["maps"][0])
    assert torch.allclose((soft @ first)["2.weight"], one["2.weight"], atol=1e-6)
    assert main(["match", a, b, "--method", "zip", *options, "--out", str(tmp_path / "folder")]) == 2
    assert "name a .safetensors file" in capsys.readouterr().err


def test_the_methods_describe_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["match", "--methods"]) == 0
    shown = capsys.readouterr().out
    for name in ("weights", "activations", "straight-through", "sinkhorn", "sinkhorn-loss", "transport"):
        assert f"{name}: " in shown
    assert "learning_rate" in shown
    with pytest.raises(SystemExit):
        main(["match", "--help"])
    assert "straight-through" in capsys.readouterr().out
