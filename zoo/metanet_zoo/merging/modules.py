"""Parts of a multi-part model, by the names of their tensors."""

MODULE_NAMES = {
    "text_decoder": ("text_decoder", "language_model", "lm_head"),
    "vision_tower": ("vision_tower",),
    "multi_modal_projector": ("multi_modal_projector",),
}
"""Parts as recipes name them -> beginnings of their tensors' names; other parts go by their own name."""


def module_prefixes(module: str) -> tuple[str, ...]:
    """Return how the names of a part's tensors begin.

    Example:
        >>> module_prefixes("vision_tower")
        ('vision_tower.', 'model.vision_tower.')
    """
    names = MODULE_NAMES.get(module, (module,))
    return tuple(prefix + name + "." for name in names for prefix in ("", "model."))
