"""Image data sets of the Hugging Face hub."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from metanet_zoo.image_folder import COLOUR_MODES, GREY_MODES
from metanet_zoo.image_set import ImageError, ImageSet


def open_hub_images(name: str, *, split: str, limit: int | None) -> ImageSet:
    """Images and labels of a hub data set.

    The first column of images and the first column of class labels are taken.

    Args:
        name: "org/name" or "org/name:configuration".
        split: as the data set names it.
        limit: most images to take, the first ones.

    Returns:
        the set.

    Raises:
        ImportError: `datasets` is not installed.
        ImageError: the data set cannot be loaded, or has no column of images, or images of several sizes.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f"the images hf:{name} need the package `datasets`: pip install 'metanet-toolkit[huggingface]'"
        ) from None
    repository, _, configuration = name.partition(":")
    try:
        table = datasets.load_dataset(repository, configuration or None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise ImageError(f"hf:{name}, split {split!r}, cannot be loaded: {error}") from None
    images = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
    classes = [column for column, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images:
        raise ImageError(f"hf:{name} has no column of images; its columns are {', '.join(table.features)}")
    if limit is not None:
        table = table.select(range(min(limit, len(table))))
    arrays = [_pixels(row[images[0]], f"hf:{name}, row {i}") for i, row in enumerate(table)]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ImageError(
            f"hf:{name} has images of several shapes ({sorted(shapes)[:4]}); expected one size and mode"
        )
    labels = torch.tensor(table[classes[0]]) if classes else None
    names = tuple(table.features[classes[0]].names) if classes else ()
    ids = tuple(f"{repository}/{split}/{i}" for i in range(len(arrays)))
    return ImageSet(torch.from_numpy(np.stack(arrays)), labels, names, ids).limited(limit)


def _pixels(image: Any, origin: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    if image.mode not in GREY_MODES | COLOUR_MODES:
        raise ImageError(f"{origin} has the pixel mode {image.mode!r}; expected 8 bits per channel")
    return np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))
