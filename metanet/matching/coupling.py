"""Couplings: optimal transport between two sets of units of equal weight each."""

from __future__ import annotations

from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import coo_array
from scipy.special import logsumexp

Costs = npt.NDArray[np.float64]
MAX_ASSIGNMENT = 4096
"""Copies of units up to which different numbers are solved as one assignment."""
MAX_PAIRS = 1_000_000
"""Pairs of units up to which a linear program is solved."""
MAX_ITERATIONS = 5000
TOLERANCE = 1e-9


def optimal_coupling(cost: Costs, *, regularization: float = 0.0) -> Costs:
    r"""Return the coupling that moves units onto others at least cost.

        minimise Σ_ij T_ij C_ij − ε H(T),   Σ_j T_ij = 1/m,   Σ_i T_ij = 1/n,   T ≥ 0 .

    Without entropy (ε = 0) it is exact: for equal numbers an assignment, since the vertices of doubly
    stochastic matrices are permutations (Birkhoff); for others the assignment of lcm(m, n) copies, or a
    linear program where these are too many.

    Args:
        cost: ``[m, n]``, finite.
        regularization: ε, as a fraction of the mean cost.

    Returns:
        ``[m, n]`` T, its sum one.

    Raises:
        ValueError: a negative regularization, or too many units to be solved without one.

    References:
        Cuturi 2013, Sinkhorn Distances, https://arxiv.org/abs/1306.0895 (entropic). Peyré and Cuturi 2019,
        Computational Optimal Transport, https://arxiv.org/abs/1803.00567.
    """
    if regularization < 0:
        raise ValueError(f"the regularization is a fraction of the mean cost, found {regularization}")
    m, n = cost.shape
    if regularization > 0:
        return _entropic(cost, regularization)
    copies = lcm(m, n)
    if copies <= MAX_ASSIGNMENT:
        return _assigned(cost, copies)
    if m * n <= MAX_PAIRS:
        return _program(cost)
    raise ValueError(
        f"{m} units onto {n} are too many to be solved exactly; set a regularization, such as 0.01"
    )


def _assigned(cost: Costs, copies: int) -> Costs:
    m, n = cost.shape
    each = copies // m, copies // n
    rows, columns = linear_sum_assignment(cost.repeat(each[0], 0).repeat(each[1], 1))
    coupling = np.zeros_like(cost)
    np.add.at(coupling, (rows // each[0], columns // each[1]), 1.0 / copies)
    return coupling


def _program(cost: Costs) -> Costs:
    m, n = cost.shape
    pairs = np.arange(m * n)
    constraints: Any = coo_array(
        (
            np.ones(2 * m * n),
            (np.concatenate([pairs // n, m + pairs % n]), np.concatenate([pairs, pairs])),
        )
    )
    sums = np.concatenate([np.full(m, 1.0 / m), np.full(n, 1.0 / n)])
    solved = linprog(cost.reshape(-1), A_eq=constraints.tocsr(), b_eq=sums, method="highs")
    if solved.x is None:
        raise ValueError(f"the linear program of {m} units onto {n} was not solved: {solved.message}")
    return np.asarray(solved.x, dtype=np.float64).reshape(m, n).clip(0.0)


def _entropic(cost: Costs, regularization: float) -> Costs:
    m, n = cost.shape
    scores = -cost / max(regularization * float(cost.mean()), np.finfo(np.float64).tiny)
    rows, columns = np.zeros((m, 1)), np.zeros((1, n))
    for _ in range(MAX_ITERATIONS):
        rows = -np.log(m) - logsumexp(scores + columns, axis=1, keepdims=True)
        columns = -np.log(n) - logsumexp(scores + rows, axis=0, keepdims=True)
        sums = np.exp(logsumexp(scores + rows + columns, axis=1))
        if float(np.abs(sums * m - 1).max()) < TOLERANCE:
            break
    coupling: Costs = np.exp(scores + rows + columns)
    return coupling
