"""Changes of an implicit neural representation that are exact changes of its signal.

A network f on coordinates x whose first layer is ``W x + b`` becomes ``f(A x + t)`` by ``W -> W A`` and
``b -> b + W t``: the picture is shifted, turned, scaled or sheared without being fitted again. As
augmentation this moves the *signal*, where noise moves the weights.

References:
    Shamsian et al. 2024, Improved generalization of weight space networks via augmentations,
    https://arxiv.org/abs/2402.04081 (rotation, translation and scaling of INRs; there the translation of a
    first layer, here the whole affine group, exactly).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metanet.axis import Fixed
from metanet.spec import WeightSpec


def coordinate_layer(spec: WeightSpec) -> tuple[str, str]:
    """Return the names of the weight and bias of the one linear layer that reads the coordinates.

    Args:
        spec: of the representation, derived (`metanet.spec_of`).

    Raises:
        ValueError: the network does not begin with one linear layer with a bias on all of its input.
    """
    inputs = [i for i, operation in enumerate(spec.operations) if operation.kind == "input"]
    readers = [op for op in spec.operations if set(op.inputs) & set(inputs)]
    if len(inputs) == 1 and len(readers) == 1 and readers[0].kind == "linear":
        weight, bias = readers[0].parameter("weight"), readers[0].parameter("bias")
        if weight is not None and bias is not None and isinstance(spec.axes[weight][1], Fixed):
            return weight, bias
    raise ValueError(
        "coordinates can be moved exactly only where one linear layer with a bias reads them; this network's "
        f"input is read by {', '.join(op.kind for op in readers) or 'nothing (the spec has no skeleton)'}"
    )


def move_coordinates(
    spec: WeightSpec, tensors: Mapping[str, Tensor], matrix: Tensor, offset: Tensor
) -> dict[str, Tensor]:
    """Return the weights of ``x -> f(A x + t)`` for every stacked network f.

    Args:
        spec: of the networks.
        tensors: entry name -> ``[b, *shape]``.
        matrix: A, ``[b, d, d]``.
        offset: t, ``[b, d]``.

    Raises:
        ValueError: see `coordinate_layer`.
    """
    weight, bias = coordinate_layer(spec)
    rows = tensors[weight]
    return {
        **tensors,
        weight: rows @ matrix.to(rows),
        bias: tensors[bias] + (rows @ offset.to(rows)[..., None])[..., 0],
    }


def random_motion(b: int, d: int, strength: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw A = 1 + strength · N and t = strength · n with normal N, n: ``[b, d, d]`` and ``[b, d]``.

    The unit of t is that of the coordinates, half the width of the picture for coordinates in [-1, 1].
    """
    matrix = torch.eye(d) + strength * torch.randn(b, d, d, generator=generator)
    return matrix, strength * torch.randn(b, d, generator=generator)
