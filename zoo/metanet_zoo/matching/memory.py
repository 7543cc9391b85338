"""Giving freed memory back to the system between steps that each take a lot of it."""

from __future__ import annotations

import ctypes
import gc


def release_memory() -> None:
    """Return freed memory to the system, where the allocator can be asked to (glibc).

    Tensors of some 20 MB are freed into the allocator's heap, where they leave holes: without this, memory
    grows with the number of layers though every layer frees what it took.
    """
    # The youngest objects only: to walk all that torch and transformers keep takes a fifth of a second.
    gc.collect(0)
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        # Another allocator or system: there is nothing to ask.
        return
