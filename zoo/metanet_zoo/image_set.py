"""Images of one size with their labels: what an implicit neural representation is fitted to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


class ImageError(ValueError):
    """Images that cannot be used: says which file, what was found, what was expected, what to do."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images of one size, all grey or all colour.

    Args:
        images: `[n, height, width]` or `[n, height, width, 3]`; uint8 in 0…255 or floating point in 0…1.
        labels: `[n]` int64, or None.
        label_names: what the labels mean; empty if they are only numbers or there are none.
        ids: one name per image, unique within the set.

    Raises:
        ImageError: shapes, ranges or numbers do not fit together, or there is no image.
    """

    images: Tensor
    labels: Tensor | None
    label_names: tuple[str, ...]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if not (len(shape) == 3 or (len(shape) == 4 and shape[-1] == 3)) or 0 in shape:
            raise ImageError(
                f"images of shape {list(shape)}; expected [n, height, width] or [n, height, width, 3], none "
                "of them 0"
            )
        if self.images.dtype != torch.uint8:
            if not self.images.is_floating_point():
                raise ImageError(f"images of dtype {self.images.dtype}; expected uint8 or floating point")
            low, high = (float(value) for value in self.images.aminmax())
            if not (low >= 0 and high <= 1):
                raise ImageError(f"floating-point images must lie in 0…1, found {low:g}…{high:g}")
        if len(self.ids) != shape[0]:
            raise ImageError(f"{len(self.ids)} ids for {shape[0]} images")
        if self.labels is not None:
            if tuple(self.labels.shape) != shape[:1] or self.labels.dtype != torch.int64:
                raise ImageError(
                    f"labels of shape {list(self.labels.shape)} and dtype {self.labels.dtype} for {shape[0]} "
                    "images; expected one int64 per image"
                )
            if self.label_names and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(
                self.label_names
            ):
                raise ImageError(
                    f"labels outside 0…{len(self.label_names) - 1}, the range of the label names"
                )

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour images."""
        return 1 if self.images.ndim == 3 else 3

    def signal(self, index: int) -> Tensor:
        """One image as `[points, channels]` float32 in 0…1, row-major like `pixel_coordinates`."""
        image = self.images[index]
        values = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        return values.reshape(-1, self.channels)

    def limited(self, limit: int | None) -> ImageSet:
        """The first `limit` images; all of them if None.

        Raises:
            ImageError: `limit` is below one or above the number of images.
        """
        if limit is None:
            return self
        if not 1 <= limit <= len(self):
            raise ImageError(f"limit must be between 1 and the number of images, {len(self)}; found {limit}")
        labels = None if self.labels is None else self.labels[:limit]
        return ImageSet(self.images[:limit], labels, self.label_names, self.ids[:limit])

    def digest(self) -> str:
        """Sha256 over pixels, labels and ids: equal for equal sets."""
        state = hashlib.sha256(
            repr((tuple(self.images.shape), str(self.images.dtype), self.label_names)).encode()
        )
        state.update(self.images.contiguous().numpy().tobytes())
        state.update(b"" if self.labels is None else self.labels.contiguous().numpy().tobytes())
        state.update("\0".join(self.ids).encode())
        return state.hexdigest()


def pixel_coordinates(height: int, width: int) -> Tensor:
    """Centres of the corner pixels at ±1: `[height · width, 2]`, (row, column), row-major.

    References:
        Sitzmann et al. (2020), https://arxiv.org/abs/2006.09661, whose code spaces a grid like this.
    """
    axes = (torch.linspace(-1, 1, height), torch.linspace(-1, 1, width))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)
