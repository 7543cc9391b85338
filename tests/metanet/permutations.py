"""The permutations of a spec alone, for tests of which units there are."""

from __future__ import annotations

from dataclasses import replace

from metanet import WeightSpec


def permutations_of(spec: WeightSpec) -> WeightSpec:
    """Return the spec without freedoms beside permutation."""
    groups = tuple(replace(group, freedoms=()) for group in spec.groups)
    return replace(spec, groups=groups, actions=())


def same_units(spec: WeightSpec, known: str) -> bool:
    """Return whether a spec has the groups and axes of a known one in notation, and print both if not."""
    mine, theirs = str(permutations_of(spec)), str(permutations_of(WeightSpec.parse(known)))
    if mine != theirs:
        print(f"derived\n{mine}\nknown\n{theirs}")
    return mine == theirs
