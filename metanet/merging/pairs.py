"""Bfloat16 two at a time: half the work of reading and writing it, where the order of values is free."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import Bytes, Floats, encode, round_bits, squares_stay_below

WORD = np.dtype("<u4")
HIGH = np.uint32(0xFFFF0000)
BLOCK = 1 << 15
"""Words that stay in the cache while they are rounded."""


class _Scratch(threading.local):
    """Room for rounding, one per thread."""

    def __init__(self) -> None:
        self.words = np.empty(0, np.uint32)

    def take(self, size: int) -> NDArray[np.uint32]:
        if self.words.size < size:
            self.words = np.empty(size, np.uint32)
        return self.words[:size]


_SCRATCH = _Scratch()


def decode_pairs(raw: Bytes, out: Floats) -> None:
    """Turn bfloat16 into float32: values at even places first, those at odd places behind them.

    Args:
        raw: ``[2 * n]`` bytes, n even.
        out: ``[n]`` float32, overwritten.
    """
    words, bits = raw.view(WORD), out.view(np.uint32)
    half = words.size
    np.left_shift(words, 16, out=bits[:half])
    np.bitwise_and(words, HIGH, out=bits[half:])


def encode_pairs(values: Floats, out: Bytes) -> bool:
    """Store what `decode_pairs` would read: rounded to nearest, ties to even, as `encode` does.

    Args:
        values: ``[n]`` float32, values for even places first; overwritten.
        out: ``[2 * n]`` bytes, overwritten.

    Returns:
        whether every stored number is finite.
    """
    half = values.size // 2
    scratch = _SCRATCH.take(min(half, BLOCK))
    bits, words = values.view(np.uint32), out.view(WORD)
    finite = True
    for start in range(0, half, BLOCK):
        stop = min(start + BLOCK, half)
        parts = values[start:stop], values[half + start : half + stop]
        with np.errstate(over="ignore", invalid="ignore"):
            ordinary = all(squares_stay_below(part, 1e18) for part in parts)
        if not ordinary:
            plain = np.empty(2 * (stop - start), values.dtype)
            plain[0::2], plain[1::2] = parts
            finite = encode(plain, "BF16", out[4 * start : 4 * stop]) and finite
            continue
        low, high = bits[start:stop], bits[half + start : half + stop]
        round_bits(low, scratch[: stop - start])
        round_bits(high, scratch[: stop - start])
        np.right_shift(low, 16, out=low)
        np.bitwise_and(high, HIGH, out=high)
        np.bitwise_or(low, high, out=words[start:stop])
    return finite
