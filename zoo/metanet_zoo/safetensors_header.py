"""The header of a safetensors file, read and held against the file's bytes; needs no torch.

References:
    The safetensors format, https://github.com/huggingface/safetensors#format: an 8-byte little-endian
    length, a JSON header of `name -> {dtype, shape, data_offsets}`, then one buffer that the tensors
    cover without holes.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from metanet_zoo.errors import CheckpointError

HEADER_LIMIT = 100_000_000
"""Longest header in bytes, the limit of the format's reference implementation."""

ITEM_SIZES: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "U16": 2,
        "U32": 4,
        "U64": 8,
        "I8": 1,
        "I16": 2,
        "I32": 4,
        "I64": 8,
        "F8_E4M3": 1,
        "F8_E4M3FNUZ": 1,
        "F8_E5M2": 1,
        "F8_E5M2FNUZ": 1,
        "F8_E8M0": 1,
        "F16": 2,
        "BF16": 2,
        "F32": 4,
        "F64": 8,
        "C64": 8,
    }
)
"""Bytes of a value by the format's names of dtypes; those smaller than a byte (F4, F6) are left out."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a header: the format's name of its dtype, shape, its bytes `start:stop` in the buffer."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: entries by name, the free text under `__metadata__`, where the buffer begins."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    buffer_start: int


def read_header(path: Path) -> Header:
    """Read a safetensors header and hold it against the file.

    The header is accepted only if every entry has a known dtype, a shape of non-negative integers and as
    many bytes as these two say, and if the entries cover the rest of the file exactly, without overlap
    and without holes.

    Args:
        path: the file.

    Returns:
        the header; no tensor has been read.

    Raises:
        CheckpointError: names the file, the tensor, what was found and what was expected.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(
                f"{path}: {size} bytes, too short for a safetensors file, which begins with an "
                "8-byte length; fetch the file again"
            )
        length = int.from_bytes(prefix, "little")
        if length > min(HEADER_LIMIT, size - 8):
            raise CheckpointError(
                f"{path}: the first 8 bytes announce a header of {length} bytes, expected at most "
                f"{min(HEADER_LIMIT, size - 8)} in a file of {size}; it is truncated or no safetensors file"
            )
        text = file.read(length)
    raw = _parse(path, text)
    metadata = _metadata(path, raw.pop("__metadata__", {}))
    entries = {name: _entry(path, name, value) for name, value in raw.items()}
    _check_cover(path, entries, size - 8 - length)
    return Header(MappingProxyType(entries), MappingProxyType(metadata), 8 + length)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            [(repeated, _)] = Counter(name for name, _ in pairs).most_common(1)
            raise CheckpointError(f"{path}: the header repeats {_short(repeated)}, expected every name once")
        return result

    try:
        raw = json.loads(text.decode("utf-8"), object_pairs_hook=refuse_repeats)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: the header is not JSON ({error}), as a safetensors header must be; "
            "the file is damaged or no safetensors file"
        ) from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: the header is a JSON {type(raw).__name__}, expected an object")
    return raw


def _metadata(path: Path, value: object) -> dict[str, str]:
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    raise CheckpointError(f"{path}: __metadata__ is {_short(value)}, expected an object of strings")


def _entry(path: Path, name: str, value: object) -> TensorEntry:
    def fail(what: str, found: object, expected: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name!r} has {what} {_short(found)}, expected {expected}")

    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise fail("the header entry", value, "an object of dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise fail("the dtype", dtype, f"one of {', '.join(ITEM_SIZES)}")
    if not _is_sizes(shape):
        raise fail("the shape", shape, "a list of at most 64 non-negative integers")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail("the data_offsets", offsets, "[start, stop] with 0 <= start <= stop")
    expected = math.prod(shape) * ITEM_SIZES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise fail("the data_offsets", offsets, f"{expected} bytes between them for {dtype} of shape {shape}")
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _is_sizes(value: object) -> bool:
    # JSON's true and false are ints to Python. The bounds are torch's own: 64 dimensions of 63 bits.
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def _check_cover(path: Path, entries: Mapping[str, TensorEntry], available: int) -> None:
    position, previous = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            fault = "overlaps" if entry.start < position else "leaves a hole after"
            raise CheckpointError(
                f"{path}: tensor {name!r} starts at byte {entry.start} of the buffer and {fault} {previous}, "
                f"expected byte {position}; the header does not describe this file"
            )
        if entry.stop > available:
            raise CheckpointError(
                f"{path}: tensor {name!r} ends at byte {entry.stop} of the buffer, which has {available}; "
                "the file is truncated, fetch it again"
            )
        position, previous = entry.stop, repr(name)
    if position != available:
        raise CheckpointError(
            f"{path}: {available - position} bytes follow the last tensor ({previous}), expected none; "
            "the header does not describe this file"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
