"""The registry of matching methods: what they need, their settings, and methods of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from metanet import GroupElement, WeightSpec
from metanet.matching.method import MATCHERS, Problem, Setting, find_matcher, match, matcher
from metanet.matching.sinkhorn_rebasin import sinkhorn_matching
from metanet.matching.weights import Matching, matching_of
from metanet.matching.zipping import zip_matching

SPEC = WeightSpec.parse("groups  h: 5   k: 4\nu  h 3\nw  k h\nv  2 k")


def problem(**more: Any) -> tuple[Problem, GroupElement]:
    """A permuted copy of a network."""
    generator = torch.Generator().manual_seed(0)
    b = {name: torch.randn(shape, generator=generator) for name, shape in SPEC.shapes.items()}
    planted = GroupElement.random(SPEC, generator)
    return Problem(SPEC, planted @ b, b, **more), planted


@pytest.fixture
def learned() -> Iterator[None]:
    """A method that a network might have learned: units are paired by a score of their own weights."""

    @matcher("scores", reference="a test", settings={"power": Setting(1.0, "of the scores")})
    def scores(problem: Problem, *, power: float = 1.0) -> Matching:
        """Units in the order of a score."""

        def order(state: Any) -> dict[str, Tensor]:
            rows = {"h": state["u"], "k": state["v"].T}
            return {name: x.abs().pow(power).sum(1).argsort() for name, x in rows.items()}

        of_a, of_b = order(problem.a), order(problem.b)
        found = {name: of_b[name][of_a[name].argsort()] for name in of_a}
        return matching_of(GroupElement(problem.spec, found, {}), problem.a, problem.b, how="scores")

    yield
    del MATCHERS["scores"]


def test_a_method_of_ones_own_is_one_more(learned: None) -> None:
    given, planted = problem()
    found = match("scores", given, power=2)
    assert isinstance(found, Matching)
    assert found.element.allclose(planted)
    assert found.after == 0.0
    assert found.before > 1.0
    assert find_matcher("scores").summary == "Units in the order of a score."
    with pytest.raises(ValueError, match="did you mean 'power'"):
        match("scores", given, powr=2.0)
    with pytest.raises(ValueError, match="already"):
        matcher("scores", reference="another")(lambda problem: matching_of(planted, given.a, given.b))


@pytest.mark.parametrize("name", ["weights", "sinkhorn"])
def test_methods_that_look_at_weights_find_what_was_planted(name: str) -> None:
    given, planted = problem()
    found = match(name, given)
    assert isinstance(found, Matching)
    assert found.element.allclose(planted)


def test_every_method_says_what_it_is() -> None:
    find_matcher("weights")
    for method in MATCHERS.values():
        assert method.summary.endswith(".")
        assert "http" in method.reference
        assert all(setting.doc for setting in method.settings.values())


def test_what_is_missing_or_unknown_is_named() -> None:
    given, _ = problem()
    with pytest.raises(ValueError, match="did you mean 'weights'"):
        match("weigths", given)
    with pytest.raises(ValueError, match="needs a model and data"):
        match("activations", given)
    with pytest.raises(ValueError, match="expected int"):
        match("weights", given, max_sweeps="many")
    with pytest.raises(ValueError, match="'early', expected barycentre or weights"):
        match("sinkhorn", given, begin="early")
    with pytest.raises(ValueError, match="no groups"):
        match("weights", Problem(SPEC, given.a, given.b, fixed=["q"]))
    wide = WeightSpec.parse("groups  h: 6   k: 4\nu  h 3\nw  k h\nv  2 k")
    with pytest.raises(ValueError, match="same widths"):
        match("weights", Problem(SPEC, given.a, given.b, spec_a=wide))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("sinkhorn", sinkhorn_matching),
        ("sinkhorn-loss", sinkhorn_matching),
        ("zip", zip_matching),
        ("zip-weights", zip_matching),
    ],
)
def test_settings_that_are_handed_on_have_the_defaults_of_the_function(
    name: str, function: Callable[..., Any]
) -> None:
    parameters = inspect.signature(function).parameters
    for key, setting in find_matcher(name).settings.items():
        if parameters[key].default is not None:  # None: depends on whether there is a loss
            assert parameters[key].default == setting.default, key


def test_sinkhorn_begins_where_its_settings_say() -> None:
    given, _ = problem()
    plain = match("sinkhorn", given, steps=2)
    said = match("sinkhorn", given, steps=2, begin=str(find_matcher("sinkhorn").settings["begin"].default))
    assert isinstance(plain, Matching)
    assert isinstance(said, Matching)
    assert plain.starts == said.starts == ("barycentre",)
    assert plain.history == said.history
