"""Mixing units: a matrix per group acts along the dimensions of a block, as a permutation matrix would.

Relaxed permutations (`metanet.matching.sinkhorn_rebasin`) and soft maps (`metanet.matching.soft_map`) act
this way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metanet.axis import Atom, Perm
from metanet.elements.wreath import chain_of

MatrixOf = Callable[[int, Perm], Tensor | None]
"""Position of an atom in its block, and the atom -> its matrix, or None where its units stay."""


def mix_block(tensor: Tensor, atoms: Sequence[Atom], parents: Sequence[int], matrix_of: MatrixOf) -> Tensor:
    r"""Multiply the dimensions of a block by matrices, parents first, nested units in every copy apart.

        T[…, i, …] <- Σ_j M_ij T[…, j, …] ,   nested:  T[…, c, …, i, …] <- Σ_j M^c_ij T[…, c, …, j, …]

    with a matrix for every combination c of units of the ancestors. On permutation matrices it does what
    `metanet.elements.wreath.permute_block` does. Differentiable.

    Args:
        tensor: ``[*block shape]``.
        atoms: of the block.
        parents: for every atom the position of the one that it is nested under, or -1.
        matrix_of: gives ``[m, n]``, or ``[copies, m, n]`` for a nested group.

    Returns:
        ``[*block shape]``, the dimensions that were multiplied having m units.
    """
    for at in sorted(range(len(atoms)), key=lambda i: len(chain_of(i, parents))):
        atom = atoms[at]
        matrix = matrix_of(at, atom) if isinstance(atom, Perm) else None
        if matrix is None:
            continue
        chain = chain_of(at, parents)
        if len(chain) == 1:
            tensor = torch.tensordot(matrix, tensor, ([1], [at])).movedim(0, at)
            continue
        front = list(range(len(chain)))
        moved = tensor.movedim(chain, front)
        outer, rest = moved.shape[: len(chain) - 1], moved.shape[len(chain) :]
        mixed = torch.bmm(matrix, moved.reshape(len(matrix), matrix.shape[-1], -1))
        tensor = mixed.reshape(*outer, matrix.shape[-2], *rest).movedim(front, chain)
    return tensor
