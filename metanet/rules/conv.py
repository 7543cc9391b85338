"""Convolutions: channels are contracted group by group, positions and kernel offsets are fixed."""

from __future__ import annotations

from metanet.derivation.dimension import Dim, fixed
from metanet.rules.registry import Call, Value, rule

CONFIGURATION = ("stride", "padding", "dilation", "groups")


def _convolve(call: Call, kind: str, *, transposed: bool, attributes: tuple[str, ...]) -> Value:
    """Unify the channels of a convolution.

    Value ``[n, (g i), …]``; weight ``[(g o), i, …]``, or ``[(g i), o, …]`` if transposed; result
    ``[n, (g o), …]``. With several groups g the channels are a product, and i and o are shared by all g.
    """
    x, weight, bias = call.tensor("input"), call.tensor("weight"), call.optional("bias")
    groups = int(call.argument("groups", 1))
    spatial = len(weight.dims) - 2
    for dim in (*x.dims[len(x.dims) - spatial :], *weight.dims[2:]):
        call.fix(dim)
    channel = len(x.dims) - spatial - 1
    rows, columns = (weight.dims[1], weight.dims[0]) if transposed else (weight.dims[0], weight.dims[1])
    out: Dim = rows
    if groups == 1:
        call.unify(x.dims[channel], columns)
    else:
        g, inner = call.split(x.dims[channel], [groups, x.dims[channel].size // groups])
        other, one = call.split(weight.dims[0], [groups, weight.dims[0].size // groups])
        g = call.unify(g, other)
        call.unify(inner, one if transposed else columns)
        out = call.dimensions.reshape([g, rows], [groups * rows.size])[0] if transposed else rows
    if bias is not None:
        out = call.unify(out, bias.dims[0])
    sizes = call.shape[len(call.shape) - spatial :]
    dims = (*x.dims[:channel], out, *map(fixed, sizes))
    return call.result(kind, dims, parameters=("weight", "bias"), attributes=attributes)


@rule(*(f"aten.conv{n}d.{overload}" for n in (1, 2, 3) for overload in ("default", "padding")))
def conv(call: Call) -> Value:
    """Convolve 1, 2 or 3 spatial dimensions."""
    return _convolve(call, call.name.split(".")[1], transposed=False, attributes=CONFIGURATION)


@rule("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(call: Call) -> Value:
    """Convolve transposed."""
    attributes = ("stride", "padding", "output_padding", "groups", "dilation")
    return _convolve(call, call.name.split(".")[1], transposed=True, attributes=attributes)


@rule("aten.convolution.default")
def convolution(call: Call) -> Value:
    """Convolve, as decomposed programs say it."""
    transposed = bool(call.argument("transposed"))
    kind = f"conv{'_transpose' * transposed}{len(call.tensor('weight').dims) - 2}d"
    attributes = (*CONFIGURATION, *(("output_padding",) if transposed else ()))
    return _convolve(call, kind, transposed=transposed, attributes=attributes)
