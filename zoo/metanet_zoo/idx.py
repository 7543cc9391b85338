"""The IDX files of MNIST and its relatives.

References:
    LeCun, Cortes and Burges, The MNIST database, http://yann.lecun.com/exdb/mnist/, "File formats".
    Xiao et al. (2017), Fashion-MNIST, https://arxiv.org/abs/1708.07747, for the same files.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metanet_zoo.image_set import ImageError, ImageSet

SPLITS = {"train": ("train",), "test": ("t10k", "test")}
"""Split -> how the names of its files begin."""

UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> Tensor:
    """Read one IDX file of unsigned bytes, gzipped or not.

    Args:
        path: the file; a name that ends in `.gz` is decompressed.

    Returns:
        uint8, of the shape that the file states.

    Raises:
        ImageError: not an IDX file of unsigned bytes, or longer or shorter than it states.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{path} cannot be read ({error}); fetch the file again") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise ImageError(
            f"{path} begins with the bytes {content[:4].hex(' ')!r}; expected 00 00 08 and the number of "
            "axes: an IDX file of unsigned bytes"
        )
    axes = content[3]
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    start, values = 4 + 4 * axes, math.prod(shape)
    if len(content) != start + values:
        raise ImageError(
            f"{path} states the shape {list(shape)}, {values} bytes, but holds "
            f"{max(len(content) - start, 0)}; it is truncated or damaged, fetch it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def open_idx(path: Path) -> ImageSet:
    """Images from a `…-images-idx3-ubyte[.gz]`, with the labels that lie beside it.

    Args:
        path: the file of images; labels are `…-labels-idx1-ubyte`, with or without `.gz`, in the same folder.

    Returns:
        the set; without labels if there is no such file. The numbers are the classes' names.

    Raises:
        ImageError: a file is broken, or images and labels differ in number.
    """
    images = read_idx(path)
    if images.ndim != 3:
        raise ImageError(f"{path} has shape {list(images.shape)}; expected [images, height, width]")
    stem = path.name.removesuffix(".gz")
    labels_stem = stem.replace("-images-idx3", "-labels-idx1")
    candidates = [path.with_name(labels_stem), path.with_name(f"{labels_stem}.gz")]
    found = next((file for file in candidates if labels_stem != stem and file.is_file()), None)
    labels = None if found is None else read_idx(found).long()
    if labels is not None and tuple(labels.shape) != (len(images),):
        raise ImageError(
            f"{found} holds labels of shape {list(labels.shape)} for {len(images)} images in {path}"
        )
    names = () if labels is None or not len(labels) else tuple(str(i) for i in range(int(labels.max()) + 1))
    prefix = stem.removesuffix("-images-idx3-ubyte")
    return ImageSet(images, labels, names, tuple(f"{prefix}/{i}" for i in range(len(images))))


def idx_images_in(folder: Path) -> list[Path]:
    """Files of images in IDX format in a folder."""
    return sorted(
        file for pattern in ("*-images-idx3-ubyte", "*-images-idx3-ubyte.gz") for file in folder.glob(pattern)
    )


def open_idx_folder(folder: Path, split: str) -> ImageSet:
    """Images of one split from a folder with MNIST's file names.

    Raises:
        ImageError: no file, or several, belong to the split.
    """
    if split not in SPLITS:
        raise ImageError(f"no split {split!r} of IDX files; known are {', '.join(SPLITS)}")
    files = [file for file in idx_images_in(folder) if file.name.startswith(SPLITS[split])]
    if len({file.name.removesuffix(".gz") for file in files}) != 1:
        raise ImageError(
            f"{folder}: found {[file.name for file in files]} for the split {split!r}; expected one file "
            f"{SPLITS[split][0]}-images-idx3-ubyte[.gz]"
        )
    return open_idx(files[0])
