"""A model as a merge sees it: its tensors, its configuration, its layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metanet.merging.layers import Layers, find_layers
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.sources import Model, TensorSource

LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
"""Where configurations state the number of layers."""

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "tok_embeddings.weight")


@dataclass(frozen=True)
class MergeModel:
    """One model of a recipe, opened.

    Args:
        opened: where it was found.
        source: its tensors, as they are to be merged (adapted, aligned).
    """

    opened: Model
    source: TensorSource

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """What its ``config.json`` says, None without one."""
        if self.opened.folder is None:
            return None
        path = self.opened.folder / "config.json"
        if not path.is_file():
            return None
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path}: not JSON ({error})") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{path}: a JSON {type(value).__name__}, expected an object")
        return value

    @cached_property
    def layers(self) -> Layers | None:
        """Its numbered layers, if its names have any."""
        stated = layer_count(self.config)
        names = self.source.entries()
        return (find_layers(names, stated) if stated else None) or find_layers(names)

    @property
    def folder(self) -> Path | None:
        """Where its configuration and tokenizer lie."""
        return self.opened.folder

    def tied(self, name: str) -> str | None:
        """Return the embedding that a missing output head is tied to, None if it is not."""
        if name not in HEADS or (self.config or {}).get("tie_word_embeddings") is False:
            return None
        found = [entry for entry in self.source.entries() if entry.endswith(EMBEDDINGS)]
        return found[0] if len(found) == 1 else None


def layer_count(config: Mapping[str, Any] | None) -> int | None:
    """Return the number of layers that a configuration states."""
    for key in LAYER_KEYS:
        value = (config or {}).get(key)
        if isinstance(value, int):
            return value
    return None
