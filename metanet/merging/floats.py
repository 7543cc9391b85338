"""Stored numbers to working floats and back, in NumPy: bf16 by bit shifts; whether they are finite."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanet.merging.float8 import VALUES, decode8, encode8

Floats = NDArray[np.floating[Any]]
"""Working floats: float32, or float64 where an input is."""
Bytes = NDArray[np.uint8]

FLOAT_DTYPES: Mapping[str, int] = MappingProxyType(
    {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
)
"""Bytes of a value by the safetensors name of the dtypes that methods compute on."""

OVERFLOW: Mapping[str, float] = MappingProxyType(
    {
        "BF16": float.fromhex("0x1.ffp127"),
        "F16": 65520.0,
        "F32": float.fromhex("0x1.ffffffp127"),
        # Just above the halfway point, which rounds to the even 448.
        "F8_E4M3": float(np.nextafter(np.float32(464), np.float32(np.inf))),
        "F8_E5M2": 61440.0,
    }
)
"""Magnitude from which a number rounds to infinity (ties to even); F64 takes every working float."""

_PLAIN: dict[str, np.dtype[np.floating[Any]]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


def decode(raw: Bytes, dtype: str, out: Floats) -> None:
    """Turn stored bytes into working floats, exactly for a working dtype at least as wide.

    Args:
        raw: ``[n * itemsize]`` bytes.
        dtype: a key of `FLOAT_DTYPES`.
        out: ``[n]`` float32 or float64, overwritten.
    """
    if dtype in _PLAIN:
        np.copyto(out, raw.view(_PLAIN[dtype]), casting="same_kind")
        return
    if dtype in VALUES:
        decode8(raw, dtype, out)
        return
    single = out if out.dtype == np.float32 else np.empty(out.size, np.float32)
    bits = single.view(np.uint32)
    np.copyto(bits, raw.view(np.dtype("<u2")))
    np.left_shift(bits, 16, out=bits)
    if single is not out:
        np.copyto(out, single)


def encode(values: Floats, dtype: str, out: Bytes) -> bool:
    """Round working floats to nearest, ties to even, and store them; tell whether all results are finite.

    Args:
        values: ``[n]`` working floats; overwritten.
        dtype: a key of `FLOAT_DTYPES`.
        out: ``[n * itemsize]`` bytes, overwritten.

    Returns:
        whether every stored number is finite; NaN and infinities are stored as such either way.
    """
    finite = stays_finite(values, dtype)
    if dtype in VALUES:
        encode8(values, dtype, out)
        return finite
    if dtype in _PLAIN:
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out.view(_PLAIN[dtype]), values, casting="same_kind")
        return finite
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.asarray(values, dtype=np.float32)
    nan = None if finite else np.isnan(single)
    bits = single.view(np.uint32)
    round_bits(bits)
    np.right_shift(bits, 16, out=bits)
    stored = out.view(np.dtype("<u2"))
    np.copyto(stored, bits, casting="same_kind")
    if nan is not None:
        stored[nan] = 0x7FC0
    return finite


def round_bits(bits: NDArray[np.uint32], scratch: NDArray[np.uint32] | None = None) -> None:
    """Add to float32 bit patterns what makes cutting their low half round to nearest, ties to even."""
    odd = np.right_shift(bits, 16, out=scratch)
    np.bitwise_and(odd, 1, out=odd)
    np.add(odd, 0x7FFF, out=odd)
    np.add(bits, odd, out=bits)


def round_to(values: Floats, dtype: str) -> Floats:
    """Round finite working floats to the numbers of a stored dtype, as working floats; may overwrite them."""
    if dtype == "BF16":
        single = np.asarray(values, dtype=np.float32)
        bits = single.view(np.uint32)
        round_bits(bits)
        np.bitwise_and(bits, 0xFFFF0000, out=bits)
        return single.astype(values.dtype, copy=False)
    if dtype in VALUES:
        raw = np.empty(values.size, np.uint8)
        encode8(values, dtype, raw)
        decode8(raw, dtype, values)
        return values
    return values.astype(_PLAIN[dtype]).astype(values.dtype)


def stays_finite(values: Floats, dtype: str | None = None) -> bool:
    """Tell whether all numbers are finite, and stay so when stored as ``dtype``.

    The sum of squares settles nearly every case at the cost of one dot product: squares cannot cancel.
    """
    limit = OVERFLOW.get(dtype or "", np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        if squares_stay_below(values, min(limit, 1e18)):
            return True
        if limit < np.inf:
            return bool(np.all(np.abs(values) < limit))
        return bool(np.isfinite(values).all())


def squares_stay_below(values: Floats, limit: float) -> bool:
    """Tell whether all numbers are finite and below a limit, as far as their sum of squares shows it.

    May warn of an overflow, unless `numpy.errstate` says otherwise.
    """
    return float(np.dot(values, values)) < limit * limit
