"""What each kind of operation does along the labels of its dimensions (`metanet.index_labels`).

A kind that has no reader, or a form of one that is not foreseen, costs nested groups and never soundness.
"""

from __future__ import annotations

from metanet import index_contractions, index_moves
from metanet.index_labels import READERS, Step, Tensors, Unreadable
from metanet.skeleton import Operation
from metanet.spec import WeightSpec

FAMILIES = (index_contractions, index_moves)


def labels_of(spec: WeightSpec, op: Operation) -> list[Step] | None:
    """Return the steps of an operation, or None if nothing is known about it."""
    function = READERS.get(op.kind)
    if function is None:
        return None
    inputs = [spec.operations[i].axes for i in op.inputs]
    parameters = {role: spec.axes[entry] for role, entry in op.parameters}
    try:
        return function(Tensors(op, inputs, parameters, dict(spec.sizes)))
    except Unreadable:
        return None
