"""The files of a checkpoint: folders and indices."""

import json
from pathlib import Path

import pytest

from metanet_zoo.errors import CheckpointError
from metanet_zoo.layout import choose_file, lies_inside, read_index, require_shards

INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"], "model.safetensors"),
        (
            ["model.safetensors.index.json", *SHARDS, "consolidated.safetensors"],
            "model.safetensors.index.json",
        ),
        (["diffusion_pytorch_model.safetensors", "config.json"], "diffusion_pytorch_model.safetensors"),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt"], "pytorch_model.bin"),
        (
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
            "pytorch_model.bin.index.json",
        ),
        (["net.pth", "optimizer.pt", "rng_state.pth", "scheduler.pt"], "net.pth"),
        (["only.ckpt"], "only.ckpt"),
    ],
)
def test_choice(names: list[str], chosen: str) -> None:
    assert choose_file(names, "folder") == chosen
    assert choose_file(names[::-1], "folder") == chosen


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "folder: found no checkpoint among 0 files"),
        (["config.json", "README.md", "training_args.bin"], "found no checkpoint among 3 files"),
        (SHARDS, r"shards without an index \(model-00001-of-00002.safetensors, .*index.json"),
        (["a.safetensors", "b.safetensors"], r"2 checkpoints, .*\(a.safetensors, b.safetensors\); pass one"),
        (["a.pt", "b.pth"], r"2 checkpoints, .*\(a.pt, b.pth\)"),
    ],
)
def test_no_choice(names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        choose_file(names, "folder")


OUTSIDE = ["../x", "a/../../x", "/etc/x", "C:\\x", "c:x", "\\\\host\\x", "..\\x", "", ".", "..", "a\0b"]


@pytest.mark.parametrize("file", OUTSIDE)
def test_index_naming_a_file_outside(tmp_path: Path, file: str) -> None:
    assert not lies_inside(file)
    index = tmp_path / INDEX
    index.write_text(json.dumps({"weight_map": {"fc.weight": file}}))
    with pytest.raises(CheckpointError, match=r"'fc.weight' is said to be in .*outside the index's folder"):
        read_index(index)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a"', "[" * 9999],
)
def test_no_index(tmp_path: Path, text: str) -> None:
    index = tmp_path / INDEX
    index.write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json: (not JSON|no weight_map)"):
        read_index(index)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    (tmp_path / SHARDS[0]).touch()
    with pytest.raises(CheckpointError, match=f"1 of 2 files that the index names are missing: {SHARDS[1]};"):
        require_shards(tmp_path / INDEX, [*SHARDS, *SHARDS])


def test_shards_below_the_folder_are_inside(tmp_path: Path) -> None:
    index = tmp_path / INDEX
    index.write_text(json.dumps({"weight_map": {"a": "shards/1.safetensors"}, "metadata": {"total_size": 4}}))
    assert read_index(index) == ({"a": "shards/1.safetensors"}, {"total_size": 4})
