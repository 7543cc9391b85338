"""Floats of 8 bits, in NumPy: read by a table, written to the nearest, ties to even.

E4M3 has no infinities: what lies beyond its 448 by more than half a step is NaN. E5M2 is the upper half of
float16.

References:
    P. Micikevicius et al., FP8 formats for deep learning, 2022. https://arxiv.org/abs/2209.05433
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray


def _e4m3() -> NDArray[np.float32]:
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


def _e5m2() -> NDArray[np.float32]:
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


VALUES: Mapping[str, NDArray[np.float32]] = MappingProxyType({"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2()})
"""Safetensors name -> ``[256]`` number of every byte."""

BEYOND: Mapping[str, float] = MappingProxyType({"F8_E4M3": 480.0, "F8_E5M2": 65536.0})
"""What would follow the largest number; the halfway point to it is where overflow begins."""


def _halfways(dtype: str) -> NDArray[np.float64]:
    values = VALUES[dtype][:128]
    steps = np.append(values[np.isfinite(values)].astype(np.float64), BEYOND[dtype])
    return np.asarray((steps[:-1] + steps[1:]) / 2)


HALFWAYS: Mapping[str, NDArray[np.float64]] = MappingProxyType({name: _halfways(name) for name in VALUES})
"""Magnitudes halfway between the numbers of neighbouring bytes; all are exact in float32."""
NAN = 0x7F


def decode8(raw: NDArray[np.uint8], dtype: str, out: NDArray[np.floating[Any]]) -> None:
    """Turn bytes into working floats, exactly.

    Args:
        raw: ``[n]``.
        dtype: a key of `VALUES`.
        out: ``[n]``, overwritten.
    """
    with np.errstate(invalid="ignore"):
        np.copyto(out, VALUES[dtype][raw], casting="same_kind")


def encode8(values: NDArray[np.floating[Any]], dtype: str, out: NDArray[np.uint8]) -> None:
    """Round working floats to nearest, ties to even, and store them; overflow gives infinity or NaN.

    Args:
        values: ``[n]``; overwritten.
        dtype: a key of `VALUES`.
        out: ``[n]``, overwritten.
    """
    negative = np.signbit(values)
    np.absolute(values, out=values)
    halfways = HALFWAYS[dtype].astype(values.dtype)
    codes = np.searchsorted(halfways, values)
    # A tie belongs to the even one of its two neighbours.
    odd = np.flatnonzero(codes & 1)
    ties = odd[halfways[np.minimum(codes[odd], halfways.size - 1)] == values[odd]]
    codes[ties] += 1
    codes[np.isnan(values)] = NAN
    np.copyto(out, codes, casting="unsafe")
    out[negative] |= 0x80
