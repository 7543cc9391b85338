"""Adapters added to a model while it is read, against their formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.run import merge_checkpoints

SHAPES = {"up.weight": (12, 8), "conv.weight": (6, 4, 3, 3), "emb.weight": (10, 8), "head.weight": (5, 8)}


@pytest.fixture
def model(tmp_path: Path) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    (tmp_path / "model").mkdir()
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    return tensors


def adapter(folder: Path, tensors: dict[str, Tensor], **config: Any) -> str:
    folder.mkdir()
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return str(folder)


def merged(tmp_path: Path, folder: str) -> dict[str, Tensor]:
    reference = f"{tmp_path / 'model'}+{folder}"
    recipe = {"merge_method": "passthrough", "models": [{"model": reference}]}
    merge_checkpoints(recipe, tmp_path / "out", overwrite=True)
    return load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize("rslora", [False, True])
def test_every_kind_of_tensor(model: dict[str, Tensor], tmp_path: Path, rslora: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    parts = {
        "up.lora_A.weight": torch.randn(2, 8, generator=draw),
        "up.lora_B.weight": torch.randn(12, 2, generator=draw),
        "conv.lora_A.weight": torch.randn(4, 4, 3, 3, generator=draw),
        "conv.lora_B.weight": torch.randn(6, 4, 1, 1, generator=draw),
        "emb.lora_embedding_A": torch.randn(2, 10, generator=draw),
        "emb.lora_embedding_B": torch.randn(8, 2, generator=draw),
        "head.weight": torch.randn(5, 8, generator=draw),
    }
    folder = adapter(tmp_path / "lora", parts, lora_alpha=6, alpha_pattern={"conv": 3}, use_rslora=rslora)
    result = merged(tmp_path, folder)

    def scale(alpha: float, rank: int) -> float:
        return float(alpha / rank**0.5 if rslora else alpha / rank)

    up = scale(6, 2) * parts["up.lora_B.weight"] @ parts["up.lora_A.weight"]
    conv = scale(3, 4) * parts["conv.lora_B.weight"].flatten(1) @ parts["conv.lora_A.weight"].flatten(1)
    emb = scale(6, 2) * (parts["emb.lora_embedding_B"] @ parts["emb.lora_embedding_A"]).T
    torch.testing.assert_close(result["up.weight"], model["up.weight"] + up)
    torch.testing.assert_close(result["conv.weight"], model["conv.weight"] + conv.reshape(6, 4, 3, 3))
    torch.testing.assert_close(result["emb.weight"], model["emb.weight"] + emb)
    assert torch.equal(result["head.weight"], parts["head.weight"])


def test_adapter_of_a_tensor_that_it_also_stores(model: dict[str, Tensor], tmp_path: Path) -> None:
    # peft stores the embedding beside the adapter of it.
    draw = torch.Generator().manual_seed(1)
    a, b, whole = (torch.randn(*shape, generator=draw) for shape in ((2, 10), (8, 2), (10, 8)))
    parts = {"emb.lora_embedding_A": a, "emb.lora_embedding_B": b, "emb.base_layer.weight": whole}
    result = merged(tmp_path, adapter(tmp_path / "lora", parts, lora_alpha=2))
    torch.testing.assert_close(result["emb.weight"], whole + (b @ a).T)


def test_dora_and_transposed_layers(model: dict[str, Tensor], tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    a, b, length = (torch.randn(*shape, generator=draw) for shape in ((2, 8), (12, 2), (12,)))
    parts = {"up.lora_A.weight": a, "up.lora_B.weight": b, "up.lora_magnitude_vector.weight": length}
    result = merged(tmp_path, adapter(tmp_path / "dora", parts, lora_alpha=4, use_dora=True))
    moved = model["up.weight"] + 2 * b @ a
    torch.testing.assert_close(result["up.weight"], length[:, None] * moved / moved.norm(dim=1, keepdim=True))
    # The layer's weight is [in, out], as in GPT-2: A is [r, in], B is [out, r].
    a, b = torch.randn(2, 12, generator=draw), torch.randn(8, 2, generator=draw)
    parts = {"up.lora_A.weight": a, "up.lora_B.weight": b}
    result = merged(tmp_path, adapter(tmp_path / "conv1d", parts, lora_alpha=4, fan_in_fan_out=True))
    torch.testing.assert_close(result["up.weight"], model["up.weight"] + 2 * (b @ a).T)


@pytest.mark.parametrize(
    ("parts", "config", "message"),
    [
        (
            {"op.lora_A.weight": (2, 8)},
            {},
            r"adapts 'op.weight', which the model has not; did you mean 'up.weight'",
        ),
        ({"up.lora_A.weight": (2, 8)}, {}, "expected lora_A and lora_B"),
        ({"up.lora_A.weight": (2, 9), "up.lora_B.weight": (12, 2)}, {}, "belongs to another model"),
        ({"other.bias": (3,)}, {}, "is no part of an adapter"),
        ({"up.lora_A.weight": (2, 8)}, {"peft_type": "IA3"}, "type IA3, expected LORA"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: dict[str, Tensor], tmp_path: Path, parts: dict[str, tuple[int, ...]], config: Any, message: str
) -> None:
    folder = adapter(tmp_path / "lora", {name: torch.ones(shape) for name, shape in parts.items()}, **config)
    with pytest.raises(CheckpointError, match=message):
        merged(tmp_path, folder)
