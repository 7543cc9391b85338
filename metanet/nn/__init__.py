"""Layers and metanetworks; names are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metanet.nn.classifier import WeightClassifier as WeightClassifier
    from metanet.nn.dws import DWSLayer as DWSLayer
    from metanet.nn.dws import DWSNet as DWSNet
    from metanet.nn.encoding import InputEncoding as InputEncoding
    from metanet.nn.gmn import GMN as GMN
    from metanet.nn.gmn import GMNConv as GMNConv
    from metanet.nn.gmn import GMNProductConv as GMNProductConv
    from metanet.nn.heads import EquivariantHead as EquivariantHead
    from metanet.nn.heads import InvariantHead as InvariantHead
    from metanet.nn.linear import BlockLinear as BlockLinear
    from metanet.nn.linear import EquivariantLinear as EquivariantLinear
    from metanet.nn.unf import UNF as UNF
    from metanet.nn.unf import UNFLayer as UNFLayer

_HOMES = {
    "BlockLinear": "linear",
    "DWSLayer": "dws",
    "DWSNet": "dws",
    "EquivariantHead": "heads",
    "EquivariantLinear": "linear",
    "GMN": "gmn",
    "GMNConv": "gmn",
    "GMNProductConv": "gmn",
    "InputEncoding": "encoding",
    "InvariantHead": "heads",
    "UNF": "unf",
    "UNFLayer": "unf",
    "WeightClassifier": "classifier",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
