"""Folders of PNG and JPEG files, a class per sub-folder or flat."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metanet_zoo.image_set import ImageError, ImageSet

SUFFIXES = (".png", ".jpg", ".jpeg")
GREY_MODES = frozenset({"1", "L", "LA"})
COLOUR_MODES = frozenset({"RGB", "RGBA", "P", "CMYK", "YCbCr"})


def open_image_folder(folder: Path, limit: int | None = None) -> ImageSet:
    """Read PNG and JPEG files, in the order of their sorted paths.

    If all images are grey, so is the set; one colour image makes it a colour set. Transparency is dropped.

    Args:
        folder: holds the images themselves (no labels), or one folder of images per class.
        limit: most images to take; of classes, the same number each as nearly as their sizes allow.

    Returns:
        the set; the classes are the sub-folders' names, sorted, and the ids the paths within the folder.

    Raises:
        ImageError: no images, images both in the folder and in sub-folders, a broken or unusual image, or
            images of different sizes. The message names the file.
    """
    flat = _images_in(folder)
    classes = {
        child.name: files
        for child in sorted(folder.iterdir())
        if child.is_dir() and (files := _images_in(child))
    }
    if flat and classes:
        raise ImageError(
            f"{folder} holds images itself ({flat[0].name}, …) and in sub-folders ({', '.join(classes)}); "
            "expected either images without classes or one sub-folder per class"
        )
    if not flat and not classes:
        raise ImageError(
            f"{folder} holds no images: expected {', '.join(SUFFIXES)} files in it or in sub-folders"
        )
    if flat:
        files, labels = flat, None
    else:
        files = [file for members in classes.values() for file in members]
        labels = torch.repeat_interleave(torch.tensor([len(members) for members in classes.values()]))
    if limit is not None:
        if not 1 <= limit <= len(files):
            raise ImageError(f"limit must be between 1 and the number of images, {len(files)}; found {limit}")
        kept = list(range(limit)) if flat else _evenly([len(members) for members in classes.values()], limit)
        files = [files[i] for i in kept]
        labels = None if labels is None else labels[kept]
    ids = tuple(file.relative_to(folder).as_posix() for file in files)
    return ImageSet(_read(files), labels, tuple(classes), ids)


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )


def _evenly(sizes: list[int], limit: int) -> list[int]:
    """Positions of `limit` files among classes laid end to end: every class's first, then second, … ones."""
    starts = np.cumsum([0, *sizes[:-1]])
    ranked = sorted(
        (rank, int(start) + rank) for start, size in zip(starts, sizes, strict=True) for rank in range(size)
    )
    return sorted(position for _, position in ranked[:limit])


def _read(files: list[Path]) -> Tensor:
    arrays = [_pixels(file) for file in files]
    sizes = Counter(array.shape[:2] for array in arrays)
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        odd = next(i for i, array in enumerate(arrays) if array.shape[:2] != usual)
        raise ImageError(
            f"{files[odd]} has {arrays[odd].shape[0]}x{arrays[odd].shape[1]} pixels (height x width), most "
            f"others {usual[0]}x{usual[1]}; resize or remove it: all images of a set have one size"
        )
    if any(array.ndim == 3 for array in arrays):
        arrays = [array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2) for array in arrays]
    return torch.from_numpy(np.stack(arrays))


def _pixels(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Decoded image, `[height, width]` if it is grey and `[height, width, 3]` otherwise."""
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            mode = image.mode
            if mode not in GREY_MODES | COLOUR_MODES:
                raise ImageError(
                    f"{file} has the pixel mode {mode!r}; expected 8 bits per channel, convert it first"
                )
            return np.asarray(image.convert("L" if mode in GREY_MODES else "RGB"))
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{file} is no readable PNG or JPEG ({error}); replace or remove it") from None
