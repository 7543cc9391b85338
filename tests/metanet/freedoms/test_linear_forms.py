"""Sparse elimination against dense linear algebra and enumeration."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from metanet.freedoms.linear_forms import Form, LinearSystem, independent, primitive, sparse


def random_system(seed: int, binary: bool) -> tuple[LinearSystem, list[Form], list[list[int]]]:
    """Return a solved system of random sparse equations, its unknowns, and the equations."""
    generator = torch.Generator().manual_seed(seed)
    system = LinearSystem(binary=binary)
    unknowns = [system.unknown() for _ in range(6)]
    rows = []
    for _ in range(4):
        row = torch.randint(-2, 3, (6,), generator=generator)
        row[torch.rand(6, generator=generator) < 0.5] = 0
        rows.append([int(n) for n in row])
        system.zero(system.combine(*zip(unknowns, rows[-1], strict=True)))
    return system, unknowns, rows


@pytest.mark.parametrize("seed", range(20))
def test_solutions_over_the_rationals(seed: int) -> None:
    system, unknowns, rows = random_system(seed, binary=False)
    found = system.solutions(dict(enumerate(unknowns)))
    matrix = torch.tensor(rows, dtype=torch.float64)
    assert len(found) == 6 - int(torch.linalg.matrix_rank(matrix))
    vectors = torch.tensor([[vector.get(i, 0) for i in range(6)] for vector in found]).reshape(-1, 6)
    assert not (matrix @ vectors.double().mT).any()
    assert len(independent([], found)) == len(found)
    small = sparse(found)
    assert len(independent(found, small)) == 0
    assert len(independent([], small)) == len(found)
    assert sum(map(len, small)) <= sum(map(len, found))


@pytest.mark.parametrize("seed", range(20))
def test_solutions_modulo_two(seed: int) -> None:
    system, unknowns, rows = random_system(seed, binary=True)
    found = system.solutions(dict(enumerate(unknowns)))
    kernel = [
        point
        for point in product((0, 1), repeat=6)
        if all(sum(a * b for a, b in zip(row, point, strict=True)) % 2 == 0 for row in rows)
    ]
    assert len(kernel) == 2 ** len(found)
    assert all(tuple(vector.get(i, 0) for i in range(6)) in kernel for vector in found)
    small = sparse(found, binary=True)
    assert len(independent([], small, binary=True)) == len(found)


def test_primitive_vectors_have_no_common_factor() -> None:
    assert primitive({"a": -4, "b": 6, "c": 0}) == {"a": 2, "b": -3}


def test_sparse_avoids_what_it_is_told_to() -> None:
    known = [{"gain": 1, "column": 1}]
    assert sparse([{"row": 1, "gain": 1}], known, binary=True) == [{"row": 1, "gain": 1}]
    assert sparse([{"row": 1, "gain": 1}], known, {"gain"}, binary=True) == [{"row": 1, "column": 1}]
