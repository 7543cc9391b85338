"""One safetensors file: its header checked against its bytes, its tensors read when asked for.

References:
    The safetensors format, https://github.com/huggingface/safetensors#format: an 8-byte little-endian
    length, a JSON header of `name -> {dtype, shape, data_offsets}`, then one buffer that the tensors
    cover without holes.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from metanet_zoo.errors import CheckpointError
from metanet_zoo.safetensors_header import read_header

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


class SafetensorsFile:
    """Tensors of one safetensors file by name, memory-mapped at the first read.

    Args:
        path: the file; its header is checked here, see `metanet_zoo.safetensors_header`.
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
        return DTYPES[self.header.entries[name].dtype]

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
