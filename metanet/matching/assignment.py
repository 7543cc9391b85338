"""Linear assignment: the best permutation for a matrix of gains."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

Gains = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def assign(gains: Gains) -> Indices:
    """Return the permutation p that maximises Σ_i gains[i, p_i].

    Where the best column of every row is a different one, that is the answer and nothing is solved.

    Args:
        gains: ``[n, n]``, finite.

    Returns:
        ``[n]`` column of every row.

    References:
        Crouse 2016, On Implementing 2D Rectangular Assignment Algorithms,
        https://doi.org/10.1109/TAES.2016.140952 (as `scipy.optimize.linear_sum_assignment` does it).
    """
    best: Indices = np.asarray(gains.argmax(1), dtype=np.int64)
    if _distinct(best):
        return best
    # Reduced by the best of each row and then of each column, the search for augmenting paths ends earlier.
    cost = np.subtract(gains.max(1, keepdims=True), gains, dtype=np.float64)
    cost -= cost.min(0)
    _, columns = linear_sum_assignment(cost)
    return np.asarray(columns, dtype=np.int64)


def _distinct(columns: Indices) -> bool:
    seen = np.zeros(len(columns), dtype=bool)
    seen[columns] = True
    return bool(np.all(seen))


def assigned(gains: Gains, columns: Indices) -> float:
    """Return Σ_i gains[i, columns_i]."""
    return float(gains[np.arange(len(columns)), columns].sum(dtype=np.float64))
