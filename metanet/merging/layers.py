"""Numbered layers, found in the names of tensors: what gradients run over and slices are cut from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_NUMBERED = re.compile(r"^(?P<prefix>(?:.*?\.)?)(?P<index>\d+)\.")
_EARLY = re.compile(r"(embed|wte|wpe|tok_|token|patch|cls|pos_|position|stem|conv1|\bpre)", re.IGNORECASE)
"""Parts of names of tensors that stand before the first layer; all others stand behind the last."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The numbered layers of a model.

    Args:
        prefix: what stands before the number in a tensor's name, such as ``model.layers.``.
        count: number of layers.
    """

    prefix: str
    count: int

    def index(self, name: str) -> int | None:
        """Return the number of the layer that a tensor belongs to, None for one outside.

        Example:
            >>> Layers("model.layers.", 4).index("model.layers.2.mlp.up_proj.weight")
            2
        """
        if not name.startswith(self.prefix):
            return None
        head, dot, _ = name[len(self.prefix) :].partition(".")
        return int(head) if dot and head.isdigit() else None

    def rename(self, name: str, index: int) -> str:
        """Return a layer tensor's name in another layer.

        Example:
            >>> Layers("h.", 4).rename("h.2.attn.weight", 11)
            'h.11.attn.weight'
        """
        _, _, rest = name[len(self.prefix) :].partition(".")
        return f"{self.prefix}{index}.{rest}"

    def depth(self, name: str) -> float:
        """Return how deep a tensor lies, from 0 (first layer) to 1 (last layer); 0 for one outside of them.

        That embeddings and output heads take a gradient's first value is the grammar's convention.
        """
        index = self.index(name)
        return 0.0 if index is None else layer_depth(index, self.count)

    def is_early(self, name: str) -> bool:
        """Tell whether a tensor outside of the layers stands before them, by its name."""
        return _EARLY.search(name) is not None


def layer_depth(index: int, count: int) -> float:
    """Return the place of a layer among its kind, from 0 to 1; the only one is the last."""
    return index / (count - 1) if count > 1 else 1.0


def find_layers(names: Iterable[str], count: int | None = None) -> Layers | None:
    """Find the numbered layers of a model: the longest run of numbers behind one prefix.

    Args:
        names: names of its tensors.
        count: number of layers that its configuration states, if it does; then only such a run will do.

    Returns:
        the layers, or None if no names are numbered 0, 1, 2, … (and as many as stated).

    Example:
        >>> find_layers(["embed.weight", "model.layers.0.w", "model.layers.1.w", "fc.0.w"])
        Layers(prefix='model.layers.', count=2)
    """
    found: dict[str, set[int]] = defaultdict(set)
    sizes: dict[str, int] = defaultdict(int)
    for name in names:
        match = _NUMBERED.match(name)
        if match:
            found[match["prefix"]].add(int(match["index"]))
            sizes[match["prefix"]] += 1
    runs = [
        Layers(prefix, len(indices))
        for prefix, indices in found.items()
        if indices == set(range(len(indices))) and (count is None or len(indices) == count)
    ]
    return max(runs, key=lambda layers: (layers.count, sizes[layers.prefix], layers.prefix), default=None)
