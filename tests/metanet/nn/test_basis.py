"""Completeness: the terms are all equivariant linear maps, each once."""

import pytest
import torch

from metanet.features import BlockLayout, feature_layout
from metanet.group import GroupElement
from metanet.nn.basis import equivariant_basis
from metanet.nn.dws import DWSLayer
from metanet.nn.linear import EquivariantLinear
from metanet.spec import WeightSpec
from tests.metanet.nn.oracle import (
    SPECS,
    dim_hom,
    equivariant_space,
    flatten,
    joint_partition_maps,
    layer_maps,
    random_features,
    unflatten,
)

SMALL = [name for name in SPECS if name not in ("square", "conv")]


@pytest.mark.parametrize(
    ("groups", "terms"),
    [((), 1), (("h",), 2), (("i", "j"), 4), (("h", "h"), 15), (("h", "h", "h"), 203), (("i", "h", "h"), 30)],
)
def test_one_block_has_bell_many_terms(groups: tuple[str, ...], terms: int) -> None:
    basis = equivariant_basis((BlockLayout("w", groups, (-1,) * len(groups), 1),))
    assert basis.num_terms == terms


def test_terms_between_different_blocks() -> None:
    basis = equivariant_basis(feature_layout(SPECS["rnn"]))
    keys = [block.key for block in basis.layout]
    between = basis.num_terms_between
    assert between(keys.index("hh"), keys.index("hh")) == 15
    assert between(keys.index("hh"), keys.index("b")) == 5
    assert between(keys.index("b"), keys.index("hh")) == 5
    assert between(keys.index("b"), keys.index("ih")) == 2


@pytest.mark.parametrize("name", SMALL)
def test_number_of_terms_is_dim_hom(name: str) -> None:
    spec = SPECS[name]
    assert equivariant_basis(feature_layout(spec)).num_terms == dim_hom(spec)


@pytest.mark.parametrize("name", SMALL)
def test_number_of_biases_is_the_number_of_invariants(name: str) -> None:
    spec = SPECS[name]
    layout = feature_layout(spec)
    invariants = dim_hom(
        WeightSpec(spec.groups, (*spec.entries, ("one", ()))),
        [0] * len(layout) + [1],
        [1] * len(layout) + [0],
    )
    assert equivariant_basis(layout).num_biases == invariants


@pytest.mark.parametrize(
    "text",
    [
        "groups h1: 4 h2: 4\n 0.w h1 2\n 0.b h1\n 1.w h2 h1\n 1.b h2\n 2.w 1 h2\n 2.b 1",
        "groups h1: 3\n 0.w h1 3\n 0.b h1\n 1.w 2 h1\n 1.b 2",
        "groups h1: 2 h2: 2 h3: 2\n 0.w h1 1\n 0.b h1\n 1.w h2 h1\n 1.b h2\n 2.w h3 h2\n 2.b h3\n"
        " 3.w 2 h3\n 3.b 2",
        "groups h: 4\n w h h\n b h",
    ],
    ids=["2-4-4-1", "3-3-2", "1-2-2-2-2", "recurrent"],
)
def test_dws_layer_is_the_full_characterisation(text: str) -> None:
    """Coefficients = dimension of the solutions of P X = X P, all of them solutions, none dependent."""
    spec = WeightSpec.parse(text)
    like = random_features(spec)
    n = flatten(like).shape[1]
    generators = []
    for group in spec.groups:
        for p in (torch.arange(group.size).roll(1), torch.tensor([1, 0, *range(2, group.size)])):
            element = GroupElement(spec, {group.name: p}, {})
            basis = unflatten(like, torch.eye(n, dtype=torch.float64))
            keyed = dict(zip([block.key for block in like.layout], basis, strict=True))
            generators.append(flatten(element @ like.with_tensors(keyed, channels=1)))
    everything = equivariant_space(generators)
    layer = DWSLayer(spec, 1, 1).double().linear
    maps = layer_maps(layer, like)
    assert sum(w.numel() for w in layer.weights) == len(maps) == len(everything)
    outside = maps - maps @ everything.T @ everything
    assert outside.abs().max() < 1e-12
    normal = maps / maps.norm(dim=1, keepdim=True)
    assert torch.linalg.matrix_rank(normal) == len(maps)


@pytest.mark.parametrize(
    "spec",
    [SPECS["attention"].select(["q", "k"]), WeightSpec.parse("groups h: 4\n w h h\n b h")],
    ids=["attention", "recurrent"],
)
def test_unf_terms_and_the_layer_span_the_same_maps(spec: WeightSpec) -> None:
    """Two routes: UNF's partitions of joint slots, and readings times writings."""
    like = random_features(spec)
    published = joint_partition_maps(spec)
    layout = feature_layout(spec)
    layer = EquivariantLinear(layout, spec.sizes, [1] * len(layout), [1] * len(layout)).double()
    maps = layer_maps(layer, like)
    assert len(maps) == len(published)
    for rows in (maps, published, torch.cat([maps, published])):
        normal = rows / rows.norm(dim=1, keepdim=True)
        assert torch.linalg.matrix_rank(normal, rtol=1e-9) == len(maps)


def test_every_fixed_index_has_coefficients_of_its_own() -> None:
    spec = SPECS["mlp"]
    widths = [block.fixed for block in feature_layout(spec)]
    layer = DWSLayer(spec, 2, 3).linear
    expected = dim_hom(spec, [2 * w for w in widths], [3 * w for w in widths])
    assert sum(weight.numel() for weight in layer.weights) == expected
