"""Complex numbers as pairs: real and imaginary parts are told apart, everything else goes along."""

from __future__ import annotations

from metanet.derivation.dimension import fixed
from metanet.rules.registry import Call, Value, rule


@rule("aten.view_as_complex.default")
def view_as_complex(call: Call) -> Value:
    """Read ``[…, 2]`` as complex numbers ``[…]``."""
    x = call.tensor("self")
    call.fix(x.dims[-1])
    return call.result("view_as_complex", x.dims[:-1])


@rule("aten.view_as_real.default")
def view_as_real(call: Call) -> Value:
    """Read complex numbers ``[…]`` as ``[…, 2]``."""
    return call.result("view_as_real", (*call.tensor("self").dims, fixed(2)))


@rule("aten.complex.default", "aten.polar.default")
def from_parts(call: Call) -> Value:
    """Make complex numbers of two real tensors, elementwise."""
    return call.result(call.name.split(".")[1], call.broadcast([value for _, value in call.values()]))


@rule(
    *("aten.real.default", "aten.imag.default", "aten.angle.default"),
    *("aten._conj.default", "aten.conj.default", "aten._conj_physical.default", "aten.conj_physical.default"),
)
def part(call: Call) -> Value:
    """Take a part of complex numbers, or conjugate them, elementwise."""
    kind = call.name.split(".")[1].strip("_").removesuffix("_physical")
    return call.result(kind, call.tensor("self").dims)
