"""Elementwise operations: matching axes are one, broadcast ones stand aside."""

from __future__ import annotations

import torch
from torch import fx

from metanet.rules.registry import RULES, Call, RuleEntry, Value, freeze, is_range, rule, scalar_of
from metanet.skeleton import Attribute

UNARY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "bitwise_not", "ceil"), ()),
    **dict.fromkeys(
        ("cos", "cosh", "erf", "erfc", "exp", "exp2", "expm1", "floor", "frac", "hardsigmoid"), ()
    ),
    **dict.fromkeys(("hardswish", "isfinite", "isinf", "isnan", "log", "log10", "log1p", "log2"), ()),
    **dict.fromkeys(
        ("log_sigmoid", "logical_not", "mish", "neg", "positive", "reciprocal", "relu", "relu6"), ()
    ),
    **dict.fromkeys(("round", "rsqrt", "selu", "sgn", "sigmoid", "sign", "silu", "sin", "sinh", "sqrt"), ()),
    **dict.fromkeys(("square", "tan", "tanh", "trunc"), ()),
    "celu": ("alpha",),
    "clamp": ("min", "max"),
    "clamp_max": ("max",),
    "clamp_min": ("min",),
    "elu": ("alpha", "scale", "input_scale"),
    "gelu": ("approximate",),
    "hardshrink": ("lambd",),
    "hardtanh": ("min_val", "max_val"),
    "leaky_relu": ("negative_slope",),
    "nan_to_num": ("nan", "posinf", "neginf"),
    "rrelu": ("lower", "upper"),
    "softplus": ("beta", "threshold"),
    "softshrink": ("lambd",),
    "threshold": ("threshold", "value"),
}
"""Elementwise functions of one tensor, and the arguments that configure them."""

BINARY = (
    *("add", "sub", "mul", "div", "pow", "atan2", "fmod", "remainder", "floor_divide", "maximum", "minimum"),
    *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "bitwise_and"),
    *("bitwise_or", "bitwise_xor", "copysign", "hypot", "xlogy", "__and__", "__or__", "__xor__"),
)
"""Elementwise functions of two tensors, or of a tensor and a number."""

ALIASES = {
    **{"multiply": "mul", "divide": "div", "true_divide": "div", "subtract": "sub", "arctan2": "atan2"},
    **{"greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne"},
    **{"max": "maximum", "min": "minimum"},
}
"""Further names of elementwise functions of two tensors, and what they are called here."""

UNARY_ALIASES = {
    **{"absolute": "abs", "negative": "neg", "clip": "clamp", "fix": "trunc", "special_expit": "sigmoid"},
    **{f"arc{name}": f"a{name}" for name in ("cos", "cosh", "sin", "sinh", "tan", "tanh")},
}
"""The same for functions of one tensor."""

COMMUTATIVE = ("add", "mul", "maximum", "minimum", "eq", "ne", "hypot")

UNCHANGED = (
    *("alias", "clone", "contiguous", "detach", "lift", "lift_fresh", "lift_fresh_copy"),
    *("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
    *("to.dtype", "to.device", "to.other", "to.dtype_layout", "to.prim_Device", "_to_copy", "type_as"),
)
"""What passes a value on, in evaluation mode, up to its precision; the skeleton leaves it out."""


def unary(call: Call) -> Value:
    """Keep the dimensions of the one argument."""
    _, _, name = call.name.rpartition("aten.")
    kind = name.split(".")[0]
    kind = UNARY_ALIASES.get(kind, kind)
    x = next(value for _, value in call.values())
    return call.result(kind, x.dims, attributes=UNARY.get(kind, ()))


def binary(call: Call) -> Value:
    """Unify the dimensions of two tensors; a number, or a constant that is one, becomes an attribute."""
    kind = call.name.removeprefix("aten.").split(".")[0].strip("_")
    kind = ALIASES.get(kind, kind)
    values = [value for _, value in call.values()]
    dims = call.broadcast(_labelled(call, kind, values))
    extra: dict[str, Attribute] = {}
    names = [name for name in ("self", "other", "exponent") if name in call.arguments]
    reverse = kind == "rsub"
    kind = "sub" if reverse else kind
    for place, name in enumerate(names):
        argument = call.arguments[name]
        number = scalar_of(argument) if isinstance(argument, Value) else None
        if not isinstance(argument, Value) or (number is not None and len(values) > 1):
            extra["scalar"] = freeze(argument) if number is None else number
            reverse ^= place == 0 and kind not in COMMUTATIVE
    variables = [v for v in values if len(values) == 1 or scalar_of(v) is None]
    if reverse:
        extra["reverse"] = True
    for name, neutral in (("alpha", 1), ("rounding_mode", None)):
        if call.argument(name, neutral) != neutral:
            extra[name] = freeze(call.argument(name))
    return call.result(kind, dims, inputs=variables or values, extra=extra)


def _labelled(call: Call, kind: str, values: list[Value]) -> list[Value]:
    """Compare labels with 0, 1, …: along these the result has the dimension that they are labels of."""
    labels = [value.labels.root() for value in values if value.labels is not None]
    if kind in ("eq", "ne") and len(values) == 2 and labels:
        if len(labels) == 2 and labels[0] is labels[1]:
            return values
        other = values[0] if values[0].labels is None else values[1]
        if len(labels) == 1 and is_range(other) and max(other.shape) == labels[0].size:
            dims = tuple(labels[0] if dim.size == labels[0].size else dim for dim in other.dims)
            return [Value(dims) if value is other else value for value in values]
    call.forget(*values)
    return values


def elementwise(call: Call) -> Value:
    """Unify the dimensions of any number of tensors."""
    kind = call.name.removeprefix("aten.").split(".")[0]
    numbers = {
        name: freeze(argument)
        for name, argument in call.arguments.items()
        if isinstance(argument, (bool, int, float))
    }
    return call.result(kind, call.broadcast([value for _, value in call.values()]), extra=numbers)


def unchanged(call: Call) -> Value:
    """Pass the argument on, unless it is rounded to integers or truth values."""
    x = next(value for _, value in call.values())
    source = call.node.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["val"].dtype, call.node.meta["val"].dtype
    if before != after and x.constant is not None:
        return Value(x.dims, constant=x.constant.to(after))
    if after.is_floating_point or before == after:
        return x
    result = call.result("cast", x.dims, inputs=[x], extra={"dtype": str(after).removeprefix("torch.")})
    if after == torch.bool:
        call.forget(x)
    else:
        result.labels, result.offsets = x.labels, x.offsets
    return result


def _register() -> None:
    for name in (*UNARY, *UNARY_ALIASES):
        RULES[f"aten.{name}.default"] = RuleEntry(unary, stacked=True)
    for name in (*BINARY, "rsub", *(alias for alias in ALIASES if alias not in ("max", "min"))):
        for overload in (
            "Tensor",
            "Scalar",
            "default",
            "Tensor_Tensor",
            "Tensor_Scalar",
            "Tensor_mode",
            "Scalar_mode",
        ):
            RULES.setdefault(f"aten.{name}.{overload}", RuleEntry(binary, labels="read"))
    RULES["aten.pow.Scalar"] = RULES["aten.pow.Tensor_Tensor"]
    for name in ("max", "min"):
        RULES[f"aten.{name}.other"] = RuleEntry(binary)
    for name in (
        *(
            "where.self",
            "where.ScalarOther",
            "where.ScalarSelf",
            "where.Scalar",
            "lerp.Scalar",
            "lerp.Tensor",
        ),
        *(
            "addcmul.default",
            "addcdiv.default",
            "clamp.Tensor",
            "clamp_min.Tensor",
            "clamp_max.Tensor",
            "masked_fill.Scalar",
            "masked_fill.Tensor",
        ),
    ):
        RULES[f"aten.{name}"] = RuleEntry(elementwise)
    for name in UNCHANGED:
        target = name if "." in name else f"{name}.default"
        RULES[f"aten.{target}"] = RuleEntry(unchanged, stacked=True, labels="read")


_register()


@rule("aten.prelu.default", "aten._prelu_kernel.default")
def prelu(call: Call) -> Value:
    """Unify the slopes with the channels, unless there is one for all."""
    x, weight = call.tensor("self"), call.tensor("weight")
    dims = list(x.dims)
    if len(weight.dims) == 1 and weight.dims[0].size > 1:
        channel = min(1, len(dims) - 1)
        dims[channel] = call.unify(dims[channel], weight.dims[0])
        return call.result("prelu", dims, parameters=("weight",))
    result = call.broadcast([x, weight]) if len(weight.dims) > 1 else x.dims
    return call.result("prelu", result, parameters=("weight",))


@rule("aten.glu.default")
def glu(call: Call) -> Value:
    """Unify the two halves of a gated unit."""
    x = call.tensor("self")
    dim = call.dim("dim", len(x.dims), -1)
    half = x.dims[dim].size // 2
    gate = call.unify(*call.cut(x.dims[dim], [half]))
    return call.result("glu", (*x.dims[:dim], gate, *x.dims[dim + 1 :]), extra={"dim": dim})
