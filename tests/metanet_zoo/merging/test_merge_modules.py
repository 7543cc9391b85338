"""Models of several parts, each with models or layers of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from metanet.merging.recipe import RecipeError
from metanet_zoo.merging.run import merge_checkpoints


def write_model(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> Path:
    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def read_model(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_parts_have_recipes_of_their_own(tmp_path: Path) -> None:
    models = {}
    for seed, name in enumerate("ab"):
        tensors = {
            f"{part}.layers.{i}.w": torch.randn(3, 2, generator=torch.Generator().manual_seed(10 * seed + i))
            for part in ("vision_tower", "language_model")
            for i in range(2)
        }
        models[name] = write_model(tmp_path / name, tensors, config=None)
    a, b = str(models["a"]), str(models["b"])

    def part(weight: Any) -> dict[str, Any]:
        return {
            "models": [
                {"model": a, "parameters": {"weight": weight}},
                {"model": b, "parameters": {"weight": 1}},
            ]
        }

    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "modules": {"vision_tower": part(0), "text_decoder": part([0, 1])},
    }
    merge_checkpoints(recipe, tmp_path / "out")
    merged, first, second = (read_model(path) for path in (tmp_path / "out", models["a"], models["b"]))
    for name, share in [
        ("vision_tower.layers.1.w", 0.0),
        ("language_model.layers.0.w", 0.0),
        ("language_model.layers.1.w", 0.5),
    ]:
        torch.testing.assert_close(merged[name], share * first[name] + (1 - share) * second[name])
    del recipe["modules"]["vision_tower"]
    with pytest.raises(RecipeError, match=r"2 tensors belong to none of text_decoder, such as 'vision_tower"):
        merge_checkpoints(recipe, tmp_path / "other")
    recipe["modules"]["vision_towr"] = part(0)
    with pytest.raises(RecipeError, match="no tensor belongs to 'vision_towr'; did you mean 'vision_tower'"):
        merge_checkpoints(recipe, tmp_path / "other")


def test_parts_may_spell_out_their_layers(tmp_path: Path) -> None:
    models = {}
    config = {"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 2, "depth": 2}}
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        names = [f"vision_tower.layers.{i}.w" for i in range(2)]
        names += [
            "language_model.embed.w",
            *(f"language_model.layers.{i}.w" for i in range(3)),
            "lm_head.weight",
        ]
        tensors = {name: torch.randn(3, 2, generator=generator) for name in names}
        models[name] = write_model(tmp_path / name, tensors, config=config)
    a, b = str(models["a"]), str(models["b"])
    pieces: list[dict[str, Any]] = [
        {"sources": [{"model": a, "layer_range": [0, 2]}]},
        {"sources": [{"model": b, "layer_range": [1, 3], "parameters": {"scale": [1, 2]}}]},
    ]
    recipe = {
        "merge_method": "passthrough",
        "modules": {"vision_tower": {"models": [{"model": b}]}, "text_decoder": {"slices": pieces}},
    }
    merge_checkpoints(recipe, tmp_path / "out")
    merged, first, second = (read_model(path) for path in (tmp_path / "out", models["a"], models["b"]))
    layer = "language_model.layers.{}.w"
    wanted = {
        "vision_tower.layers.0.w": second["vision_tower.layers.0.w"],
        "vision_tower.layers.1.w": second["vision_tower.layers.1.w"],
        "language_model.embed.w": first["language_model.embed.w"],
        layer.format(0): first[layer.format(0)],
        layer.format(1): first[layer.format(1)],
        layer.format(2): second[layer.format(1)],
        layer.format(3): 2 * second[layer.format(2)],
        "lm_head.weight": second["lm_head.weight"],
    }
    assert set(merged) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(merged[name], tensor), name
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["text_config"]["num_hidden_layers"] == 4
    assert written["vision_config"] == config["vision_config"]
    pieces[1]["sources"][0]["layer_range"] = [1, 5]
    with pytest.raises(RecipeError, match="reaches beyond its 3 layers"):
        merge_checkpoints(recipe, tmp_path / "other")
