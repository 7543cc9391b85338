"""Words: how a graph says which operation a block of nodes or edges belongs to and how it is configured.

A block's description is a set of words ``(order, name, value)``. Order 0 is the operation itself; the steps
that a value passes between two blocks of units (activations, pools, reshapes, …) follow, the step nearest to
the reader having order 1. Kinds, roles and attributes are all words, so nothing is lost for want of a slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import asinh, isnan, log
from typing import TypeAlias
from zlib import crc32

import torch
from torch import Tensor

from metanet.skeleton import Attribute, Operation

Scalar: TypeAlias = bool | int | float | str | None

_PER_DIMENSION = (
    "stride",
    "padding",
    "dilation",
    "kernel_size",
    "output_padding",
    "output_size",
    "dims",
    "pad",
)
NAMES: tuple[str, ...] = (
    *(
        "kind",
        "role",
        "site",
        "slot",
        "part",
        "part.1",
        "layer",
        "reverse",
        "scalar",
        "alpha",
        "value",
        "values",
    ),
    *(f"part.{dim}.{level}" for dim in range(4) for level in range(2)),
    *(name + suffix for name in _PER_DIMENSION for suffix in ("", ".1", ".2", ".3", ".4", ".5")),
    *("groups", "ceil_mode", "count_include_pad", "divisor_override", "eps", "momentum", "num_groups"),
    *("normalized_shape", "padding_idx", "has_biases", "num_layers", "bidirectional", "batch_first"),
    *("heads", "kv_heads", "is_causal", "scale", "negative_slope", "approximate", "min", "max", "beta"),
    *("threshold", "input_scale", "min_val", "max_val", "lambd", "dim", "keepdim", "index", "start", "stop"),
    *("step", "mode", "equation", "align_corners", "scale_factors", "correction", "unbiased", "ord", "p"),
    *("diagonal", "shifts", "factor", "rounding_mode", "norm_type"),
)
TEXTS: tuple[str, ...] = (
    *("None", "input", "constant", "output", "parameter", "unit", "bias", "norm", "join", "hub", "unused"),
    *("weight", "running_mean", "running_var", "gain", "structure", "residual", "recurrent", "regroup"),
    *("broadcast", "value", "w_ih", "w_hh", "b_ih", "b_hh"),
    *(
        f"{name}_l{layer}{way}"
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        for layer in range(4)
        for way in ("", "_reverse")
    ),
    *(f"{kind}{n}d" for kind in ("conv", "conv_transpose", "max_pool", "avg_pool") for n in (1, 2, 3)),
    *(f"adaptive_{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)),
    *("linear", "matmul", "addmm", "einsum", "bilinear", "outer", "embedding", "one_hot", "sdpa"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "weight_norm"),
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
    *("add", "sub", "mul", "div", "pow", "neg", "maximum", "minimum", "abs", "exp", "log", "sqrt", "rsqrt"),
    *("reciprocal", "square", "sin", "cos", "tan", "sinh", "cosh", "tanh", "sigmoid", "log_sigmoid", "erf"),
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus"),
    *("softshrink", "hardshrink", "hardtanh", "hardswish", "hardsigmoid", "clamp", "clamp_min", "clamp_max"),
    *("softmax", "log_softmax", "cumsum", "mean", "sum", "amax", "amin", "max", "min", "var", "std"),
    *("logsumexp", "prod", "linalg_vector_norm", "reshape", "transpose", "expand", "repeat", "cat", "stack"),
    *("select", "slice", "getitem", "index", "gather", "flip", "roll", "pad", "upsample", "pixel_shuffle"),
    *("pixel_unshuffle", "im2col", "diagonal", "where", "none", "zeros", "reflect", "same", "valid"),
)
"""Known words, each with an embedding of its own. A trained model stores rows in this order: append only."""

HASHED = 256
"""Rows for words that are not in the lists; a word always falls into the same one."""
NUMBERS = 4
"""Width of a numeric value as a feature."""
MAX_ORDER = 15
LARGEST = 1e12
"""Numbers beyond it, infinities too, count as this."""

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
        if isnan(number):
            return (0.0, 0.0, 0.0, 1.0)
        number = max(-LARGEST, min(LARGEST, number))
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
