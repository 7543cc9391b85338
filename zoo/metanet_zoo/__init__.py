"""Checkpoints, zoos and everything else that exists: loading, storing, fitting."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metanet_zoo.architectures import Siren as Siren
    from metanet_zoo.architectures import build_architecture as build_architecture
    from metanet_zoo.checkpoint import Checkpoint as Checkpoint
    from metanet_zoo.checkpoint import open_checkpoint as open_checkpoint
    from metanet_zoo.collect import merge_zoos as merge_zoos
    from metanet_zoo.collect import zoo_from_checkpoints as zoo_from_checkpoints
    from metanet_zoo.errors import CheckpointError as CheckpointError
    from metanet_zoo.fit.inr import fit_inrs as fit_inrs
    from metanet_zoo.image_set import ImageError as ImageError
    from metanet_zoo.image_set import ImageSet as ImageSet
    from metanet_zoo.images import open_images as open_images
    from metanet_zoo.manifest import ZooError as ZooError
    from metanet_zoo.merging.report import MergeReport as MergeReport
    from metanet_zoo.merging.run import merge_checkpoints as merge_checkpoints
    from metanet_zoo.saving import save_checkpoint as save_checkpoint
    from metanet_zoo.spec_source import find_spec as find_spec
    from metanet_zoo.spec_source import spec_of_checkpoint as spec_of_checkpoint
    from metanet_zoo.store import Zoo as Zoo
    from metanet_zoo.writer import ZooWriter as ZooWriter

_EXPORTS = {
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "ImageError": "image_set",
    "ImageSet": "image_set",
    "MergeReport": "merging.report",
    "Siren": "architectures",
    "Zoo": "store",
    "ZooError": "manifest",
    "ZooWriter": "writer",
    "build_architecture": "architectures",
    "find_spec": "spec_source",
    "fit_inrs": "fit.inr",
    "merge_checkpoints": "merging.run",
    "merge_zoos": "collect",
    "open_checkpoint": "checkpoint",
    "open_images": "images",
    "save_checkpoint": "saving",
    "spec_of_checkpoint": "spec_source",
    "zoo_from_checkpoints": "collect",
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
