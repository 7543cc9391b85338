"""Matching: the element of a spec's group that takes one network nearest to another."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metanet.matching.activations import activation_matching as activation_matching
    from metanet.matching.many import Universe as Universe
    from metanet.matching.many import cycle_consistent_matching as cycle_consistent_matching
    from metanet.matching.many import merge_many_matching as merge_many_matching
    from metanet.matching.method import Problem as Problem
    from metanet.matching.method import find_matcher as find_matcher
    from metanet.matching.method import match as match
    from metanet.matching.method import matcher as matcher
    from metanet.matching.orthogonal import orthogonal_matching as orthogonal_matching
    from metanet.matching.singular import singular_vector_alignment as singular_vector_alignment
    from metanet.matching.sinkhorn_rebasin import sinkhorn_matching as sinkhorn_matching
    from metanet.matching.soft_map import SoftMap as SoftMap
    from metanet.matching.soft_map import SoftMatching as SoftMatching
    from metanet.matching.straight_through import straight_through_matching as straight_through_matching
    from metanet.matching.transport import transport_matching as transport_matching
    from metanet.matching.weights import Matching as Matching
    from metanet.matching.weights import match_weights as match_weights
    from metanet.matching.weights import weight_matching as weight_matching
    from metanet.matching.zipping import zip_matching as zip_matching

_HOMES = {
    "Matching": "weights",
    "Problem": "method",
    "SoftMap": "soft_map",
    "SoftMatching": "soft_map",
    "Universe": "many",
    "activation_matching": "activations",
    "cycle_consistent_matching": "many",
    "find_matcher": "method",
    "match": "method",
    "merge_many_matching": "many",
    "orthogonal_matching": "orthogonal",
    "singular_vector_alignment": "singular",
    "match_weights": "weights",
    "sinkhorn_matching": "sinkhorn_rebasin",
    "straight_through_matching": "straight_through",
    "transport_matching": "transport",
    "weight_matching": "weights",
    "zip_matching": "zipping",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
