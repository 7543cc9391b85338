"""Wreath products against plain loops: chains, parents on another dimension, freedoms of nested units."""

from __future__ import annotations

import itertools

import pytest
import torch

from metanet import GroupElement, WeightSpec, testing
from metanet.axis import Perm
from metanet.blocks import entry_blocks, split
from metanet.elements.wreath import chain_source, tied_dimensions
from metanet.features import WeightFeatures

SPECS = {
    "experts": """
        groups  e: 3   f: 4 sign phase(2) under e   k: 2 scale under f
        up      e [f | f] 3
        bias    e [f+ | 2]
        inner   (e 2 f k) [(e f') | 3]
        down    5 k' e f'""",
    "heads": """
        groups  head: 3   query: 2 under head   qk: 4 under query   v: 2 sign under head
        q       (head query qk) 5
        k       [(head query qk) | (head v)] 7
        o       5 (head query v')
        r       (head v) (head v')""",
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_group_laws(name: str, leading: tuple[int, ...]) -> None:
    spec = WeightSpec.parse(SPECS[name])
    testing.assert_group_laws(spec, testing.random_weights(spec, leading=leading))


@pytest.mark.parametrize("name", SPECS)
def test_an_element_takes_every_value_from_where_the_definition_says(name: str) -> None:
    spec = WeightSpec.parse(SPECS[name])
    weights = testing.random_weights(spec)
    element = GroupElement.random(spec, torch.Generator().manual_seed(0))
    moved = element @ weights
    for entry, axes in spec.entries:
        before, after = (split(t[entry], axes, spec.sizes) for t in (weights, moved))
        for block, old, new in zip(entry_blocks(entry, axes), before, after, strict=True):
            parents = block.parents(spec)
            for index in itertools.product(*map(range, new.shape)):
                source = []
                for at, atom in enumerate(block.atoms):
                    above = at
                    row: list[int] = []
                    while isinstance(atom, Perm) and parents[above] >= 0:
                        above = parents[above]
                        row.insert(0, above)
                    copy = 0
                    for place in row:
                        copy = copy * new.shape[place] + index[place]
                    if not isinstance(atom, Perm):
                        source.append(index[at])
                    else:
                        rows = element.permutations[atom.group].reshape(-1, spec.sizes[atom.group])
                        source.append(int(rows[copy, index[at]]))
                assert new[index] == old[tuple(source)]


@pytest.mark.parametrize("name", SPECS)
def test_features_transform_as_the_weights_do(name: str) -> None:
    spec = WeightSpec.parse(SPECS[name])
    weights = testing.random_weights(spec, leading=(2,))
    element = GroupElement.random(spec, torch.Generator().manual_seed(1), kinds="all")
    acted = WeightFeatures.from_state_dict(spec, element @ weights, batched=True)
    expected = element @ WeightFeatures.from_state_dict(spec, weights, batched=True)
    testing.assert_close(acted, expected)


def test_dimensions_are_together_where_a_group_goes_with_its_parent_on_another() -> None:
    spec = WeightSpec.parse(SPECS["experts"])
    assert tied_dimensions(spec.axes["up"], spec) == [(0, 1), (2,)]
    assert tied_dimensions(spec.axes["inner"], spec) == [(0,), (1,)]
    assert tied_dimensions(spec.axes["down"], spec) == [(0,), (1, 2, 3)]


def test_units_of_a_chain_are_counted_through_all_copies() -> None:
    spec = WeightSpec.parse(SPECS["experts"])
    assert chain_source(spec, "k", {}) is None
    swap = {"e": torch.tensor([1, 0, 2])}
    source = chain_source(spec, "k", swap)
    assert source is not None
    assert source.tolist() == [*range(8, 16), *range(8), *range(16, 24)]


def test_permutations_of_the_wrong_shape_are_refused() -> None:
    spec = WeightSpec.parse(SPECS["experts"])
    with pytest.raises(ValueError, match=r"expected indices of shape \[12, 2\]"):
        GroupElement(spec, {"k": torch.arange(2).repeat(3, 1)}, {})
    with pytest.raises(ValueError, match=r"expected shape \[3, 4\], found \[4\]"):
        GroupElement(spec, {}, {("f", "sign"): torch.ones(4)})
