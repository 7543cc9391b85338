"""Parts of a multi-part model, by the names of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODULE_NAMES = {
    "text_decoder": ("text_decoder", "language_model", "lm_head"),
    "vision_tower": ("vision_tower",),
    "multi_modal_projector": ("multi_modal_projector",),
}
"""Parts as recipes name them -> beginnings of their tensors' names; other parts go by their own name."""


PART_CONFIGS = {
    "text_decoder": ("text_config", "llm_config", "language_config"),
    "language_model": ("text_config", "llm_config", "language_config"),
    "vision_tower": ("vision_config",),
}
"""Parts -> where their own configurations stand in the model's; others go by their name."""


def part_config(config: Mapping[str, Any], module: str) -> str | None:
    """Return the key under which a model's configuration has that of a part, None if it has none.

    Example:
        >>> part_config({"text_config": {}, "vision_config": {}}, "vision_tower")
        'vision_config'
    """
    keys = PART_CONFIGS.get(module, (f"{module}_config", module))
    return next((key for key in keys if isinstance(config.get(key), Mapping)), None)


def module_prefixes(module: str) -> tuple[str, ...]:
    """Return how the names of a part's tensors begin.

    Example:
        >>> module_prefixes("vision_tower")
        ('vision_tower.', 'model.vision_tower.')
    """
    names = MODULE_NAMES.get(module, (module,))
    return tuple(prefix + name + "." for name in names for prefix in ("", "model."))
