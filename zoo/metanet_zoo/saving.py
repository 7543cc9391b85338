"""Writing a checkpoint: one safetensors file, whole or not at all."""

import os
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from metanet_zoo.atomic import atomic_path
from metanet_zoo.errors import CheckpointError
from metanet_zoo.safetensors_file import DTYPES


def save_checkpoint(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors to a safetensors file, whole or not at all.

    Tensors that are views, or that share memory with one another, are written as separate contiguous
    copies; a mapping that reads lazily, such as a `Checkpoint`, is read in full first.

    Args:
        path: the file, its name ending in `.safetensors`; an older one stays until the new one is complete.
        tensors: dense tensors of any shape, of a dtype that the format knows, on any device but meta.
        metadata: free text by name.

    Raises:
        CheckpointError: a tensor that the format cannot hold, or another file name; nothing is written.
        TypeError: something that is no tensor, or metadata that is no text.
        OSError: the disk is full or does not take the file; nothing is left of it.
    """
    target = os.fspath(path)
    if not target.endswith(".safetensors"):
        raise CheckpointError(
            f"{target}: expected a name that ends in .safetensors, since that is what is written"
        )
    for name, text in (metadata or {}).items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"metadata {name!r}: found {text!r}, expected text; encode other values as JSON")
    plain: dict[str, Tensor] = {}
    storages: set[tuple[torch.device, int]] = set()
    for name, tensor in tensors.items():
        dense = _dense(name, tensor)
        storage = (dense.device, dense.untyped_storage().data_ptr())
        if storage in storages:
            dense = dense.clone()
        storages.add(storage)
        plain[name] = dense
    with atomic_path(target) as temporary:
        try:
            save_file(plain, temporary, dict(metadata) if metadata else None)
        except SafetensorError as error:
            raise OSError(
                f"{target}: not written ({error}); nothing is left of it, free some space"
            ) from error


def _dense(name: str, tensor: object) -> Tensor:
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise TypeError(f"{name!r}: found {type(tensor).__name__}, expected text and a tensor")
    if name == "__metadata__":
        raise CheckpointError(
            f"a tensor cannot be called {name!r}, which the format keeps for itself; rename it"
        )
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        kind = "a meta tensor without values" if tensor.is_meta else f"layout {tensor.layout}, {tensor.dtype}"
        raise CheckpointError(
            f"tensor {name!r}: {kind}, expected a dense tensor with values; convert it first"
        )
    if tensor.dtype not in DTYPES.values():
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())
        raise CheckpointError(f"tensor {name!r}: {tensor.dtype}, expected one of {known}; convert it first")
    # Conjugates and negatives are lazy bits on a tensor, which the raw bytes would not show.
    return tensor.detach().resolve_conj().resolve_neg().contiguous()
