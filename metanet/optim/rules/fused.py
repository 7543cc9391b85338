"""Passes over parameters that the compiler turns into one loop each: networks written out unit by unit.

The functions are plain PyTorch. Called as they are, they are a slow way to the same numbers; `compiled` hands
them to ``torch.compile``, which makes a C++ loop (or a Triton kernel, where the tensors are on a GPU) that
reads every parameter once and holds its features and units in registers. That takes tens of seconds once per
process for single tensors and minutes for stacks of small ones, less where the compiler's own cache has them.

Shapes: k tensors of r rows and c columns; h units.

References:
    The unrolled form is that of ``split_weights`` in Metz et al. 2022, https://arxiv.org/abs/2203.11860.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.fx.experimental import _config as _symbols

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

OPTIONS = {"cpp.enable_floating_point_contract_flag": "fast"}
"""Of the compiler, where it knows them: products and sums may be fused."""


@cache
def _options() -> dict[str, str | int | bool | Callable[..., Any]]:
    known = torch._inductor.list_options()
    return {name: value for name, value in OPTIONS.items() if name in known}


@cache
def _compiled(function: Callable[..., object]) -> Callable[..., object]:
    return torch.compile(function, dynamic=True, options=_options())


def compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return a function, compiled at its first call for shapes of any size.

    Raises:
        RuntimeError: (when called) there is no compiler.
    """

    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        usual = _symbols.use_duck_shape
        _symbols.use_duck_shape = False  # sizes that are equal are so by chance
        try:
            return _compiled(function)(*args, **kwargs)  # type: ignore[return-value]
        except RuntimeError as error:
            if "compiler" not in str(error).lower():
                raise
            raise RuntimeError(
                "compile=True needs a C++ compiler that torch.compile can use, such as g++; install one or "
                f"leave compile out, the results are the same ({str(error).splitlines()[0]})"
            ) from error
        finally:
            _symbols.use_duck_shape = usual

    return call


def units_of(features: Sequence[Tensor], weight: Tensor, start: Sequence[Tensor]) -> list[Tensor]:
    """Return ``start + weight features`` unit by unit, for weights ``[k, h, features]``."""
    units = list(start)
    for i, feature in enumerate(features):
        units = [unit + weight[:, j, i, None, None] * feature for j, unit in enumerate(units)]
    return units


def constants(values: Tensor) -> list[Tensor]:
    """Return ``[k, 1, 1]`` per unit, of ``[k, h]``."""
    return [values[:, j, None, None] for j in range(values.shape[1])]


def factored_features(
    sources: Sequence[Tensor], row_factors: Tensor, column_factors: Tensor, short: bool
) -> list[Tensor]:
    """Return the features of `metanet.optim.rules.factored` that differ from parameter to parameter.

    Args:
        sources: gradient, value, three momenta, second moment: ``[k, r, c]`` each.
        row_factors: ``[k, 3, r]``.
        column_factors: ``[k, 3, c]``.
        short: with the clipped gradient and g/√v.
    """
    gradient, _, *momenta, second = sources
    inverse = torch.rsqrt(second + 1e-6)
    factors = [row_factors[:, i, :, None] * column_factors[:, i, None] for i in range(3)]
    extra = [gradient.clamp(-0.1, 0.1), gradient * inverse] if short else []
    return [
        *sources,
        *(momentum * inverse for momentum in momenta),
        inverse,
        *extra,
        *(gradient * factor for factor in factors),
        *(momentum * factor for momentum, factor in zip(momenta, factors, strict=True)),
    ]


def factored_squares(
    sources: Sequence[Tensor], row_factors: Tensor, column_factors: Tensor, short: bool
) -> Tensor:
    """Return the ``[k, features]`` sums of squares of `factored_features`."""
    found = factored_features(sources, row_factors, column_factors, short)
    return torch.stack([feature.square().sum((1, 2)) for feature in found], 1)


def factored_network(
    sources: Sequence[Tensor],
    row_factors: Tensor,
    column_factors: Tensor,
    short: bool,
    weight: Tensor,
    row_biases: Tensor,
    column_biases: Tensor,
    later: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """Return the ``[k, outputs, r, c]`` outputs of a narrow network on `factored_features`.

    Args:
        sources: see `factored_features`.
        row_factors: likewise.
        column_factors: likewise.
        short: likewise.
        weight: ``[k, h, features]``, of the first layer.
        row_biases: ``[k, h, r]``.
        column_biases: ``[k, h, c]``.
        later: weights ``[P, h, inputs]`` and biases ``[P, h]`` of the second and third layer.
    """
    found = factored_features(sources, row_factors, column_factors, short)
    units = [row_biases[:, j, :, None] + column_biases[:, j, None] for j in range(weight.shape[1])]
    units = units_of(found, weight, units)
    for weights, biases in later:
        units = units_of([unit.relu() for unit in units], weights, constants(biases))
    return torch.stack(units, 1)
