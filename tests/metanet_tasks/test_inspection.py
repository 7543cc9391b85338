from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from metanet import WeightSpec, spec_of
from metanet_tasks.cli import main
from metanet_tasks.inspection import inspect
from metanet_zoo import save_checkpoint
from metanet_zoo.spec_files import find_spec_file, read_spec, write_spec

MLP = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
SIREN = ("metanet_zoo.architectures:Siren", "f32[5,2]")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model.safetensors", MLP.state_dict())
    return tmp_path / "model.safetensors"


def test_an_object_is_derived_and_proven() -> None:
    inspection = inspect(SIREN[0], inputs=[SIREN[1]], prove=True)
    assert inspection.verification is not None
    assert inspection.verification.ok
    assert [group.size for group in inspection.spec.groups] == [32, 32]
    answer = inspection.to_dict()
    assert answer["phase_rank"] == 64
    assert answer["verification"]["max_error"] < 1e-9
    assert WeightSpec.parse(answer["notation"]) == inspection.spec
    first = answer["groups"][0]
    assert first["occurs"] == [["seq.0.weight", 0], ["seq.0.bias", 0], ["seq.1.weight", 1]]
    assert json.loads(json.dumps(answer)) == answer


def test_a_plain_checkpoint_says_what_it_assumes(checkpoint: Path) -> None:
    inspection = inspect(str(checkpoint), prove=True)
    assert inspection.verification is not None
    assert inspection.verification.ok
    assert "plain sequential" in inspection.origin
    assert any("activation is unknown" in note for note in inspection.notes)
    assert [str(f) for f in inspect(str(checkpoint), activation="tanh").spec.groups[0].freedoms] == ["sign"]


@pytest.mark.parametrize("name", ["model.spec.json", "model.spec", "spec.json"])
def test_a_spec_file_beside_a_checkpoint_goes_first(checkpoint: Path, name: str) -> None:
    spec = spec_of(MLP, torch.zeros(1, 2))
    write_spec(checkpoint.parent / name, spec)
    inspection = inspect(str(checkpoint), prove=True)
    assert inspection.spec == spec
    assert inspection.verification is None
    assert inspection.not_proven is not None
    assert inspection.to_dict()["verification"] == {"proven": None, "reason": inspection.not_proven}
    with pytest.raises(ValueError, match="leave out --activation"):
        inspect(str(checkpoint), activation="relu")


def test_the_order_of_spec_files_is_the_documented_one(checkpoint: Path) -> None:
    folder = checkpoint.parent
    assert find_spec_file([checkpoint]) is None
    for name in ("spec.json", "model.spec", "model.spec.json"):
        (folder / name).write_text("x")
        assert find_spec_file([checkpoint]) == folder / name
        assert find_spec_file([folder / "model.safetensors.index.json"]) == folder / name


def test_a_spec_file_that_does_not_fit_names_itself(checkpoint: Path) -> None:
    file = checkpoint.parent / "model.spec"
    file.write_text("groups h: 9\n0.weight h 2\n0.bias h\n2.weight 1 h\n2.bias 1\n")
    with pytest.raises(ValueError, match=r"model.spec: .*0.weight: found \[8, 2\], expected \[9, 2\]"):
        inspect(str(checkpoint))
    file.write_text("group h: 9")
    with pytest.raises(ValueError, match=r"model.spec: line 1"):
        inspect(str(checkpoint))
    with pytest.raises(FileNotFoundError, match="no spec file"):
        read_spec(checkpoint.parent / "other.spec")


def test_a_wrong_spec_is_refuted_with_exit_code_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["inspect", SIREN[0], "--input", SIREN[1]]
    saved = tmp_path / "siren.spec"
    assert main([*arguments, "--save-spec", str(saved)]) == 0
    assert main([*arguments, "--spec", str(saved), "--verify"]) == 0
    saved.write_text(saved.read_text().replace("phase(30)", "phase(29)"))
    capsys.readouterr()
    assert main([*arguments, "--spec", str(saved), "--verify"]) == 1
    assert "NOT KEPT" in capsys.readouterr().out


def test_the_table_shows_groups_entries_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", SIREN[0], "--input", SIREN[1]]) == 0
    shown = capsys.readouterr().out
    for text in (
        "sign phase(30)",
        "seq.1.weight",
        "32×32",
        "seq.1 seq.0'",
        "1,185 values",
        "phases of rank 64",
    ):
        assert text in shown, text


def test_json_goes_to_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", SIREN[0], "--input", SIREN[1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_parameters"] == 1185


def test_an_operation_without_a_rule_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_with_a_transform.py").write_text(
        "import torch\nfrom torch import Tensor, nn\n"
        "@torch.library.custom_op('metanet_tests::unheard_of', mutates_args=())\n"
        "def unheard_of(x: Tensor) -> Tensor:\n    return x.flip(-1)\n"
        "@unheard_of.register_fake\n"
        "def _(x):\n    return torch.empty_like(x)\n"
        "class Flip(nn.Module):\n"
        "    def forward(self, x):\n        return unheard_of(x)\n"
        "def build():\n    return nn.Sequential(nn.Linear(2, 4), Flip(), nn.Linear(4, 1))\n"
    )
    assert main(["inspect", "nets_with_a_transform:build", "--input", "f32[1,2]", "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "lost: metanet_tests.unheard_of.default fixed 0.weight, 0.bias" in shown
    assert "groups: none" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SIREN[0]], "pass one --input per argument"),
        ([SIREN[0], "--input", "f32[5,3]"], "does not run on inputs [5, 3]"),
        ([SIREN[0], "--input", "f32[5,2]", "--activation", "relu"], "leave out --activation"),
        (["torch.nn:Nonsense", "--input", "f32[1]"], "has no 'Nonsense'"),
        (["nowhere.safetensors"], "neither an existing path"),
    ],
)
def test_errors_are_one_line_and_exit_code_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("metanet: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_checkpoint_takes_no_inputs(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="leave out --input"):
        inspect(str(checkpoint), inputs=["f32[1,2]"])
