"""Networks of checkpoints that can be run, and not only described."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from metanet.spec import WeightSpec
from metanet_zoo.checkpoint import open_checkpoint
from metanet_zoo.spec_source import SpecSource, find_spec

HINT = "name the network with --network package.module:factory"


@dataclass(frozen=True)
class Runnable:
    """A network with the names of a checkpoint, ready to take its weights.

    Args:
        model: the network; its weights are not the checkpoint's, unless it was given.
        example: an input it takes, whose shape images are brought to; None if it is not known.
        found: its spec and where that comes from; None if only an example input would tell.
        folder: with its configuration and tokenizer, or None.
    """

    model: nn.Module
    example: Tensor | None
    found: SpecSource | None
    folder: Path | None

    @property
    def spec(self) -> WeightSpec | None:
        """The spec, or None if only an example input would tell."""
        return None if self.found is None else self.found.spec


def runnable_network(
    checkpoint: str | os.PathLike[str],
    network: nn.Module | None = None,
    *,
    activation: str | None = None,
    spec_file: Path | None = None,
    trust_remote_code: bool = False,
) -> Runnable:
    """Return a network that computes what a checkpoint does, once it has its weights.

    Args:
        checkpoint: whatever `metanet_zoo.open_checkpoint` opens.
        network: the network, where it is at hand; None rebuilds it from the checkpoint.
        activation: of a plain sequential network.
        spec_file: take this spec instead of finding one.
        trust_remote_code: run the code that a Hugging Face folder brings along.

    Raises:
        ValueError: what the network computes is not known from the checkpoint alone.
    """
    if network is not None:
        found = None if spec_file is None else find_spec(checkpoint, spec_file=spec_file)
        return Runnable(network, None, found, None)
    found = find_spec(
        checkpoint, spec_file=spec_file, activation=activation, trust_remote_code=trust_remote_code
    )
    if found.kind == "sequential":
        assert found.model is not None
        if unknown := _unknown(found.model, activation):
            raise ValueError(f"{checkpoint} cannot be run: {unknown}; {HINT}")
        return Runnable(found.model, found.inputs[0], found, None)
    if found.kind == "huggingface":
        from metanet_zoo.huggingface_model import build_model

        built = build_model(found.config, trust_remote_code=trust_remote_code, device="cpu")
        if found.converted or any(name != stored for name, stored in found.names.items()):
            raise ValueError(
                f"{checkpoint} has other names than {type(built.model).__name__}, so it cannot be run as it "
                f"is: save it with save_pretrained of that class first, or {HINT}"
            )
        pixels = built.inputs.get("pixel_values")
        example = pixels if isinstance(pixels, torch.Tensor) else None
        # In float32 whatever the configuration says: a loss in bfloat16 is known to two digits.
        return Runnable(built.model.float(), example, found, open_checkpoint(checkpoint).files[0].parent)
    raise ValueError(f"{checkpoint} has a spec file, which does not say how to run it; {HINT}")


def _unknown(model: nn.Module, activation: str | None) -> str:
    """Return what names and shapes of a sequential network do not tell of its function."""
    if any(isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for layer in model.modules()):
        return "names and shapes do not tell its strides, padding and pooling"
    layers = sum(isinstance(layer, nn.Linear) for layer in model.modules())
    if activation is None and layers > 1:
        return "names and shapes do not tell its activation (--activation relu, tanh, …)"
    return ""


def float_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in memory, floating-point ones in float32 (float64 stays)."""
    return {
        name: tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in tensors.items()
    }
