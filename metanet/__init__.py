"""Weight-space metanetworks: the symmetry of any traceable network, derived, proven and used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Action": "metanet.action",
    "Axis": "metanet.axis",
    "Block": "metanet.blocks",
    "Concat": "metanet.axis",
    "Fixed": "metanet.axis",
    "Freedom": "metanet.spec",
    "Group": "metanet.spec",
    "GroupElement": "metanet.group",
    "Operation": "metanet.skeleton",
    "Perm": "metanet.axis",
    "Product": "metanet.axis",
    "Term": "metanet.action",
    "Verification": "metanet.verification",
    "WeightFeatures": "metanet.features",
    "WeightSpec": "metanet.spec",
    "blocks_of": "metanet.blocks",
    "canonical_form": "metanet.canonical.form",
    "canonicalize": "metanet.canonical.form",
    "fold_gains": "metanet.freedoms.folding",
    "from_graph": "metanet.graphs.conversion",
    "spec_of": "metanet.derive",
    "to_graph": "metanet.graphs.conversion",
    "verify": "metanet.verification",
}
_SUBMODULES = ("nn", "testing")

__all__ = [*_EXPORTS, *_SUBMODULES]

if TYPE_CHECKING:
    from metanet import nn as nn
    from metanet import testing as testing
    from metanet.action import Action as Action
    from metanet.action import Term as Term
    from metanet.axis import Axis as Axis
    from metanet.axis import Concat as Concat
    from metanet.axis import Fixed as Fixed
    from metanet.axis import Perm as Perm
    from metanet.axis import Product as Product
    from metanet.blocks import Block as Block
    from metanet.blocks import blocks_of as blocks_of
    from metanet.canonical.form import canonical_form as canonical_form
    from metanet.canonical.form import canonicalize as canonicalize
    from metanet.derive import spec_of as spec_of
    from metanet.features import WeightFeatures as WeightFeatures
    from metanet.freedoms.folding import fold_gains as fold_gains
    from metanet.graphs.conversion import from_graph as from_graph
    from metanet.graphs.conversion import to_graph as to_graph
    from metanet.group import GroupElement as GroupElement
    from metanet.skeleton import Operation as Operation
    from metanet.spec import Freedom as Freedom
    from metanet.spec import Group as Group
    from metanet.spec import WeightSpec as WeightSpec
    from metanet.verification import Verification as Verification
    from metanet.verification import verify as verify


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"metanet.{name}")
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'metanet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
