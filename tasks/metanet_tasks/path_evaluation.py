"""What a network on a path is worth: loss and accuracy on labelled images, or perplexity on a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet.matching.activations import load_state
from metanet.merging.data_free import rescale_without_data
from metanet.merging.repair import repair, reset_batch_norm
from metanet_zoo.network_data import labelled_images, logits_of, text_windows

State = Mapping[str, Tensor]
Correction = Literal["reset", "repair", "rescale", "data-free"]
CORRECTIONS: tuple[Correction, ...] = get_args(Correction)
CALIBRATION = 1000
"""Inputs that corrections look at."""


class Evaluation(Protocol):
    """Measures a state dict."""

    def measure(self, state: State) -> dict[str, float]:
        """Return the metrics of a state dict, ``loss`` among them."""
        ...


@dataclass
class ImageEvaluation:
    """Cross-entropy and accuracy of a classifier on labelled images.

    Args:
        model: a network with the state dicts' names.
        x: images as the network takes them.
        y: ``[n]`` labels.
        batch_size: images at a time.
        calibration: images that corrections look at.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    calibration: Tensor
    batch_size: int = 500

    def measure(self, state: State) -> dict[str, float]:
        """Return ``loss`` and ``accuracy``."""
        load_known(self.model, state)
        self.model.eval()
        with torch.no_grad():
            logits = torch.cat([logits_of(self.model(part)) for part in self.x.split(self.batch_size)])
        right = (logits.argmax(1) == self.y).double().mean()
        return {"loss": float(F.cross_entropy(logits, self.y)), "accuracy": float(right)}

    def corrected(
        self, kind: Correction, merged: State, a: State, b: State, weight: float
    ) -> dict[str, Tensor]:
        """Return a merge after a correction of its activations' statistics."""
        if kind == "reset":
            self.model.load_state_dict(dict(merged))
            reset_batch_norm(self.model, self.calibration.split(self.batch_size))
            return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        if kind == "data-free":
            return rescale_without_data(self.model, merged, a, b, self.calibration[:2], weight=weight)
        return repair(self.model, merged, a, b, self.calibration, weight=weight, correction=kind)


def image_evaluation(
    model: nn.Module,
    example: Tensor | None,
    data: str,
    *,
    split: str = "test",
    limit: int | None = None,
    mean: Sequence[float] = (0.0,),
    deviation: Sequence[float] = (1.0,),
) -> ImageEvaluation:
    """Prepare images for a classifier.

    Args:
        model: the network.
        example: an input it takes, whose shape the images are brought to; None tries ``[n, channels, h, w]``.
        data: what `metanet_zoo.open_images` opens; it must have labels.
        split: of the data, for the measurement; corrections look at the training images.
        limit: most images.
        mean: subtracted from values in 0…1, one for all or one per channel.
        deviation: what they are divided by.

    Raises:
        ValueError: images without labels, or of another size than the network takes.
    """

    def prepared(part: str, count: int | None) -> tuple[Tensor, Tensor]:
        return labelled_images(data, example, split=part, limit=count, mean=mean, deviation=deviation)

    x, y = prepared(split, limit)
    calibration, _ = prepared("train", CALIBRATION)
    return ImageEvaluation(model, x, y, calibration)


def load_known(model: nn.Module, state: State) -> None:
    """Load what a network has of a state dict.

    Raises:
        ValueError: entries of the network that are missing.
    """
    own = model.state_dict()
    load_state(model, {name: tensor for name, tensor in state.items() if name in own})


@dataclass
class TextEvaluation:
    """Loss and perplexity of a causal language model on a text.

    Args:
        model: of ``transformers``, with the state dicts' names.
        tokens: ``[windows, context]``.
    """

    model: nn.Module
    tokens: Tensor

    def measure(self, state: State) -> dict[str, float]:
        """Return ``loss`` in nats per token and ``perplexity``."""
        load_known(self.model, state)
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for window in self.tokens.split(4):
                logits = logits_of(self.model(input_ids=window))[:, :-1]
                targets = window[:, 1:]
                total += F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        loss = float(total) / (self.tokens.shape[0] * (self.tokens.shape[1] - 1))
        return {"loss": loss, "perplexity": float(torch.tensor(loss, dtype=torch.float64).exp())}


def text_evaluation(
    folder: Path, model: nn.Module, text: Path, *, context: int | None, limit: int
) -> TextEvaluation:
    """Prepare a text for a causal language model.

    Args:
        folder: with the model's tokenizer.
        model: of ``transformers``.
        text: the file.
        context: tokens per window; None takes 256, or the most that the model takes.
        limit: most windows.

    Raises:
        ValueError: no causal language model, or what `metanet_zoo.network_data.text_windows` refuses.
    """
    generates: Any = getattr(model, "can_generate", None)
    config = getattr(model, "config", None)
    if generates is None or not generates() or getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} in {folder} is no causal language model, which --text needs: its logits "
            "do not predict the next token"
        )
    return TextEvaluation(model, text_windows(folder, text, context=context, limit=limit))
