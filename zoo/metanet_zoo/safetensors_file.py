"""One safetensors file: its header checked against its bytes, its tensors read when asked for.

References:
    The safetensors format, https://github.com/huggingface/safetensors#format: an 8-byte little-endian
    length, a JSON header of `name -> {dtype, shape, data_offsets}`, then one buffer that the tensors
    cover without holes.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from metanet_zoo.errors import CheckpointError

HEADER_LIMIT = 100_000_000
"""Longest header in bytes, the limit of the format's reference implementation."""

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "U16": torch.uint16,
        "U32": torch.uint32,
        "U64": torch.uint64,
        "I8": torch.int8,
        "I16": torch.int16,
        "I32": torch.int32,
        "I64": torch.int64,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "F8_E8M0": torch.float8_e8m0fnu,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F32": torch.float32,
        "F64": torch.float64,
        "C64": torch.complex64,
    }
)
"""The format's names of dtypes; those smaller than a byte (F4, F6) are left out, as no tensor here is."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a header: dtype, shape, and its bytes `start:stop` in the file's buffer."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: the entries by name, the free text under `__metadata__`, where the buffer begins."""

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


class SafetensorsFile:
    """Tensors of one safetensors file by name, memory-mapped at the first read.

    Args:
        path: the file; its header is checked here, see `read_header`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)
        self._handle: Any = None

    def __reduce__(self) -> tuple[type["SafetensorsFile"], tuple[Path]]:
        # A worker process opens and checks the file for itself.
        return type(self), (self.path,)

    def names(self) -> Iterable[str]:
        """Names in the order of the file's header."""
        return self.header.entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self.header.entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor, from the header."""
        return self.header.entries[name].dtype

    def read(self, name: str) -> Tensor:
        """Map a tensor; writing to it changes this process's copy and never the file."""
        try:
            if self._handle is None:
                self._handle = safe_open(self.path, framework="pt", device="cpu")
            tensor: Tensor = self._handle.get_tensor(name)
        except Exception as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} of shape {list(self.shape(name))} could not be read "
                f"({type(error).__name__}: {error}); did the file change since it was opened?"
            ) from error
        return tensor

    def close(self) -> None:
        """Release the mapping; the next read maps the file again."""
        if self._handle is not None:
            self._handle.__exit__(None, None, None)
            self._handle = None


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
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise fail("the dtype", dtype, f"one of {', '.join(DTYPES)}")
    if not _is_sizes(shape):
        raise fail("the shape", shape, "a list of at most 64 non-negative integers")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail("the data_offsets", offsets, "[start, stop] with 0 <= start <= stop")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != expected:
        raise fail("the data_offsets", offsets, f"{expected} bytes between them for {dtype} of shape {shape}")
    return TensorEntry(DTYPES[dtype], tuple(shape), offsets[0], offsets[1])


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
