"""Inner products of a tensor's versions with one another, in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import Floats
from metanet.merging.method import Pass
from metanet.merging.stretch import Stretch, last_axis


def gram_matrix(
    vectors: Callable[[Stretch], Sequence[Floats]],
) -> Generator[Pass, list[Any], NDArray[np.float64]]:
    """Sum the inner products of vectors over a tensor.

    Args:
        vectors: stretch -> ``[n]`` values of each vector.

    Yields:
        one pass.

    Returns:
        ``[k, k]``: partial products in the working dtype, summed exactly, so in no particular order.
    """

    def products(stretch: Stretch) -> list[float]:
        arrays = vectors(stretch)
        return [float(np.dot(a, b)) for i, a in enumerate(arrays) for b in arrays[i:]]

    partials = yield Pass(products)
    sums = [math.fsum(column) for column in zip(*partials, strict=True)]
    size = (math.isqrt(8 * len(sums) + 1) - 1) // 2
    gram = np.zeros((size, size))
    gram[np.triu_indices(size)] = sums
    return gram + np.triu(gram, 1).T


def row_gram_matrices(
    vectors: Callable[[Stretch], Sequence[Floats]],
) -> Generator[Pass, list[Any], NDArray[np.float64]]:
    """Take the inner products of vectors in every row (last axis) of a tensor.

    Args:
        vectors: stretch of whole rows -> ``[n]`` values of each vector.

    Yields:
        one pass.

    Returns:
        ``[rows, k, k]``.
    """

    def products(stretch: Stretch) -> NDArray[np.float64]:
        rows = np.stack([array.reshape(-1, last_axis(stretch.shape)) for array in vectors(stretch)], axis=1)
        wide = rows.astype(np.float64)
        gram: NDArray[np.float64] = wide @ wide.transpose(0, 2, 1)
        return gram

    partials = yield Pass(products)
    return np.concatenate(partials)
