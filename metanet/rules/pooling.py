"""Pooling, padding and resampling of positions, which are fixed."""

from __future__ import annotations

from metanet.derivation.dimension import Dim, fixed, fuse
from metanet.rules.registry import Call, Result, Value, freeze, rule

POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad", "divisor_override")


def _positions(call: Call, count: int) -> tuple[Dim, ...]:
    """Fix the last dimensions of the argument and return the dimensions of the result."""
    x = next(value for _, value in call.values())
    for dim in x.dims[len(x.dims) - count :]:
        call.fix(dim)
    return (*x.dims[: len(x.dims) - count], *map(fixed, call.shape[len(call.shape) - count :]))


def _rank(kind: str) -> int:
    return next(n for n in (1, 2, 3) if f"{n}d" in kind)


@rule(
    *(f"aten.{kind}_pool{n}d.default" for kind in ("max", "avg", "adaptive_avg") for n in (1, 2, 3)),
    *(f"aten.lp_pool{n}d.default" for n in (1, 2)),
)
def pool(call: Call) -> Value:
    """Pool positions, channel by channel."""
    kind = call.name.split(".")[1]
    dims = _positions(call, _rank(kind))
    names = tuple(name for name in (*POOL, "output_size", "norm_type") if name in call.arguments)
    return call.result(kind, dims, attributes=names)


@rule(
    *(f"aten.max_pool{n}d_with_indices.default" for n in (1, 2, 3)),
    *(f"aten.adaptive_max_pool{n}d.default" for n in (1, 2, 3)),
)
def max_pool_with_indices(call: Call) -> Result:
    """Pool positions, and say which one was the largest."""
    kind = call.name.split(".")[1].removesuffix("_with_indices")
    dims = _positions(call, _rank(kind))
    names = tuple(name for name in (*POOL, "output_size") if name in call.arguments)
    pooled = call.result(kind, dims, attributes=names)
    return [pooled, call.result("getitem", dims, inputs=[pooled], extra={"index": 1})]


@rule(
    *(
        f"aten.upsample_{kind}.{overload}"
        for kind in (
            "nearest1d",
            "nearest2d",
            "nearest3d",
            "linear1d",
            "bilinear2d",
            "trilinear3d",
            "bicubic2d",
        )
        for overload in ("default", "vec")
    ),
    *(f"aten._upsample_nearest_exact{n}d.{o}" for n in (1, 2, 3) for o in ("default", "vec")),
    *(f"aten._upsample_{kind}_aa.{o}" for kind in ("bilinear2d", "bicubic2d") for o in ("default", "vec")),
)
def upsample(call: Call) -> Value:
    """Resample positions."""
    kind = call.name.split(".")[1]
    names = tuple(n for n in ("align_corners", "scale_factors", "output_size") if n in call.arguments)
    return call.result("upsample", _positions(call, _rank(kind)), attributes=names, extra={"mode": kind})


@rule(
    "aten.pad.default",
    "aten.constant_pad_nd.default",
    *(f"aten.{kind}_pad{n}d.default" for kind in ("reflection", "replication") for n in (1, 2, 3)),
)
def pad(call: Call) -> Value:
    """Pad at the ends: a constant is a new part of a concatenation; any other padding tells indices apart."""
    x = call.tensor("self")
    amounts = [int(n) for n in call.argument("pad", call.argument("padding"))]
    kind = call.name.split(".")[1]
    constant = kind == "constant_pad_nd" or call.argument("mode") == "constant"
    dims = list(x.dims)
    for place in range(len(amounts) // 2):
        at, before, after = len(dims) - 1 - place, amounts[2 * place], amounts[2 * place + 1]
        if before or after:
            if constant:
                dims[at] = call.dimensions.pad(dims[at], before, after)
            else:
                call.fix(dims[at])
                dims[at] = fixed(call.shape[at])
    mode = "constant" if constant else freeze(call.argument("mode")) or kind.split("_")[0]
    extra = {"pad": tuple(amounts), "mode": mode, "value": freeze(call.argument("value", 0)) or 0}
    return call.result("pad", dims, extra=extra)


@rule("aten.pixel_shuffle.default", "aten.pixel_unshuffle.default")
def pixel_shuffle(call: Call) -> Value:
    """Move a fixed factor of the channels to the positions, or back."""
    x = call.tensor("self")
    kind = call.name.split(".")[1]
    factor = int(call.argument("upscale_factor", call.argument("downscale_factor", 1)))
    *batch, channel, height, width = x.dims
    call.fix(height)
    call.fix(width)
    if kind == "pixel_shuffle":
        outer, inner = call.split(channel, [channel.size // factor**2, factor**2])
        call.fix(inner)
    else:
        outer = fuse([channel, fixed(factor**2)])
    return call.result(kind, (*batch, outer, *map(fixed, call.shape[-2:])), extra={"factor": factor})


@rule("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(call: Call) -> Value:
    """Turn groups times channels into channels times groups."""
    x = call.tensor("self" if "self" in call.arguments else "input")
    groups = int(call.argument("groups"))
    outer, inner = call.split(x.dims[1], [groups, x.dims[1].size // groups])
    dims = (x.dims[0], fuse([inner, outer]), *x.dims[2:])
    return call.result("channel_shuffle", dims, attributes=("groups",))


@rule("aten.im2col.default")
def unfold(call: Call) -> Value:
    """Gather patches: ``[n, c, h, w]`` to ``[n, (c k), positions]``."""
    x = call.tensor("self")
    call.fix(x.dims[-1])
    call.fix(x.dims[-2])
    kernel = call.shape[-2] // x.dims[-3].size
    dims = (*x.dims[:-3], fuse([x.dims[-3], fixed(kernel)]), fixed(call.shape[-1]))
    return call.result("im2col", dims, attributes=("kernel_size", "dilation", "padding", "stride"))


@rule("aten.col2im.default")
def fold(call: Call) -> Value:
    """Add patches up where they overlap: ``[n, (c k), positions]`` to ``[n, c, h, w]``."""
    x = call.tensor("self")
    call.fix(x.dims[-1])
    channels = call.shape[-3]
    outer, inner = call.split(x.dims[-2], [channels, x.dims[-2].size // channels])
    call.fix(inner)
    dims = (*x.dims[:-2], outer, *map(fixed, call.shape[-2:]))
    names = ("output_size", "kernel_size", "dilation", "padding", "stride")
    return call.result("col2im", dims, attributes=names)


@rule("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sample(call: Call) -> Value:
    """Sample ``[n, c, h, w]`` at the places ``[n, h', w', 2]``, channel by channel: ``[n, c, h', w']``."""
    x, grid = call.tensor("input"), call.tensor("grid")
    for dim in (*x.dims[2:], grid.dims[-1]):
        call.fix(dim)
    [batch] = call.broadcast([Value(x.dims[:1]), Value(grid.dims[:1])])
    names = ("interpolation_mode", "padding_mode", "align_corners")
    return call.result("grid_sample", (batch, x.dims[1], *grid.dims[1:-1]), attributes=names)
