"""Functions of square and tall matrices, as parametrisations of weights use them."""

from __future__ import annotations

from metanet.derivation.dimension import fixed
from metanet.rules.registry import Call, Value, rule


@rule(
    *(f"aten.{name}.default" for name in ("matrix_exp", "linalg_matrix_exp", "inverse", "linalg_inv")),
    *(f"aten.{name}.default" for name in ("matrix_power", "linalg_matrix_power")),
)
def similar(call: Call) -> Value:
    """Take a power series or the inverse: ``f(P A Pᵀ) = P f(A) Pᵀ``, rows and columns are one."""
    x = next(value for _, value in call.values())
    one = call.unify(x.dims[-2], x.dims[-1])
    return call.result(call.name.split(".")[1], (*x.dims[:-2], one, one))


@rule("aten.linalg_householder_product.default", "aten.orgqr.default")
def householder(call: Call) -> Value:
    """Multiply reflections, one per column: their order and the triangle they leave fix both dimensions."""
    x, scales = (value for _, value in call.values())
    for dim in (*x.dims[-2:], scales.dims[-1]):
        call.fix(dim)
    return call.result("householder_product", (*x.dims[:-2], *map(fixed, call.shape[-2:])))
