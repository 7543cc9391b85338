"""Hugging Face models without their weights: built from ``config.json`` on the meta device, with inputs.

Nothing of a repository's own code runs unless that is asked for, and nothing is downloaded: the classes are
those of the installed ``transformers``.
"""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metanet_zoo.errors import CheckpointError

TOKENS = 8
"""Length of example texts."""
SAMPLES = 4000
"""Length of example sounds: a quarter of a second."""


@dataclass(frozen=True)
class HuggingFaceModel:
    """A model of ``transformers`` without values, and inputs it runs on.

    Args:
        model: on the meta device, in evaluation mode.
        inputs: keyword arguments of its forward.
        config: its configuration, an object of ``transformers``.
        notes: what was assumed, one sentence each.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    config: Any
    notes: tuple[str, ...] = field(default=())


def read_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Read a folder's ``config.json`` with ``transformers``.

    Args:
        folder: where it lies.
        trust_remote_code: run the code that the folder brings, for architectures that are not installed.

    Raises:
        CheckpointError: unreadable, quantised, or of an architecture that ``transformers`` does not have.
        ImportError: ``transformers`` is not installed.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}), expected a model's configuration") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: a JSON {type(raw).__name__}, expected a model's configuration")
    if "model_type" not in raw:
        raise CheckpointError(
            f"{path}: no model_type, so transformers cannot tell the architecture; put a spec beside it "
            "(metanet inspect package.module:factory --input … --save-spec model.spec.json writes one)"
        )
    if "quantization_config" in raw:
        method = raw["quantization_config"]
        method = method.get("quant_method", "") if isinstance(method, dict) else ""
        raise CheckpointError(
            f"{path}: the weights are quantised ({method or 'unknown method'}) and are not those of the "
            "architecture; dequantise the checkpoint first, or inspect the one that it was made from"
        )
    remote = "auto_map" in raw
    with _quiet():
        try:
            return _transformers().AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
        except Exception as error:
            # Whatever transformers raises: the reason is in its message.
            reason = " ".join(str(error).split())[:300]
            hint = (
                "the folder brings code of its own, which --trust-remote-code runs"
                if remote and not trust_remote_code
                else "a newer transformers may know it, or put a spec beside the file"
            )
            raise CheckpointError(
                f"{path}: transformers {transformers_version()} cannot read the configuration of "
                f"{raw['model_type']!r} ({type(error).__name__}: {reason}); {hint}"
            ) from None


def build_model(config: Any, *, trust_remote_code: bool = False, device: str = "meta") -> HuggingFaceModel:
    """Build the model that a configuration describes, and example inputs for it.

    The class is the first one that ``config.architectures`` names, else the bare model of its type.

    Args:
        config: from `read_config`.
        trust_remote_code: allow a class that the folder brings.
        device: ``meta`` for shapes alone.

    Raises:
        CheckpointError: it cannot be built, or takes inputs that are not text, images or sound.
    """
    transformers = _transformers()
    wanted = (getattr(config, "architectures", None) or [None])[0]
    found = getattr(transformers, wanted, None) if wanted else None
    notes: tuple[str, ...] = ()
    with _quiet(), torch.device(device):
        try:
            if found is not None:
                model = found._from_config(config, **_implementations(found))
            else:
                model = _automatic(transformers, config, wanted, trust_remote_code)
                named = f"{wanted} is not in transformers {transformers_version()}" if wanted else "no class"
                notes = (f"{named}; built {type(model).__name__} instead",)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{wanted or config.model_type} cannot be built from its configuration "
                f"({type(error).__name__}: {reason}); put a spec beside the file"
            ) from None
    model.eval()
    return HuggingFaceModel(model, example_inputs(model, config), config, notes)


def _automatic(transformers: Any, config: Any, wanted: str | None, trust_remote_code: bool) -> Any:
    table = getattr(config, "auto_map", None) or {}
    if trust_remote_code:
        for name in table:
            if table[name].rpartition(".")[2] == wanted and hasattr(transformers, name):
                return getattr(transformers, name).from_config(config, trust_remote_code=True)
    return transformers.AutoModel.from_config(config, trust_remote_code=trust_remote_code)


def _implementations(kind: Any) -> dict[str, str]:
    """Return how experts are computed: all at once, which can be traced; routing one by one cannot."""
    can = getattr(kind, "_can_set_experts_implementation", None)
    return {"experts_implementation": "batched_mm"} if can is not None and can() else {}


def example_inputs(model: nn.Module, config: Any) -> dict[str, Any]:
    """Return keyword arguments that a model of ``transformers`` runs on, by its signature and configuration.

    Texts are `TOKENS` long, images and spectrograms of the configured size; values are drawn with seed 0.

    Args:
        model: of ``transformers``.
        config: its configuration.

    Raises:
        CheckpointError: it takes something else.
    """
    accepted = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {}
    for name, make in _MAKERS.items():
        if name in accepted and (name != "input_ids" or "input_features" not in inputs):
            made = make(config, generator)
            if made is not None:
                inputs[name] = made
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = _tokens(config, generator)
    if not inputs:
        raise CheckpointError(
            f"{type(model).__name__} takes {', '.join(list(accepted)[:6])}, which is neither text, images "
            "nor sound; put a spec beside the file (metanet inspect package.module:factory writes one)"
        )
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return inputs


def _tokens(config: Any, generator: torch.Generator) -> Tensor | None:
    size = setting(config, "vocab_size", "text_config.vocab_size", "decoder.vocab_size")
    if not isinstance(size, int):
        return None
    taken = {setting(config, f"{word}_token_id") for word in ("pad", "image", "bos", "eos")}
    free = [token for token in range(min(size, 64)) if token not in taken] or [0]
    drawn = torch.randint(len(free), (2, TOKENS), generator=generator)
    ids = torch.tensor(free)[drawn]
    last = setting(config, "eos_token_id", "text_config.eos_token_id")
    if isinstance(last, int) and 0 <= last < size:
        ids[:, -1] = last
    return ids


def _images(config: Any, generator: torch.Generator) -> Tensor | None:
    size = setting(
        config, "image_size", "vision_config.image_size", "input_size", "backbone_config.image_size"
    )
    if size is None:
        size = 64
    if isinstance(size, int):
        size = (size, size)
    channels = setting(config, "num_channels", "vision_config.num_channels", "in_channels") or 3
    shape = [2, int(channels), *map(int, size)]
    frames = setting(config, "num_frames")
    if isinstance(frames, int) and setting(config, "tubelet_size") is not None:
        shape.insert(1, frames)
    return torch.randn(shape, generator=generator)


def _spectrogram(config: Any, generator: torch.Generator) -> Tensor | None:
    bins = setting(config, "num_mel_bins", "audio_config.num_mel_bins", "input_feat_per_channel")
    if not isinstance(bins, int):
        return None
    positions = setting(config, "max_source_positions", "audio_config.max_source_positions")
    if setting(config, "input_feat_per_channel") is None and isinstance(positions, int):
        return torch.randn(2, bins, 2 * positions, generator=generator)
    return torch.randn(2, 64, bins, generator=generator)


def _sound(config: Any, generator: torch.Generator) -> Tensor | None:
    bins, length = setting(config, "num_mel_bins"), setting(config, "max_length")
    if isinstance(bins, int) and isinstance(length, int):
        return torch.randn(2, length, bins, generator=generator)
    channels = setting(config, "audio_channels")
    shape = (2, SAMPLES) if not isinstance(channels, int) else (2, channels, SAMPLES)
    return torch.randn(shape, generator=generator)


_MAKERS = {
    "input_features": _spectrogram,
    "input_values": _sound,
    "pixel_values": _images,
    "input_ids": _tokens,
}


def setting(config: Any, *names: str) -> Any:
    """Return the first of some dotted settings of a configuration that is there, or None."""
    for name in names:
        value = config
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None:
            return value
    return None


def transformers_version() -> str:
    """Return the version of the installed ``transformers``."""
    return str(_transformers().__version__)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ImportError(
            "building a model from config.json needs the package transformers (pip install "
            "'metanet-toolkit[transformers]'); or put a spec beside the file"
        ) from None
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' advice about loading, which nobody asked for here, off the terminal."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
