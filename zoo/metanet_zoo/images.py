"""Where images come from: IDX files, folders of pictures, the hub, or the digits in this package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import torch

from metanet_zoo.idx import idx_images_in, open_idx, open_idx_folder
from metanet_zoo.image_folder import open_image_folder
from metanet_zoo.image_set import ImageError as ImageError
from metanet_zoo.image_set import ImageSet as ImageSet

DIGITS = "digits"
HUB_PREFIX = "hf:"


def open_images(source: str | Path, *, split: str = "train", limit: int | None = None) -> ImageSet:
    """Open images from whatever `source` names.

    Args:
        source: "digits", the 1,797 handwritten digits of 8x8 pixels that ship with the package; a file
            `…-images-idx3-ubyte[.gz]`, or a folder with such files for `split`; a folder of PNG or JPEG
            files, or of one folder of them per class; "hf:org/name" or "hf:org/name:configuration", an image
            data set of the Hugging Face hub (needs the package `datasets`).
        split: "train" or "test" of IDX folders, or a split of a hub data set; the digits and image folders
            are not divided.
        limit: most images to take; the first ones, or as many of each class of an image folder.

    Returns:
        the set.

    Raises:
        ImageError: nothing there, or it cannot be used; says which file and why.
        ImportError: a hub data set without `datasets` installed.

    Example:
        >>> open_images("digits", limit=5).images.shape
        torch.Size([5, 8, 8])
    """
    if isinstance(source, str) and source == DIGITS:
        return open_digits().limited(limit)
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        from metanet_zoo.image_hub import open_hub_images

        return open_hub_images(source.removeprefix(HUB_PREFIX), split=split, limit=limit)
    path = Path(source)
    if path.is_file():
        return open_idx(path).limited(limit)
    if not path.is_dir():
        raise ImageError(
            f"no images at {source}: expected {DIGITS!r}, an IDX file, a folder of IDX, PNG or JPEG files, "
            "or hf:org/name"
        )
    if idx_images_in(path):
        return open_idx_folder(path, split).limited(limit)
    return open_image_folder(path, limit)


def open_digits() -> ImageSet:
    """Optical recognition of handwritten digits: 1,797 images of 8x8 pixels in ten classes.

    References:
        Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, https://doi.org/10.24432/C50P49, CC BY 4.0.
    """
    file = resources.files("metanet_zoo").joinpath("data", "digits.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        counts, labels = stored["images"], stored["labels"]
    images = torch.from_numpy(counts).float() / 16
    names = tuple(str(digit) for digit in range(10))
    return ImageSet(
        images, torch.from_numpy(labels).long(), names, tuple(f"digits/{i}" for i in range(len(images)))
    )
