"""What each kind of operation does along the labels of its dimensions (`metanet.nesting.labels`).

A kind that has no reader, or a form of one that is not foreseen, costs nested groups and never soundness. An
operation of your own takes one function beside its rule:

    @reader("scale_channels")                             # (input [b, c, n], gain [c]) -> [b, c, n]
    def scale_channels(t: Tensors) -> list[Step]:
        given = t.named("input", "gain")
        labels = numbered("d", 3)
        tensors = given["input"], t.result
        return [Step((*(lines(axes, labels) for axes in tensors), lines(given["gain"], labels[1:2])))]
"""

from __future__ import annotations

from metanet.nesting import contractions, moves
from metanet.nesting.labels import READERS, Step, Tensors, Unreadable
from metanet.skeleton import Operation
from metanet.spec import WeightSpec

FAMILIES = (contractions, moves)


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
