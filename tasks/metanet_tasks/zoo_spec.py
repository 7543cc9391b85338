"""The spec of a zoo: stored with it, or derived from its architecture."""

from __future__ import annotations

import torch

from metanet.derive import spec_of
from metanet.spec import WeightSpec
from metanet_zoo.manifest import ZooError
from metanet_zoo.store import Zoo


def zoo_spec(zoo: Zoo) -> WeightSpec:
    """Return the spec of a zoo's networks, checked against its entries.

    Raises:
        ZooError: there is no spec in the zoo and no way to derive one, or it does not fit.
    """
    text = zoo.spec_json
    if text is not None:
        try:
            spec = WeightSpec.from_json(text)
        except ValueError as error:
            raise ZooError(f"{zoo.path}: its spec.json cannot be read: {error}") from None
    elif "in_features" in zoo.architecture:
        spec = spec_of(zoo.build_module(), torch.zeros(2, int(zoo.architecture["in_features"])))
    else:
        raise ZooError(
            f"{zoo.path} has no spec.json, and its architecture {dict(zoo.architecture)} does not say on "
            "what input to derive one; put one there with metanet inspect … --save-spec ZOO/spec.json"
        )
    try:
        spec.check(zoo.shapes)
    except ValueError as error:
        raise ZooError(f"{zoo.path}: {error}") from None
    return spec
