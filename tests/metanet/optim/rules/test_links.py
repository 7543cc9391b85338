"""Messages between tensors equal means over the units, one by one, as the spec says which they are."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import combinations
from math import prod

import pytest
import torch
from torch import Tensor, nn

from metanet import WeightSpec, spec_of
from metanet.axis import Perm, bound_to
from metanet.blocks import entry_blocks, split
from metanet.optim.rule import Item
from metanet.optim.rules.links import ROUTES, SIDES, Links, Side, sides_of
from metanet.optim.rules.mixing import Passed, exchange
from tests.metanet.optim.networks import Tied, cnn, mlp_spec
from tests.metanet.optim.test_stacked import SPEC as EXPERTS

Messages = Mapping[tuple[str, Side], Tensor]
Unit = tuple[tuple[str, int], ...]


@cache
def transformer() -> WeightSpec:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return spec_of(nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)).eval(), torch.zeros(1, 4, 3))


@cache
def cnn_spec() -> WeightSpec:
    return spec_of(cnn(), torch.zeros(2, 1, 6, 6))


@cache
def tied_spec() -> WeightSpec:
    return spec_of(Tied(), torch.zeros(2, 3, dtype=torch.long))


TWICE = WeightSpec.parse("groups h: 3\na h (h 2)\nb [h | 2 | (2 h)] 4\nc h h h")
STACKS = ("experts.up", "experts.up_bias", "experts.down")
NETWORKS: Mapping[str, tuple[Callable[[], WeightSpec], tuple[str, ...]]] = {
    "mlp": (mlp_spec, ()),
    "cnn": (cnn_spec, ()),
    "transformer": (transformer, ()),
    "tied": (tied_spec, ()),
    "experts": (lambda: EXPERTS, STACKS),
    "twice": (lambda: TWICE, ()),
}


def network_of(name: str) -> tuple[WeightSpec, tuple[str, ...]]:
    made, stacked = NETWORKS[name]
    return made(), stacked


def sides(spec: WeightSpec, stacked: tuple[str, ...]) -> Iterator[tuple[str, Side, tuple[int, ...]]]:
    """Yield every entry with dimensions, its sides and the dimensions on them."""
    for entry, shape in spec.shapes.items():
        stack = int(entry in stacked)
        rank = min(len(shape) - stack, 2)
        dims: dict[Side, tuple[int, ...]] = {
            "row": tuple(range(stack + 1)),
            "column": (*range(stack), *range(stack + 1, len(shape))),
            "vector": tuple(range(len(shape))),
        }
        yield from ((entry, side, dims[side]) for side in sides_of(rank) if rank)


def meetings(
    spec: WeightSpec, entry: str, dims: tuple[int, ...]
) -> Iterator[tuple[int, int, tuple[Unit, ...]]]:
    """Yield the block, the position on the side and the units of it, position by position."""
    parents = {group.name: group.parent for group in spec.groups}
    axes, shape = [spec.axes[entry][d] for d in dims], [spec.shapes[entry][d] for d in dims]
    positions = torch.arange(prod(shape)).reshape(shape)
    blocks = entry_blocks(entry, axes)
    for number, (block, part) in enumerate(zip(blocks, split(positions, axes, spec.sizes), strict=True)):
        for index in torch.cartesian_prod(*map(torch.arange, part.shape)).reshape(-1, part.ndim).tolist():
            units = []
            for at, atom in enumerate(block.atoms):
                unit: list[tuple[str, int]] = []
                place: int | None = at
                group = atom.group if isinstance(atom, Perm) else None
                while group is not None and place is not None:
                    unit.insert(0, (group, index[place]))
                    group = parents[group]
                    place = bound_to(place, group, block.atoms, block.dims) if group is not None else place
                if unit and place is not None:
                    units.append((*unit, ("atom", at)))
            yield number, int(part[tuple(index)]), tuple(units)


def plainly(spec: WeightSpec, stacked: tuple[str, ...], messages: Messages) -> dict[tuple[str, Side], Tensor]:
    """Return what every position gets back: means over a block first, then over blocks, unit by unit."""
    met = {
        (entry, side): list(meetings(spec, entry, dims))
        for entry, side, dims in sides(spec, stacked)
        if (entry, side) in messages
    }
    sent: dict[Unit, dict[object, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for key, places in met.items():
        for block, position, units in places:
            for unit in units:
                sent[unit[:-1]][*key, block, unit[-1]].append(messages[key][:, position])
    means = {
        unit: torch.stack([torch.stack(part).mean(0) for part in parts.values()]).mean(0)
        for unit, parts in sent.items()
    }
    backs = {key: torch.zeros_like(message) for key, message in messages.items()}
    for key, places in met.items():
        for _, position, units in places:
            for unit in units:
                backs[key][:, position] += means[unit[:-1]]
    return backs


def drawn(spec: WeightSpec, stacked: tuple[str, ...], count: int) -> dict[tuple[str, Side], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        (entry, side): torch.randn(
            count, prod(spec.shapes[entry][d] for d in dims), generator=generator, dtype=torch.float64
        )
        for entry, side, dims in sides(spec, stacked)
    }


def routed(links: Links, messages: Messages) -> dict[tuple[str, Side], Tensor]:
    like = next(iter(messages.values()))
    route = links.route(tuple(((entry,), side) for entry, side in messages), like)
    return dict(zip(messages, route.scatter(route.gather(list(messages.values()))), strict=True))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_routes_take_the_means_over_units(network: str, count: int) -> None:
    spec, stacked = network_of(network)
    messages = drawn(spec, stacked, count)
    found, expected = routed(Links(spec, stacked), messages), plainly(spec, stacked, messages)
    assert any(back.any() for back in expected.values())
    for key, back in expected.items():
        torch.testing.assert_close(found[key], back, atol=1e-13, rtol=1e-12, msg=str(key))


@pytest.mark.parametrize("network", NETWORKS)
def test_indices_are_linear_in_the_sides(network: str) -> None:
    spec, stacked = network_of(network)
    messages = drawn(spec, stacked, 1)
    route = Links(spec, stacked).route(tuple(((e,), s) for e, s in messages), next(iter(messages.values())))
    for bags in (route.to_units, route.to_positions):
        assert len(bags.rows) <= 3 * sum(route.lengths)
        assert len(bags.starts) <= 3 * sum(route.lengths)


def test_every_set_of_sides_that_takes_part_has_its_own_means() -> None:
    spec = mlp_spec()
    links, messages = Links(spec), drawn(spec, (), 2)
    parts = list(combinations(messages, len(messages) - 1))
    assert len(parts) > ROUTES
    for keys in (tuple(messages), *parts, tuple(messages)):
        some = {key: messages[key] for key in keys}
        expected = plainly(spec, (), some)
        for key, back in routed(links, some).items():
            torch.testing.assert_close(back, expected[key], atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2])
def test_sides_without_units_get_nothing(count: int) -> None:
    spec = WeightSpec.parse("groups h: 3\na 4 5\nb h")
    messages = {key: value for key, value in drawn(spec, (), count).items() if key[0] == "a"}
    assert [back.shape for back in routed(Links(spec), messages).values()] == [(count, 4), (count, 5)]
    assert not any(back.any() for back in routed(Links(spec), messages).values())


def test_routes_follow_the_type_of_the_messages() -> None:
    links, messages = Links(mlp_spec()), drawn(mlp_spec(), (), 2)
    expected = routed(links, messages)
    for dtype, atol in (
        (torch.float32, 1e-5),
        (torch.bfloat16, 0.05),
        (torch.float16, 0.01),
        (torch.float64, 1e-13),
    ):
        found = routed(links, {key: message.to(dtype) for key, message in messages.items()})
        for key, back in found.items():
            assert back.dtype == dtype
            torch.testing.assert_close(back.double(), expected[key], atol=atol, rtol=0.0)


def test_links_are_pickled_without_their_routes() -> None:
    links, messages = Links(EXPERTS, ("experts.up",)), drawn(EXPERTS, ("experts.up",), 1)
    before = len(pickle.dumps(links))
    expected = routed(links, messages)
    kept = pickle.dumps(links)
    assert len(kept) < before + 5000
    for key, back in routed(pickle.loads(kept), messages).items():
        assert torch.equal(back, expected[key])


def _item(
    role: str, shape: tuple[int, ...], entry: str | None, entries: tuple[str, ...], stacked: bool
) -> Item:
    values = torch.zeros(shape, dtype=torch.float64)
    return Item(role, values, values, {}, 1, entry, stacked, entries)


@pytest.mark.parametrize("network", ["mlp", "transformer", "experts"])
def test_entries_of_one_shape_share_a_bucket(network: str) -> None:
    """Buckets of several entries, stacks and tensors outside of the spec exchange what single entries do."""
    spec, stacked = network_of(network)
    messages = drawn(spec, stacked, 1)
    expected = plainly(spec, stacked, messages)
    shapes: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for entry in dict.fromkeys(entry for entry, _ in messages):
        shapes[entry in stacked, *spec.shapes[entry]].append(entry)
    items, passed, names = [], [], []
    for (deep, *shape), entries in shapes.items():
        for some in [[entry] for entry in entries] if deep else [entries]:
            count = 1 if deep else len(some)
            known = [side for side in SIDES if (some[0], side) in messages]
            full = tuple(shape) if deep else (count, *shape)
            items.append(
                _item("hidden", full, some[0] if deep else None, () if deep else tuple(some), bool(deep))
            )
            sent = {s: torch.cat([messages[e, s] for e in some]).reshape(full[0], -1) for s in known}
            terms = {side: torch.ones_like(message) for side, message in sent.items()}
            passed.append(Passed(torch.ones(full[0]), terms, sent))
            names.append(some)
    items.append(_item("vector", (1, 4), None, (), False))
    passed.append(Passed(torch.ones(1), {"vector": torch.ones(1, 4)}, {}))
    receive = torch.tensor([[2.0, 3.0, 5.0]], dtype=torch.float64)
    exchange({"receive": receive}, items, passed, Links(spec, stacked))
    for some, result in zip(names, passed, strict=False):
        for side, term in result.terms.items():
            back = torch.cat([expected[entry, side] for entry in some]).reshape(term.shape)
            torch.testing.assert_close(term, 1 + back * receive[0, SIDES.index(side)])
    assert passed[-1].terms["vector"].eq(1).all()
