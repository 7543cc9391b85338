"""Checkpoints, zoos and everything else that exists: loading, storing, fitting."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metanet_zoo.checkpoint import Checkpoint as Checkpoint
    from metanet_zoo.checkpoint import open_checkpoint as open_checkpoint
    from metanet_zoo.errors import CheckpointError as CheckpointError
    from metanet_zoo.saving import save_checkpoint as save_checkpoint

_EXPORTS = {
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "Zoo": "store",
    "ZooWriter": "store",
    "open_checkpoint": "checkpoint",
    "save_checkpoint": "saving",
}
"""Public name -> module, imported at first use, so that importing the package alone stays light."""

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it exports {', '.join(__all__)}"
        )
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
