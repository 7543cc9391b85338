"""Roles: how the dimensions of entries meet the units of a group, as writing them, reading them or a bias.

The roles say where a freedom acts that is listed with its group (`metanet.units.Freedom`): a sign multiplies
rows, biases and readers, a phase shifts biases and multiplies readers.
"""

from __future__ import annotations

from collections.abc import Mapping

from metanet.axis import Role
from metanet.freedoms.equations.registry import occurrences
from metanet.freedoms.propagation import Network, Place
from metanet.leaf import leaves_of
from metanet.skeleton import Operation

COLUMNS_FIRST = frozenset(("matmul", "addmm", *(f"conv_transpose{n}d" for n in (1, 2, 3))))
"""Operations whose weight has its columns first."""
MATRICES = COLUMNS_FIRST | {"linear", "conv1d", "conv2d", "conv3d"}


def roles_of(network: Network, group: str) -> Mapping[Place, Role]:
    """Return the role of every place of a group; one that has several is a row."""
    places = network.places.get(group, ())
    entries = dict.fromkeys(entry for entry, _ in places)
    added = {entry for entry in entries if _only_added(network, entry)}
    met: dict[tuple[str, int], Role] = {}
    for entry in entries:
        axes = network.spec.axes[entry]
        for position, role in network.uses.get(entry, ()):
            op = network.operations[position]
            for dim, axis in enumerate(axes):
                if occurrences(axis, group):
                    here: Role = "bias" if entry in added else _role(op, role, dim, len(axes))
                    if met.setdefault((entry, dim), here) != here:
                        met[entry, dim] = "out"
    return {
        (entry, leaf): met.get((entry, leaves_of(network.spec.axes[entry])[leaf].dim), "out")
        for entry, leaf in places
    }


def _role(op: Operation, role: str, dim: int, rank: int) -> Role:
    if role == "bias" or role.startswith(("bias_", "b_")):
        return "bias"
    if role.startswith(("weight_", "w_")):
        return "in" if dim == 1 else "out"
    if role != "weight" or op.kind not in MATRICES:
        return "out"
    column = 0 if op.kind in COLUMNS_FIRST else rank - 1 if op.kind == "linear" else 1
    return "in" if dim == column else "out"


def _only_added(network: Network, entry: str) -> bool:
    """Return whether an entry is used as a tensor that is added to others, and as nothing else."""
    operations = network.operations
    users = [position for position, _ in network.uses.get(entry, ())]
    readers = [operations[reader] for user in users for reader, _ in network.readers[user]]
    plain = all(operations[user].kind == "parameter" for user in users)
    return plain and bool(readers) and all(reader.kind in ("add", "sub") for reader in readers)
