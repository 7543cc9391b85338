from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from metanet import WeightSpec
from metanet_tasks.cli import main
from metanet_tasks.zoos import zoo_info
from metanet_zoo.store import Zoo


def fit(out: Path, *more: str) -> int:
    small = [
        "--limit",
        "6",
        "--views",
        "2",
        "--hidden",
        "8",
        "--omega",
        "10",
        "--steps",
        "20",
        "--threads",
        "1",
    ]
    return main(["zoo", "fit-inrs", "--images", "digits", "--out", str(out), *small, *more])


def test_a_fit_makes_a_zoo_with_its_spec_and_repeats_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "a.zoo", "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert described["models"] == 12
    assert described["images"] == 6
    assert described["architecture"]["omega"] == 10
    assert sum(described["labels"].values()) == 12
    zoo = Zoo.open(tmp_path / "a.zoo")
    assert zoo.spec_json is not None
    spec = WeightSpec.from_json(zoo.spec_json)
    assert [group.size for group in spec.groups] == [8, 8]
    assert spec.operations
    assert fit(tmp_path / "b.zoo") == 0
    assert "12 of 105 parameters" in capsys.readouterr().out
    again = Zoo.open(tmp_path / "b.zoo").load()
    assert all(torch.equal(tensor, again[name]) for name, tensor in zoo.load().items())
    assert fit(tmp_path / "c.zoo", "--seed", "1") == 0
    other = Zoo.open(tmp_path / "c.zoo").load()
    assert not torch.equal(other["seq.0.weight"], again["seq.0.weight"])


def test_the_same_command_with_other_settings_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "zoo") == 0
    assert fit(tmp_path / "zoo") == 0
    capsys.readouterr()
    assert fit(tmp_path / "zoo", "--seed", "5") == 2
    assert "seed was 0, now 5" in capsys.readouterr().err
    assert fit(tmp_path / "missing" / "zoo") == 2
    with pytest.raises(SystemExit):
        fit(tmp_path / "zoo2", "--target-psnr", "high")
    assert "a number of decibels or none" in capsys.readouterr().err
    assert not (tmp_path / "zoo2").exists()


def test_info_checks_every_byte_when_asked(
    tiny_zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["zoo", "info", str(tiny_zoo.path), "--verify"]) == 0
    assert "every file is what the manifest says" in capsys.readouterr().out
    assert main(["zoo", "merge", str(tiny_zoo.path), "--out", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    shard = tmp_path / "merged" / "weights-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    assert main(["zoo", "info", str(tmp_path / "merged"), "--verify", "--json"]) == 1
    check = json.loads(capsys.readouterr().out)["check"]
    assert not check["ok"]
    assert "sha256" in check["problems"][0]


def test_merging_keeps_networks_and_says_where_they_are_from(tiny_zoo: Zoo, tmp_path: Path) -> None:
    assert fit(tmp_path / "a.zoo") == 0
    assert fit(tmp_path / "b.zoo", "--seed", "1") == 0
    zoos = [str(tmp_path / name) for name in ("a.zoo", "b.zoo")]
    assert main(["zoo", "merge", *zoos, "--out", str(tmp_path / "both.zoo")]) == 0
    assert zoo_info(tmp_path / "both.zoo")["models"] == 24
    both = Zoo.open(tmp_path / "both.zoo")
    assert both.column("source") == ["a.zoo"] * 12 + ["b.zoo"] * 12
    assert main(["zoo", "merge", zoos[0], str(tiny_zoo.path), "--out", str(tmp_path / "no.zoo")]) == 2
    assert not (tmp_path / "no.zoo").exists()
