"""Words: how a graph says which operation a block of nodes or edges belongs to and how it is configured.

A block's description is a set of words ``(order, name, value)``. Order 0 is the operation itself; the steps
that a value passes between two blocks of units (activations, pools, reshapes, …) follow, the step nearest to
the reader having order 1. Kinds, roles and attributes are all words, so nothing is lost for want of a slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import asinh, isfinite, log
from typing import TypeAlias
from zlib import crc32

import torch
from torch import Tensor

from metanet.skeleton import Attribute, Operation

Scalar: TypeAlias = bool | int | float | str | None

NAMES: tuple[str, ...] = (
    *("kind", "role", "part", "slot", "site", "output", "layer", "reverse"),
    *("stride", "padding", "dilation", "groups", "kernel_size", "output_padding", "output_size", "ceil_mode"),
    *(
        "eps",
        "momentum",
        "training",
        "heads",
        "kv_heads",
        "is_causal",
        "scale",
        "dropout_p",
        "p",
        "negative_slope",
    ),
    *("omega", "alpha", "beta", "value", "other", "exponent", "approximate", "threshold", "lower", "upper"),
    *(
        "min",
        "max",
        "dim",
        "dims",
        "keepdim",
        "start",
        "stop",
        "end",
        "step",
        "index",
        "size",
        "sizes",
        "sections",
    ),
    *(
        "shape",
        "start_dim",
        "end_dim",
        "num_groups",
        "num_layers",
        "bidirectional",
        "batch_first",
        "has_biases",
    ),
    *("padding_idx", "normalized_shape", "transposed", "count_include_pad", "divisor_override", "mode"),
    *("scale_factor", "align_corners", "dtype", "diagonal", "dim0", "dim1", "enable_gqa", "nonlinearity"),
)
TEXTS: tuple[str, ...] = (
    *("None", "input", "constant", "output", "parameter", "unit", "bias", "norm", "join", "hub", "unused"),
    *("weight", "running_mean", "running_var", "gain", "structure", "residual"),
    *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "embedding", "lstm", "gru"),
    *(
        "rnn_tanh",
        "rnn_relu",
        "add",
        "sub",
        "mul",
        "div",
        "neg",
        "pow",
        "matmul",
        "bmm",
        "cat",
        "stack",
        "sdpa",
    ),
    *(
        "relu",
        "leaky_relu",
        "gelu",
        "silu",
        "tanh",
        "sigmoid",
        "sin",
        "cos",
        "abs",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
    ),
    *("elu", "selu", "celu", "softplus", "softsign", "hardtanh", "hardswish", "hardsigmoid", "relu6", "mish"),
    *("prelu", "glu", "softmax", "log_softmax", "identity", "dropout", "clamp", "reciprocal", "square"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *(
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "mean",
        "sum",
        "amax",
        "max",
        "min",
    ),
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "squeeze", "unsqueeze", "expand"),
    *("contiguous", "split", "chunk", "unbind", "select", "slice", "getitem", "index", "roll", "flip", "pad"),
    *("upsample", "interpolate", "pixel_shuffle", "addmm", "mm", "einsum", "none", "zeros", "reflect"),
)
"""Known words, each with an embedding of its own. A trained model stores rows in this order: append only."""

HASHED = 256
"""Rows for words that are not in the lists; a word always falls into the same one."""
NUMBERS = 4
"""Width of a numeric value as a feature."""
MAX_ORDER = 15

_NAME = {word: position for position, word in enumerate(NAMES)}
_TEXT = {word: position for position, word in enumerate(TEXTS)}
NUM_NAMES = len(NAMES) + HASHED
NUM_TEXTS = len(TEXTS) + HASHED + 1
NO_TEXT = len(TEXTS) + HASHED


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a block's description.

    Args:
        order: which step it describes; 0 is the block's own operation.
        name: what it is about, e.g. ``kind`` or ``stride``.
        value: a number, a text or None.
    """

    order: int
    name: str
    value: Scalar

    def numbers(self) -> tuple[float, ...]:
        """Return the value as ``[NUMBERS]`` features: presence, size and magnitude of a number."""
        if self.value is None or isinstance(self.value, str):
            return (0.0,) * NUMBERS
        number = float(self.value)
        number = (
            max(-1e12, min(1e12, number))
            if isfinite(number) or number != number
            else 1e12 * (1 if number > 0 else -1)
        )
        if number != number:
            return (0.0, 0.0, 0.0, 1.0)
        return (1.0, asinh(number), log(abs(number) + 1e-8) / 8, float(isinstance(self.value, bool)))


def describe(
    kind: str, attributes: tuple[tuple[str, Attribute], ...] = (), order: int = 0
) -> tuple[Word, ...]:
    """Return the words of a kind and its attributes; sequences give one word per element."""
    words = [Word(order, "kind", kind)]
    for name, value in attributes:
        words += [Word(order, name + suffix, scalar) for suffix, scalar in _scalars(value)]
    return tuple(words)


def describe_operation(operation: Operation, order: int = 0) -> tuple[Word, ...]:
    """Return the words of an operation."""
    return describe(operation.kind, operation.attributes, order)


def _scalars(value: Attribute) -> list[tuple[str, Scalar]]:
    if not isinstance(value, tuple):
        return [("", value)]
    return [
        (f".{position}{suffix}" if position or suffix else "", scalar)
        for position, item in enumerate(value)
        for suffix, scalar in _scalars(item)
    ] or [("", "none")]


def word_tensors(descriptions: list[tuple[Word, ...]]) -> dict[str, Tensor]:
    """Return the words of all blocks as tensors.

    Args:
        descriptions: one per block.

    Returns:
        ``word_block``, ``word_order``, ``word_name``, ``word_text``: ``[words]`` int64;
        ``word_number``: ``[words, NUMBERS]``.
    """
    rows = [(block, word) for block, words in enumerate(descriptions) for word in words]
    text = [
        _row(_TEXT, "None" if w.value is None else w.value)
        if w.value is None or isinstance(w.value, str)
        else NO_TEXT
        for _, w in rows
    ]
    return {
        "word_block": torch.tensor([block for block, _ in rows], dtype=torch.long),
        "word_order": torch.tensor([min(w.order, MAX_ORDER) for _, w in rows], dtype=torch.long),
        "word_name": torch.tensor([_row(_NAME, w.name) for _, w in rows], dtype=torch.long),
        "word_text": torch.tensor(text, dtype=torch.long),
        "word_number": torch.tensor([w.numbers() for _, w in rows], dtype=torch.float32).reshape(-1, NUMBERS),
    }


def _row(known: dict[str, int], word: str) -> int:
    return known[word] if word in known else len(known) + crc32(word.encode()) % HASHED
