"""Random networks with a known group: what is derived, nesting included, is that group and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from metanet import spec_of, verify
from metanet.derivation.dimension import fixed
from metanet.planted.operations import random_network
from metanet.planted.slots import assert_planted
from metanet.rules import RULES, Call, Value
from metanet.rules.registry import Result

SEEDS = range(200)
VERIFIED = 8
"""Every so many networks the derived group is proven numerically as well."""


@pytest.mark.parametrize("seed", SEEDS)
def test_the_derived_group_is_the_planted_one(seed: int) -> None:
    network = random_network(seed)
    spec = spec_of(network, *network.inputs)
    assert not spec.lost
    assert_planted(spec, network.planted())
    if seed % VERIFIED == 0:
        verification = verify(spec, network, *network.inputs, draws=1)
        assert verification.ok, f"{verification}\n{spec}"


def fixing(function: Callable[[Call], Result]) -> Callable[[Call], Result]:
    """Return a rule that fixes the channels that it reads."""

    def broken(call: Call) -> Result:
        for _, value in call.values():
            for dim in value.dims:
                if value.entry is None:
                    call.fix(dim)
        return function(call)

    return broken


def forgetting(function: Callable[[Call], Result]) -> Callable[[Call], Result]:
    """Return a rule that knows nothing of what its arguments share."""

    def broken(call: Call) -> Result:
        return Value(tuple(map(fixed, call.shape)), function(call).operation())  # type: ignore[union-attr]

    return broken


BROKEN = {
    "aten.relu.default": (fixing, 12),
    "aten.layer_norm.default": (fixing, 31),
    "aten.batch_norm.default": (fixing, 17),
    "aten.group_norm.default": (fixing, 129),
    "aten.cat.default": (fixing, 9),
    "aten.flatten.using_ints": (fixing, 2),
    "aten.scaled_dot_product_attention.default": (fixing, 3),
    "aten.lstm.input": (fixing, 102),
    "aten.pad.default": (fixing, 2),
    "aten.softmax.int": (fixing, 4),
    "aten.einsum.default": (fixing, 2),
    "aten.conv2d.default": (fixing, 7),
    "aten.tanh.default": (forgetting, 5),
}
"""Operation -> how its rule is broken, and the first network of `SEEDS` that shows it."""


@pytest.mark.parametrize("operation", BROKEN)
def test_a_rule_that_is_broken_is_found(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, seed = BROKEN[operation]
    known = RULES[operation]
    network = random_network(seed)
    monkeypatch.setitem(RULES, operation, replace(known, function=broken(known.function)))
    spec = spec_of(network, *network.inputs)
    with pytest.raises(AssertionError, match="built to carry"):
        assert_planted(spec, network.planted())


def test_nesting_that_is_missed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metanet.derive.with_nesting", lambda spec: spec)
    network = random_network(129)
    spec = spec_of(network, *network.inputs)
    with pytest.raises(AssertionError, match="units of their own"):
        assert_planted(spec, network.planted())
