"""Fourier transforms mix the indices of some dimensions and pass the others on."""

from __future__ import annotations

from metanet.derivation.dimension import fixed
from metanet.rules.registry import Call, Value, freeze, rule

TRANSFORMS = tuple(f"{kind}fft{rank}" for kind in ("", "i", "r", "ir", "h", "ih") for rank in ("", "2", "n"))


@rule(*(f"aten.fft_{name}.default" for name in TRANSFORMS))
def transform(call: Call) -> Value:
    """Transform one dimension (``dim``, the last one by default) or several."""
    x = call.tensor("self")
    rank = len(x.dims)
    kind = call.name.removeprefix("aten.fft_").split(".")[0]
    default = -1 if kind.endswith("fft") else (-2, -1) if kind.endswith("2") else None
    given = call.argument("dim", default)
    sizes = call.argument("s")
    if given is None:
        given = tuple(range(rank)) if sizes is None else tuple(range(-len(sizes), 0))
    mixed = {int(n) % rank for n in (given if isinstance(given, (list, tuple)) else (given,))}
    dims = []
    for i, dim in enumerate(x.dims):
        if i in mixed:
            call.fix(dim)
        dims.append(fixed(call.shape[i]) if i in mixed else dim)
    return call.result(
        kind, dims, extra={"dims": tuple(sorted(mixed)), "norm": freeze(call.argument("norm"))}
    )


@rule("aten.fft_fftshift.default", "aten.fft_ifftshift.default")
def shift(call: Call) -> Value:
    """Roll the zero frequency to the middle, or back."""
    x = call.tensor("self")
    moved = call.dims("dim", len(x.dims))
    dims = [call.fix(dim) if i in moved else dim for i, dim in enumerate(x.dims)]
    return call.result("roll", dims, extra={"dims": moved})
