"""Data as a network takes it: labelled images of its shape, windows of a text, and the loss on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from metanet_zoo.huggingface_model import read_config, setting
from metanet_zoo.images import open_images


def labelled_images(
    data: str,
    example: Tensor | None = None,
    *,
    split: str = "train",
    limit: int | None = None,
    mean: Sequence[float] = (0.0,),
    deviation: Sequence[float] = (1.0,),
) -> tuple[Tensor, Tensor]:
    """Prepare labelled images for a classifier.

    Args:
        data: what `metanet_zoo.open_images` opens; it must have labels.
        example: an input of the network, whose shape the images are brought to; None tries
            ``[n, channels, h, w]``.
        split: of the data.
        limit: most images.
        mean: subtracted from values in 0…1, one for all or one per channel.
        deviation: what they are divided by.

    Returns:
        ``[n, *shape]`` images and ``[n]`` labels.

    Raises:
        ValueError: images without labels, or of another size than the network takes.
    """
    images = open_images(data, split=split, limit=limit)
    if images.labels is None:
        raise ValueError(f"{data} has no labels; give a folder of one folder per class, or IDX files")
    values = images.images
    values = values.float() / 255 if not values.is_floating_point() else values.float()
    x = values[:, None] if values.ndim == 3 else values.permute(0, 3, 1, 2)
    x = (x - torch.tensor(list(mean))[:, None, None]) / torch.tensor(list(deviation))[:, None, None]
    if example is not None and x.shape[1:] != example.shape[1:]:
        if x[0].numel() != example[0].numel():
            raise ValueError(
                f"the images have shape {list(x.shape[1:])}, the network takes {list(example.shape[1:])}"
            )
        x = x.reshape(len(x), *example.shape[1:])
    return x, images.labels


POSITIONS = ("max_position_embeddings", "n_positions", "text_config.max_position_embeddings")
"""Settings that tell the longest text a model takes."""


def text_windows(folder: Path, text: Path, *, context: int | None, limit: int) -> Tensor:
    """Cut a text into windows of tokens, by the tokenizer in a folder.

    Args:
        folder: with the model's configuration and tokenizer.
        text: the file.
        context: tokens per window; None takes 256, or the most that the model takes.
        limit: most windows.

    Returns:
        ``[windows, context]`` ids.

    Raises:
        ValueError: no tokenizer or another model's, windows longer than the model takes, or a text shorter
            than one.
    """
    from transformers import AutoTokenizer

    config = read_config(folder)
    longest = setting(config, *POSITIONS)
    longest = longest if isinstance(longest, int) else None
    if context is None:
        context = min(256, longest or 256)
    if context < 2 or (longest is not None and context > longest):
        raise ValueError(
            f"found windows of {context} tokens (--context), expected 2 or more"
            + (f" and at most the {longest} that the model in {folder} takes" if longest else "")
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no tokenizer that transformers can read ({error})") from None
    ids: Tensor = tokenizer(text.read_text(encoding="utf-8"), return_tensors="pt", verbose=False).input_ids[0]
    windows = min(len(ids) // context, limit)
    if windows == 0:
        raise ValueError(f"{text} has {len(ids)} tokens, expected at least one window of {context}")
    known = setting(config, "vocab_size", "text_config.vocab_size")
    if isinstance(known, int) and int(ids.max()) >= known:
        raise ValueError(
            f"the tokenizer in {folder} makes token {int(ids.max())} of {text}, but the model has {known} "
            "tokens: tokenizer and weights do not belong together"
        )
    return ids[: windows * context].reshape(windows, context)


def logits_of(returned: object) -> Tensor:
    """Return the logits in what a network returns: itself, or the field of a model of ``transformers``."""
    found = getattr(returned, "logits", returned)
    if not isinstance(found, Tensor):
        raise ValueError(f"the network returns {type(found).__name__}, expected a tensor of logits")
    return found


@dataclass(frozen=True)
class NetworkData:
    """A network and data that it is run on, to be matched by.

    Args:
        model: the network.
        inputs: its arguments, one batch.
        targets: ``[n]`` labels, or None where the inputs are tokens that are to be predicted.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    targets: Tensor | None = None

    def loss(self) -> Callable[[dict[str, Tensor]], Tensor]:
        """Return the mean cross-entropy as a differentiable function of a state dict.

        Batch norms take the statistics of the batch, as they would be after a reset.
        """

        def loss(state: dict[str, Tensor]) -> Tensor:
            with batch_statistics(self.model):
                logits = logits_of(functional_call(self.model, state, self.inputs))
            if self.targets is not None:
                return F.cross_entropy(logits, self.targets)
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), self.inputs[0][:, 1:].flatten())

        return loss


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Run a network in evaluation mode, its batch norms on the statistics of the batch; all is put back."""
    modes = [(module, module.training) for module in model.modules()]
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    tracking = [norm.track_running_stats for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, tracked in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracked
