"""The options by which verbs that run networks are told on what: images or a text, and how they are read."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_data_options(parser: argparse.ArgumentParser, *, split: str, images: str) -> None:
    """Add the options.

    Args:
        parser: of the verb.
        split: of the images that is taken by default.
        images: how many of them are taken by default, for the help.
    """
    add = parser.add_argument
    add(
        "--data", metavar="IMAGES", help="labelled images: digits, IDX files, a folder per class, hf:org/name"
    )
    add("--text", type=Path, metavar="FILE", help="a text, for causal language models")
    add("--network", metavar="OBJECT", help="package.module:factory of the network, if it is no plain one")
    add("--split", default=split, help=f"of the images (default {split})")
    add(
        "--limit",
        type=int,
        metavar="N",
        help=f"most images (default {images}), or windows of text (default 16)",
    )
    add("--mean", type=numbers, default=(0.0,), metavar="M,…", help="subtracted from values in 0…1")
    add("--deviation", type=numbers, default=(1.0,), metavar="S,…", help="what they are divided by")
    add(
        "--context",
        type=int,
        metavar="N",
        help="tokens per window of text (default 256, or the model's most)",
    )


def numbers(text: str) -> tuple[float, ...]:
    """Read numbers separated by commas.

    Example:
        >>> numbers("0.49,0.48,0.45")
        (0.49, 0.48, 0.45)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers separated by commas") from None
