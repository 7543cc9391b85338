"""Floats of 8 bits in files, with and without scales."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.run import merge_checkpoints


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_floats_of_8_bits_are_read_and_written(tmp_path: Path, dtype: str) -> None:
    narrow = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    tensors = [{"w": torch.randn(7, 5, generator=generator).to(narrow)} for _ in range(2)]
    models = []
    for i, own in enumerate(tensors):
        save_file(own, tmp_path / f"{i}.safetensors")
        models.append({"model": str(tmp_path / f"{i}.safetensors"), "parameters": {"weight": 0.5}})
    wanted = (tensors[0]["w"].float() + tensors[1]["w"].float()) / 2
    recipe = {"merge_method": "linear", "models": models}
    merge_checkpoints(recipe, tmp_path / "same.safetensors")
    same = load_file(tmp_path / "same.safetensors")["w"]
    assert same.dtype == narrow
    assert torch.equal(same.view(torch.uint8), wanted.to(narrow).view(torch.uint8))
    merge_checkpoints({**recipe, "dtype": "float32"}, tmp_path / "wide.safetensors")
    assert torch.equal(load_file(tmp_path / "wide.safetensors")["w"], wanted)
    save_file({"w": wanted}, tmp_path / "1.safetensors")
    mixed = {**recipe, "dtype": dtype, "out_dtype": "float32"}
    merge_checkpoints(mixed, tmp_path / "cast.safetensors", compat="mergekit")
    rounded = (tensors[0]["w"].float() + wanted.to(narrow).float()) / 2
    assert torch.equal(load_file(tmp_path / "cast.safetensors")["w"], rounded)


@pytest.mark.parametrize("scale", ["a.weight_scale_inv", "a.weight_scale", "a.scale_weight"])
def test_8_bit_floats_with_scales_are_refused(tmp_path: Path, scale: str) -> None:
    tensors = {"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), scale: torch.ones(1)}
    models = []
    for name in "ab":
        save_file(tensors, tmp_path / f"{name}.safetensors")
        models.append({"model": str(tmp_path / f"{name}.safetensors"), "parameters": {"weight": 1}})
    with pytest.raises(CheckpointError, match=f"scales of its own in '{scale}'.*dequantized"):
        merge_checkpoints({"merge_method": "linear", "models": models}, tmp_path / "out.safetensors")
    copied = {"merge_method": "passthrough", "models": [{"model": models[0]["model"]}]}
    merge_checkpoints(copied, tmp_path / "copy.safetensors")
    assert load_file(tmp_path / "copy.safetensors").keys() == tensors.keys()
