import pytest

from metanet.axis import Concat, Fixed, Perm, Product, axis_size, concat, parse_axes, product


def test_normal_form_merges_and_flattens() -> None:
    assert product(Perm("c"), Fixed(7), Fixed(7)) == Product((Perm("c"), Fixed(49)))
    assert product(product(Perm("a"), Fixed(1)), Perm("b")) == Product((Perm("a"), Perm("b")))
    assert product(Fixed(1)) == Fixed(1)
    assert concat(Fixed(2), Fixed(3)) == Fixed(5)
    assert concat(concat(Perm("a"), Perm("b")), Perm("a")) == Concat((Perm("a"), Perm("b"), Perm("a")))
    assert concat(Perm("a")) == Perm("a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10 (c9 49)", (Fixed(10), Product((Perm("c9"), Fixed(49))))),
        ("h1' 2", (Perm("h1", "in"), Fixed(2))),
        ("h1+", (Perm("h1", "bias"),)),
        ("", ()),
        (
            "[(head qk) | head | 3] embed",
            (Concat((Product((Perm("head"), Perm("qk"))), Perm("head"), Fixed(3))), Perm("embed")),
        ),
        ("[a b | 2]", (Concat((Product((Perm("a"), Perm("b"))), Fixed(2))),)),
        ("layer1.0.conv1 3 3", (Perm("layer1.0.conv1"), Fixed(3), Fixed(3))),
    ],
)
def test_notation_is_read(text: str, expected: tuple[object, ...]) -> None:
    assert parse_axes(text) == expected


@pytest.mark.parametrize("text", ["(a b", "[a | b", "a)", "a | b", "3 %", "a]"])
def test_bad_notation_says_where(text: str) -> None:
    with pytest.raises(ValueError, match=r"column \d+|at the end"):
        parse_axes(text)


def test_sizes() -> None:
    axis = parse_axes("[(head qk) | 5]")[0]
    assert axis_size(axis, {"head": 3, "qk": 4}) == 17
