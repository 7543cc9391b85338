"""Files of meta-learned tensors: safetensors, with what they are and how they were made in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_metas(
    path: Path | str, metas: Mapping[str, Tensor], metadata: Mapping[str, str], card: Mapping[str, object]
) -> None:
    """Write a file, whole or not at all."""
    partial = Path(f"{path}.partial")
    plain = {name: tensor.detach().contiguous() for name, tensor in metas.items()}
    save_file(plain, partial, metadata={**metadata, "card": json.dumps(dict(card))})
    partial.replace(path)


def read_metas(
    path: Path | str, what: str, remedy: str
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, object]]:
    """Return the tensors, the metadata and the card of a file.

    Args:
        path: of the file.
        what: it should hold, for messages.
        remedy: what to do about a damaged one.

    Raises:
        ValueError: a damaged file, or values that are not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            metas = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        card = json.loads(metadata.get("card", "{}"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no file of {what} ({error}); {remedy}") from error
    if bad := [key for key, meta in metas.items() if not bool(meta.isfinite().all())]:
        raise ValueError(f"{path}: {', '.join(bad)} hold values that are not finite; {remedy}")
    return metas, metadata, card
