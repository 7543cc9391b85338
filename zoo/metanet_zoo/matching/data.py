"""What methods that run the networks look at: a network and data for a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from metanet.derive import spec_of
from metanet.matching.method import Matcher
from metanet_zoo.network_data import NetworkData, labelled_images, text_windows
from metanet_zoo.runnable import runnable_network
from metanet_zoo.spec_source import SpecSource, find_spec

IMAGES = 1000
WINDOWS = 16


@dataclass(frozen=True)
class DataOptions:
    """Data, and how a network takes it.

    Args:
        images: labelled images (`metanet_zoo.open_images`).
        text: a text file, for causal language models with a tokenizer beside them.
        network: the network; None rebuilds it from the checkpoint.
        split: of the images; what is measured afterwards should be another.
        limit: most images (default 1000) or windows of text (default 16).
        mean: subtracted from pixel values in 0…1.
        deviation: what they are divided by.
        context: tokens per window of text; None takes 256, or the most that the model takes.
    """

    images: str | None = None
    text: Path | None = None
    network: nn.Module | None = None
    split: str = "train"
    limit: int | None = None
    mean: Sequence[float] = (0.0,)
    deviation: Sequence[float] = (1.0,)
    context: int | None = None


def prepare_data(
    method: Matcher,
    checkpoint: str,
    options: DataOptions | None,
    *,
    activation: str | None = None,
    spec_file: Path | None = None,
    trust_remote_code: bool = False,
) -> tuple[SpecSource, NetworkData | None]:
    """Return the spec of a checkpoint, and the network and data that a method looks at, if it does.

    Args:
        method: of matching.
        checkpoint: whose network is run.
        options: the data, if any was given.
        activation: of a plain sequential network.
        spec_file: take this spec instead of finding one.
        trust_remote_code: run the code that a Hugging Face folder brings along.

    Raises:
        ValueError: data that is missing or not looked at, or a network that cannot be run.
    """
    given = options is not None and (options.images is not None or options.text is not None)
    if method.needs == "weights":
        if given or (options is not None and options.network is not None):
            raise ValueError(f"matching by {method.name} looks at the weights alone; leave the data out")
        found = find_spec(
            checkpoint, spec_file=spec_file, activation=activation, trust_remote_code=trust_remote_code
        )
        return found, None
    if options is None or (options.images is None) == (options.text is None):
        what = "labelled images" if method.needs == "loss" else "images"
        raise ValueError(
            f"matching by {method.name} runs the networks: give --data ({what}) or --text (a text file), one "
            "of them"
        )
    runnable = runnable_network(
        checkpoint,
        options.network,
        activation=activation,
        spec_file=spec_file,
        trust_remote_code=trust_remote_code,
    )
    if options.text is not None:
        if runnable.folder is None:
            raise ValueError(
                f"{checkpoint} is no folder with a configuration and a tokenizer, which --text needs"
            )
        limit = options.limit or WINDOWS
        windows = text_windows(runnable.folder, options.text, context=options.context, limit=limit)
        data = NetworkData(runnable.model, (windows,))
    else:
        assert options.images is not None
        x, y = labelled_images(
            options.images,
            runnable.example,
            split=options.split,
            limit=options.limit or IMAGES,
            mean=options.mean,
            deviation=options.deviation,
        )
        data = NetworkData(runnable.model, (x,), y)
    source = runnable.found
    if source is None:
        source = SpecSource(
            spec_of(runnable.model, data.inputs[0][:2]),
            f"derived from {type(runnable.model).__name__}, as given",
            (),
            "module",
            model=runnable.model,
            inputs=(data.inputs[0][:2],),
        )
    return source, data
