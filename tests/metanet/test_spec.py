from math import log2

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metanet import Freedom, Group, Operation, WeightSpec, testing
from metanet.axis import parse_axes

TEXT = """
# an attention block beside a sine layer
groups                h1: 32 sign phase(30)   embed: 64   head: 8   qk: 16 under head   c9: 5
seq.0.weight          h1 2
seq.0.bias            h1+
conv.weight           c9 h1' 3 3
fc.weight             10 (c9 49)
attn.in_proj_weight   [(head qk) | (head qk) | (head 12)] embed
"odd name"            embed
counter
"""


def test_notation_round_trip() -> None:
    spec = WeightSpec.parse(TEXT)
    assert WeightSpec.parse(str(spec)) == spec
    assert hash(WeightSpec.parse(str(spec))) == hash(spec)
    assert spec.shapes["attn.in_proj_weight"] == (128 + 128 + 96, 64)
    assert spec.shapes["counter"] == ()
    assert spec.axes["odd name"] == parse_axes("embed")
    assert spec.group["qk"].parent == "head"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_specs_are_read_back(seed: int) -> None:
    spec = testing.random_spec(torch.Generator().manual_seed(seed))
    assert WeightSpec.parse(str(spec)) == spec
    assert WeightSpec.from_json(spec.to_json()) == spec


def test_json_keeps_the_skeleton_and_equality_ignores_it() -> None:
    axes = parse_axes("h1 2")
    groups = (Group("h1", 4),)
    operations = (
        Operation("input", axes=parse_axes("1 2")),
        Operation("linear", (0,), (("weight", "w"),), (("scale", 0.5), ("pads", (1, (2, 3))))),
    )
    spec = WeightSpec(groups, (("w", axes),), operations, ties=(("w", "v"),), unused=("u",))
    again = WeightSpec.from_json(spec.to_json())
    assert again.operations == operations
    assert again.ties == spec.ties
    assert again.unused == spec.unused
    assert again == WeightSpec(groups, (("w", axes),))


def test_sizes_of_the_group() -> None:
    spec = WeightSpec.parse("groups  h: 4 sign phase(2)   r: 3 positive_scale\nw  h 3\nv  r h'")
    assert spec.log2_size() == pytest.approx(torch.log2(torch.tensor(24.0 * 16 * 6)).item())
    assert spec.phase_rank() == 4
    assert spec.dimension() == 3
    nested = WeightSpec.parse(
        "groups  e: 3   f: 4 sign phase(2) under e   k: 2 scale under f\nw  e f 3\nv  e (f k)"
    )
    bits = log2(6) + 3 * (log2(24) + 4) + 3 * 4 * 1
    assert nested.log2_size() == pytest.approx(bits)
    assert nested.ancestors("k") == ("e", "f")
    assert (nested.copies("e"), nested.copies("f"), nested.copies("k")) == (1, 3, 12)
    assert (nested.phase_rank(), nested.dimension()) == (12, 24)
    assert [group.name for group in nested.select(["v"]).groups] == ["e", "f", "k"]


def test_roles_vanish_where_no_freedom_needs_them() -> None:
    assert WeightSpec.parse("groups  h: 4\nw  3 h'") == WeightSpec.parse("groups  h: 4\nw  3 h")
    assert WeightSpec.parse("groups  h: 4 sign\nw  3 h'") != WeightSpec.parse("groups  h: 4 sign\nw  3 h")


def test_views() -> None:
    spec = WeightSpec.parse(TEXT)
    assert spec.axes_to_group["fc.weight", 1] == ("c9",)
    assert spec.group_to_axes["h1"] == (("seq.0.weight", 0), ("seq.0.bias", 0), ("conv.weight", 1))
    assert set(spec.select(["fc.weight"]).group) == {"c9"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w h 3", "opens with the table of groups"),
        ("", "holds no spec"),
        ("groups h: 3\nw  h k", "names the group 'k'"),
        ("groups h: 3   h: 4\nw  h", "unique"),
        ("groups h: 3 wobble\nw  h", "unknown freedom 'wobble'"),
        ("groups h: 3 phase\nw  h", "needs its frequency"),
        ("groups h: 3 sign(2)\nw  h", "takes no parameter"),
        ("groups h: 3 under k\nw  h", "nested under 'k'"),
        ("groups h: 3   q: 2 under h\nw  q 4", "must stand left of it in a product"),
        ("groups h: 3   q: 2 under h\nw  q h h", "where it stands 2 times"),
        ("groups h: 3   q: 2 under h\nw  [(h q) | q]", "where it stands 0 times"),
        ("groups h: 3 under q   q: 2 under h\nw  h q", "nested under itself"),
        ("groups h: 0\nw  h", "at least one unit"),
        ("groups h: 3\nw  (h", "line 2"),
    ],
)
def test_bad_specs_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightSpec.parse(text)


def test_bad_json() -> None:
    for text in ("{", "[]", '{"format": "metanet.spec", "version": 9}'):
        with pytest.raises(ValueError, match=r"no spec in JSON|version 9"):
            WeightSpec.from_json(text)


def test_check_names_everything_that_does_not_fit() -> None:
    spec = WeightSpec.parse("groups h: 3\nw  h 2\nb  h")
    spec.check({"w": (3, 2), "b": (3,)})
    spec.check({"w": (7, 3, 2), "b": (7, 3)}, leading=1)
    with pytest.raises(ValueError, match=r"missing b; unexpected c; wrong shapes: w: found \[2, 3\]"):
        spec.check({"w": (2, 3), "c": (1,)})


def test_immutable() -> None:
    spec = WeightSpec.parse("groups h: 3\nw  h 2")
    with pytest.raises(AttributeError):
        spec.groups = ()  # type: ignore[misc]
    assert Freedom("phase", 30.0) == Freedom("phase", 30.0)
