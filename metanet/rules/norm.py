"""Normalisations: gains, biases and statistics go with the axis they act on."""

from __future__ import annotations

from metanet.derivation.dimension import Dim, fixed, fuse
from metanet.rules.registry import Call, Result, Value, rule

AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var")


def _per_channel(call: Call, channel: Dim, names: tuple[str, ...]) -> Dim:
    for name in names:
        vector = call.optional(name)
        if vector is not None:
            channel = call.unify(channel, vector.dims[0])
    return channel


@rule("aten.batch_norm.default", "aten.instance_norm.default")
def batch_norm(call: Call) -> Value:
    """Unify gain, bias and running statistics with the channels; statistics are over the other dimensions."""
    x = call.tensor("input")
    at = min(1, len(x.dims) - 1)
    channel = _per_channel(call, x.dims[at], (*AFFINE, *STATISTICS))
    return call.result(
        call.name.split(".")[1],
        (*x.dims[:at], channel, *x.dims[at + 1 :]),
        parameters=(*AFFINE, *STATISTICS),
        attributes=("eps", "momentum"),
        extra={"training": True} if call.argument("training", False) else None,
    )


@rule("aten._native_batch_norm_legit_no_training.default", "aten._batch_norm_no_update.default")
def decomposed_batch_norm(call: Call) -> Result:
    """Normalise by running statistics, as decomposed programs say it; nothing is saved for training."""
    x = call.tensor("input")
    at = min(1, len(x.dims) - 1)
    channel = _per_channel(call, x.dims[at], (*AFFINE, *STATISTICS))
    dims = (*x.dims[:at], channel, *x.dims[at + 1 :])
    normed = call.result(
        "batch_norm", dims, parameters=(*AFFINE, *STATISTICS), attributes=("eps", "momentum")
    )
    return [normed, *(Value(tuple(map(fixed, shape))) for shape in call.shapes[1:])]


@rule("aten.group_norm.default")
def group_norm(call: Call) -> Value:
    """Factor the channels into groups that are normalised together and the channels within each."""
    x = call.tensor("input")
    groups = int(call.argument("num_groups"))
    channel = _per_channel(call, x.dims[1], AFFINE)
    channel = fuse(call.split(channel, [groups, channel.size // groups]))
    dims = (x.dims[0], channel, *x.dims[2:])
    return call.result("group_norm", dims, parameters=AFFINE, attributes=("num_groups", "eps"))


@rule("aten.layer_norm.default", "aten.rms_norm.default")
def layer_norm(call: Call) -> Value:
    """Unify gain and bias with the dimensions that are normalised together."""
    x = call.optional("input") or call.tensor("self")
    rank = len(call.argument("normalized_shape"))
    dims = list(x.dims)
    for name in AFFINE:
        vector = call.optional(name)
        if vector is not None:
            for i in range(rank):
                at = len(dims) - rank + i
                dims[at] = call.unify(dims[at], vector.dims[i])
    kind = call.name.split(".")[1]
    return call.result(kind, dims, parameters=AFFINE, attributes=("normalized_shape", "eps"))


@rule("aten._weight_norm.default", "aten._weight_norm_interface.default")
def weight_norm(call: Call) -> Value:
    """``w = g v / |v|``, the norm over all dimensions but one."""
    direction, gain = call.tensor("v"), call.tensor("g")
    dims = call.broadcast([direction, gain])
    return call.result("weight_norm", dims, attributes=("dim",))
