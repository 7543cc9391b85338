"""Actions make a group, act as the table of kinds says, and are checked and read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metanet import GroupElement, WeightSpec, testing
from metanet.action import ACTION_KINDS, Action, Term
from metanet.axis import Fixed, Perm
from metanet.elements.acting import Representation, act_terms, draw_value
from metanet.leaf import leaf_view, leaves_of

EVERY_KIND = WeightSpec.parse(
    """
groups       head: 3   query: 2   v: 4   qk: 5 under head   embed: 6   h: 3   e: 2   c: 4 sign   m: 4
v.weight     (head v) embed
v.bias       (head v)
o.weight     embed (head query v)
qkv.weight   [(head query 6) | (head 6) | (head v)] embed
k.bias       (head qk)
q.weight     (head query qk) 7
gated.up     (e h) 3
gated.down   3 (e h)
square       h h
conv.weight  m c' 3 3
conv.bias    m
norm.var     m
table        9 embed
stream       embed 4
other        embed
turned       e 8 2
odd          h
actions
linear head v
- v.weight   (head^ v^) embed
- v.bias     (head^ v^)
- o.weight   embed (head^ query v^-1)
rotation head 3 half
- qkv.weight   [(head^ query 6^-1) | (head 6) | (head v)] embed
- qkv.weight   [(head query 6) | (head^ 6^) | (head v)] embed
rotation e 4 interleaved
- turned   e^ 8^ 2
shift head qk
- k.bias   (head^ qk^)
scale head qk
- q.weight   (head^ query qk^2) 7
scale e h
- gated.up     (e^ h^) 3
- gated.down   3 (e^ h^-1)
scale h
- square   h^ h
- square   h h^-1
positive_scale m
- conv.weight   m^ c' 3 3
- conv.bias     m^
- norm.var      m^2~1e-05
shift 9
- table   9^ embed
shift head v
- v.bias   (head^ v^)
shift
- other   embed
linear 4
- stream   embed 4^
sign h
- odd   h^3
shift h
- odd   h^
shift m
- conv.bias   m^-1
"""
)


def drawn(seed: int, *, spec: WeightSpec = EVERY_KIND) -> GroupElement:
    return GroupElement.random(spec, torch.Generator().manual_seed(seed), kinds="all")


def test_the_example_has_every_kind() -> None:
    assert {action.kind for action in EVERY_KIND.actions} >= set(ACTION_KINDS) - {"orthogonal"}


@pytest.mark.parametrize("seed", range(5))
def test_group_laws(seed: int) -> None:
    weights = testing.random_weights(EVERY_KIND, torch.Generator().manual_seed(seed), leading=(2,))
    testing.assert_group_laws(EVERY_KIND, weights, seed=seed)
    g, h, k = drawn(seed), drawn(seed + 100), drawn(seed + 200)
    assert ((g @ h) @ k).allclose(g @ (h @ k))
    assert (g.inverse() @ g).allclose(GroupElement.identity(EVERY_KIND))
    assert not g.allclose(h)


ORTHOGONAL = WeightSpec.parse(
    "groups  d: 5   f: 3\nup  f d\ndown  d f\nembed  7 d\nactions\n"
    "orthogonal d\n- up  f d^\n- down  d^ f\n- embed  7 d^\nscale f\n- up  f^ d\n- down  d f^-1"
)


def test_orthogonal_matrices_are_permuted_on_both_sides() -> None:
    testing.assert_group_laws(ORTHOGONAL, testing.random_weights(ORTHOGONAL), seed=1)
    g = GroupElement.random(ORTHOGONAL, torch.Generator().manual_seed(1), kinds=["orthogonal"])
    weights = testing.random_weights(ORTHOGONAL)
    product = dict(g @ weights)
    before = weights["embed"] @ weights["down"]
    assert torch.allclose(
        product["embed"] @ product["down"], before[:, g.permutations["f"]], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("spec", [EVERY_KIND, ORTHOGONAL], ids=["every kind", "orthogonal"])
def test_gradients_pair_with_changes(spec: WeightSpec) -> None:
    """``<g · grad, g · dx>`` is ``<grad, dx>``, dx being a difference of parameters."""
    generator = torch.Generator().manual_seed(3)
    x, y, gradient = (testing.random_weights(spec, generator) for _ in range(3))
    g = drawn(4, spec=spec)
    moved_x, moved_y = g @ x, g @ y
    moved = g.act(gradient, representation="gradient")
    before = sum(float((gradient[name] * (y[name] - x[name])).sum()) for name in spec)
    after = sum(float((moved[name] * (moved_y[name] - moved_x[name])).sum()) for name in spec)
    assert after == pytest.approx(before, rel=1e-10)
    again = g.act(gradient, representation="momentum")
    testing.assert_close(again, moved)


def test_second_moments_take_squares_and_refuse_what_mixes() -> None:
    spec = replace(
        EVERY_KIND, actions=tuple(a for a in EVERY_KIND.actions if a.kind not in ("linear", "rotation"))
    )
    weights = testing.random_weights(spec)
    gradient = {name: tensor.abs() for name, tensor in weights.items()}
    g = drawn(5, spec=spec)
    squares = g.act({n: t.square() for n, t in gradient.items()}, representation="second_moment")
    expected = {n: t.square() for n, t in g.act(gradient, representation="gradient").items()}
    testing.assert_close(squares, expected)
    with pytest.raises(ValueError, match=r"second moment of 'v\.weight'.*linear head v"):
        drawn(6).act(weights, representation="second_moment")


def test_each_kind_acts_as_written() -> None:
    weights = testing.random_weights(EVERY_KIND)
    generator = torch.Generator().manual_seed(8)
    for number, action in enumerate(EVERY_KIND.actions):
        a = draw_value(action, EVERY_KIND.sizes, generator)
        moved = GroupElement(EVERY_KIND, {}, {}, {number: a}) @ weights
        touched = {term.entry for term in action.terms}
        for name, tensor in weights.items():
            assert torch.equal(moved[name], tensor) == (name not in touched)
        expected = BY_HAND.get(str(action))
        if expected is not None:
            for name, tensor in expected(a, weights).items():
                assert torch.allclose(moved[name], tensor, rtol=1e-12, atol=1e-12), f"{action}: {name}"


def _values(a: Tensor, w: dict[str, Tensor]) -> dict[str, Tensor]:
    o = w["o.weight"].reshape(6, 3, 2, 4)
    inverse = torch.linalg.inv(a)
    return {
        "v.weight": torch.einsum("hij,hje->hie", a, w["v.weight"].reshape(3, 4, 6)).reshape(12, 6),
        "v.bias": torch.einsum("hij,hj->hi", a, w["v.bias"].reshape(3, 4)).reshape(12),
        "o.weight": torch.einsum("hji,ehqj->ehqi", inverse, o).reshape(6, 24),
    }


def _turned(a: Tensor, w: dict[str, Tensor]) -> dict[str, Tensor]:
    x = w["turned"]
    z = torch.complex(x[:, 0::2], x[:, 1::2]) * a[:, :, None]
    return {"turned": torch.stack([z.real, z.imag], 2).reshape(2, 8, 2)}


def _queries(a: Tensor, w: dict[str, Tensor]) -> dict[str, Tensor]:
    x = w["qkv.weight"].clone()
    q = x[:36].reshape(3, 2, 2, 3, 6)
    q = torch.complex(q[:, :, 0], q[:, :, 1]) / a.conj()[:, None, :, None]
    k = x[36:54].reshape(3, 2, 3, 6)
    k = torch.complex(k[:, 0], k[:, 1]) * a[:, :, None]
    x[:36] = torch.stack([q.real, q.imag], 2).reshape(36, 6)
    x[36:54] = torch.stack([k.real, k.imag], 1).reshape(18, 6)
    return {"qkv.weight": x}


BY_HAND: dict[str, Callable[[Tensor, dict[str, Tensor]], dict[str, Tensor]]] = {
    "linear head v": _values,
    "rotation e 4 interleaved": _turned,
    "rotation head 3 half": _queries,
    "shift head qk": lambda a, w: {"k.bias": w["k.bias"] + a.reshape(-1)},
    "shift 9": lambda a, w: {"table": w["table"] + a[:, None]},
    "shift": lambda a, w: {"other": w["other"] + a},
    "shift m": lambda a, w: {"conv.bias": w["conv.bias"] - a},
    "scale h": lambda a, w: {"square": a[:, None] * w["square"] / a},
    "scale e h": lambda a, w: {
        "gated.up": w["gated.up"] * a.reshape(-1, 1),
        "gated.down": w["gated.down"] / a.reshape(-1),
    },
    "positive_scale m": lambda a, w: {
        "conv.weight": w["conv.weight"] * a[:, None, None, None],
        "conv.bias": w["conv.bias"] * a,
        "norm.var": a.square() * (w["norm.var"] + 1e-5) - 1e-5,
    },
}


def test_draws_are_well_conditioned() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"g": 50, "u": 6}
    for kind in ACTION_KINDS:
        last = Fixed(6) if kind == "rotation" else Perm("u")
        layout = "half" if kind == "rotation" else None
        action = Action(kind, (Perm("g"), last), (), layout)  # type: ignore[arg-type]
        value = draw_value(action, sizes, generator)
        assert value.shape == action.shape(sizes)
        if kind == "linear":
            assert float(torch.linalg.cond(value).max()) <= 10.0
            assert float(torch.linalg.cond(value).max()) > 4.0
        elif kind == "orthogonal":
            assert torch.allclose(value @ value.mT, torch.eye(6).double().expand(50, 6, 6), atol=1e-12)
        elif kind not in ("shift", "sign"):
            assert 0.5 <= float(value.abs().min()) <= float(value.abs().max()) <= 2.0
        if kind not in ("linear", "orthogonal", "rotation"):
            assert bool((value.real < 0).any()) == (kind not in ("positive_scale",))


def test_sizes_of_the_group() -> None:
    def dimension(kind: str, axes: str) -> int:
        text = f"groups  a: 3   b: 4\nw  a b 8\nactions\n{kind} {axes}\n- w  "
        marked = {"a b": "a^ b^ 8", "b": "a b^ 8", "a 4 half": "a^ b 8^", "": "a b 8"}[axes]
        return WeightSpec.parse(text + marked).dimension()

    assert dimension("scale", "a b") == dimension("positive_scale", "a b") == dimension("shift", "a b") == 12
    assert dimension("linear", "a b") == 3 * 16
    assert dimension("orthogonal", "a b") == 3 * 6
    assert dimension("orthogonal", "b") == 6
    assert dimension("rotation", "a 4 half") == 3 * 4 * 2
    assert dimension("shift", "") == 1
    assert dimension("sign", "a b") == 0
    signs = WeightSpec.parse("groups  a: 3   b: 4\nw  a b\nactions\nsign a b\n- w  a^ b^")
    plain = replace(signs, actions=())
    assert signs.log2_size() - plain.log2_size() == pytest.approx(12)


def test_notation_and_json_read_back() -> None:
    assert WeightSpec.parse(str(EVERY_KIND)) == EVERY_KIND
    assert WeightSpec.from_json(EVERY_KIND.to_json()) == EVERY_KIND
    assert replace(EVERY_KIND, actions=()) != EVERY_KIND
    twice = WeightSpec.parse("groups  h: 3\nw  h h\nactions\nscale h h\n- w  h^1: h^0:")
    assert twice.actions[0].terms == (Term("w", (1, 0)),)
    assert WeightSpec.parse(str(twice)) == twice
    odd = WeightSpec.parse('groups  h: 3\n"actions"  h\nactions\nshift h\n- "actions"  h^')
    assert WeightSpec.parse(str(odd)) == odd


def test_selecting_entries_keeps_what_acts_on_them() -> None:
    some = EVERY_KIND.select(["v.weight", "gated.up", "gated.down"])
    assert [str(action) for action in some.actions] == ["linear head v", "scale e h"]
    assert [term.entry for term in some.actions[0].terms] == ["v.weight"]


def test_leaves_and_views() -> None:
    axes = EVERY_KIND.axes["qkv.weight"]
    assert " ".join(str(leaf.atom) for leaf in leaves_of(axes)) == "head query 6 head 6 head v embed"
    tensor = torch.arange(66 * 6.0).reshape(66, 6)
    view, places = leaf_view(tensor, axes, (6, 5, 7), EVERY_KIND.sizes)
    assert view.shape == (3, 4, 6)
    assert places == (1, 0, 2)
    assert torch.equal(view, tensor[54:].reshape(3, 4, 6))
    view.zero_()
    assert not tensor[54:].any()


def test_one_value_per_stacked_model() -> None:
    """Values ``[*leading, *axes]`` go with ``[*leading, *shape]`` tensors."""
    generator = torch.Generator().manual_seed(0)
    weights = testing.random_weights(EVERY_KIND, generator, leading=(3,))
    kinds: tuple[Representation, ...] = ("parameter", "gradient")
    for action in EVERY_KIND.actions:
        values = torch.stack([draw_value(action, EVERY_KIND.sizes, generator) for _ in range(3)])
        for term in action.terms:
            axes, tensor = EVERY_KIND.axes[term.entry], weights[term.entry]
            for kind in kinds:
                together = act_terms(tensor, axes, EVERY_KIND.sizes, [(action, term, values)], kind)
                for i in range(3):
                    alone = act_terms(tensor[i], axes, EVERY_KIND.sizes, [(action, term, values[i])], kind)
                    assert torch.allclose(together[i], alone, rtol=1e-12, atol=1e-12)


def test_actions_can_be_differentiated() -> None:
    weights = {n: t.requires_grad_() for n, t in testing.random_weights(EVERY_KIND).items()}
    total = torch.stack([t.sum() for t in (drawn(2) @ weights).values()]).sum()
    total.backward()
    assert all(t.grad is not None and bool(t.grad.isfinite().all()) for t in weights.values())


TABLE = "groups  h: 4   k: 2   p: 3 phase(2)   x: 2 under k\nw  h 6\nv  k h\nb  h\nq  p+\nn  (k x) h\n"
WRONG = {
    "unknown kind": ("twist h\n- w  h^ 6", "unknown action 'twist'"),
    "unknown entry": ("scale h\n- u  h^ 6", "'u', which is not an entry"),
    "unknown group": ("scale g\n- w  g^ 6", "g.* is not|axes of 'w'"),
    "other axes": ("scale h\n- w  h^ 5", "the axes of 'w' are h 6"),
    "no mark": ("scale h\n- w  h 6", "no marked leaf fits the axis h"),
    "too many marks": ("scale h\n- w  h^ 6^", "2 marked leaves"),
    "power at an instance": ("scale k h\n- v  k^-1 h^", "the power stands at the leaf of the last axis"),
    "no terms": ("scale h", "acts nowhere"),
    "term first": ("- w  h^ 6", "follows the header"),
    "layout missing": ("rotation h 3\n- w  h^ 6^", "layout"),
    "rotation of units": ("rotation h half\n- w  h^ 6", "fixed axis"),
    "power of a matrix": ("linear h\n- w  h^2 6", "must be 1 or -1"),
    "no power": ("scale h\n- w  h^0 6", "must be not zero"),
    "eps of a shift": ("shift h\n- w  h^2~1e-05 6", "positive factor"),
    "sign of a variance": ("scale h\n- b  h^1~1e-05", "positive factor"),
    "nested without its parent": ("scale x\n- n  (k x^) h", "must stand left of it among the axes"),
    "matrices twice": ("linear h\n- w  h^ 6\nscale h\n- w  h^ 6", "do not commute"),
    "matrix along an instance": ("linear k\n- v  k^ h\nlinear k h\n- v  k^ h^", "do not commute"),
    "shift against a factor": ("shift\n- b  h\nscale h\n- b  h^", "make no group together"),
    "shift against a variance": ("shift h\n- b  h^\nscale h\n- b  h^2~1e-05", "make no group together"),
    "factor on a phase": ("scale p\n- q  p+^", "bias that phases shift"),
    "two eps": ("scale h\n- b  h^2~1e-05\nscale h\n- b  h^2~1e-03", "different eps"),
    "a shift with two factors": ("shift h\n- b  h^\n- w  h^ 6\nscale h\n- w  h^ 6", "in different ways"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_action_is_refused(name: str) -> None:
    lines, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        WeightSpec.parse(TABLE + "actions\n" + lines)


def test_tied_entries_are_acted_on_alike() -> None:
    spec = WeightSpec.parse("groups  h: 4\na  h 6\nb  h 6\nactions\nscale h\n- a  h^ 6")
    with pytest.raises(ValueError, match="are one parameter"):
        replace(spec, ties=(("a", "b"),))


def test_bad_values_are_refused() -> None:
    spec = WeightSpec.parse("groups  h: 2\na  h 6\nactions\nlinear h\n- a  h^ 6\nrotation 3 half\n- a  h 6^")
    good = draw_value(spec.actions[0], spec.sizes, None)
    GroupElement(spec, {}, {}, {0: good})
    for number, value in ((0, good[0]), (0, good * 0), (1, torch.ones(3)), (2, good)):
        with pytest.raises(ValueError, match="action"):
            GroupElement(spec, {}, {}, {number: value})


def test_an_element_without_groups_leaves_their_actions() -> None:
    g = drawn(1).without("head", "h")
    kinds = {str(EVERY_KIND.actions[number]) for number in g.actions}
    assert kinds == {
        "rotation e 4 interleaved",
        "positive_scale m",
        "shift 9",
        "shift",
        "linear 4",
        "shift m",
    }
