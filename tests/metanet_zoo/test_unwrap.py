"""Dicts around the weights and prefixes before their names."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metanet_zoo.errors import CheckpointError
from metanet_zoo.unwrap import WRAPPER_KEYS, common_prefix, unwrap

WEIGHTS = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}
AVERAGED = {"fc.weight": torch.full((2, 3), 0.5), "fc.bias": torch.zeros(2)}


def test_a_plain_state_dict_needs_nothing() -> None:
    unwrapped = unwrap(WEIGHTS, "file")
    assert list(unwrapped.tensors) == list(WEIGHTS)
    assert unwrapped.notes == ()
    assert unwrapped.metadata == {}


@pytest.mark.parametrize("wrapper", [*WRAPPER_KEYS, "params_ema", "generator"])
def test_one_wrapper(wrapper: str) -> None:
    unwrapped = unwrap({wrapper: WEIGHTS, "epoch": 3}, "file")
    assert list(unwrapped.tensors) == list(WEIGHTS)
    assert unwrapped.metadata == {"epoch": 3}
    assert unwrapped.notes == (f"took the dict under {wrapper!r}", "kept as metadata, not as tensors: epoch")


def test_three_wrappers_but_not_four() -> None:
    three = {"model": {"module": {"state_dict": WEIGHTS}}}
    assert list(unwrap(three, "file").tensors) == list(WEIGHTS)
    with pytest.raises(CheckpointError, match="no tensors within 3 levels"):
        unwrap({"ema": three}, "file")


def test_weights_go_before_averages_and_both_are_said() -> None:
    saved = {"ema": AVERAGED, "model": WEIGHTS, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    unwrapped = unwrap(saved, "file")
    assert torch.equal(unwrapped.tensors["fc.weight"], WEIGHTS["fc.weight"])
    assert any("other dicts of tensors: ema (key='ema' takes that one)" in note for note in unwrapped.notes)
    assert any("left out: optimizer (dict)" in note for note in unwrapped.notes)
    averaged = unwrap(saved, "file", key="ema")
    assert torch.equal(averaged.tensors["fc.weight"], AVERAGED["fc.weight"])
    assert averaged.notes[0] == "took the dict under 'ema'"


def test_the_key_that_a_note_names_works() -> None:
    saved = {"state": 1, "model": {"ema": AVERAGED, "weights": WEIGHTS}}
    note = next(note for note in unwrap(saved, "file").notes if "key=" in note)
    key = note.split("key='")[1].split("'")[0]
    assert key == "model/ema"
    assert torch.equal(unwrap(saved, "file", key).tensors["fc.weight"], AVERAGED["fc.weight"])


def test_a_key_may_hold_a_slash() -> None:
    assert list(unwrap({"a/b": WEIGHTS, "ema": AVERAGED}, "file", key="a/b").tensors) == list(WEIGHTS)


def test_tensors_beside_a_wrapper_are_named() -> None:
    unwrapped = unwrap({"model": WEIGHTS, "step": torch.tensor(5)}, "file")
    assert list(unwrapped.tensors) == list(WEIGHTS)
    assert "left out: step (Tensor)" in unwrapped.notes


def test_what_is_no_tensor_among_tensors() -> None:
    saved = dict[object, object](WEIGHTS) | {"epoch": 2, "history": [1, 2], 7: torch.zeros(1)}
    unwrapped = unwrap(saved, "file")
    assert list(unwrapped.tensors) == list(WEIGHTS)
    assert unwrapped.metadata == {"epoch": 2}
    assert "left out: history (list), 7 (Tensor)" in unwrapped.notes


def test_parameters_come_detached_and_share_memory() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    tensor = unwrap({"w": parameter}, "file").tensors["w"]
    assert not tensor.requires_grad
    assert tensor.data_ptr() == parameter.data_ptr()


def test_several_unnamed_dicts_need_a_key() -> None:
    saved = {"actor": WEIGHTS, "critic": AVERAGED}
    with pytest.raises(CheckpointError, match=r"file: several dicts of tensors \('actor', 'critic'\).*key="):
        unwrap(saved, "file")
    assert torch.equal(unwrap(saved, "file", key="critic").tensors["fc.weight"], AVERAGED["fc.weight"])


@pytest.mark.parametrize("key", ["absent", "model/absent", "epoch"])
def test_a_key_that_leads_nowhere(key: str) -> None:
    with pytest.raises(CheckpointError, match=r"no dict under .*; dicts with tensors: "):
        unwrap({"model": WEIGHTS, "epoch": 1}, "file", key)


@pytest.mark.parametrize("saved", [torch.zeros(2), [torch.zeros(2)], None, "text"])
def test_no_dict(saved: object) -> None:
    with pytest.raises(CheckpointError, match=f"file: found a {type(saved).__name__}, expected a dict"):
        unwrap(saved, "file")


@pytest.mark.parametrize("saved", [{}, {"epoch": 1}, {"optimizer": {"state": {0: {"m": torch.zeros(1)}}}}])
def test_no_tensors(saved: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"no tensors within 3 levels, found .*expected a dict of"):
        unwrap(saved, "file")


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["module.a", "module.b"], "module."),
        (["module.module.a"], "module.module."),
        (["_orig_mod.module.a", "_orig_mod.module.b"], "_orig_mod.module."),
        (["module.a", "_orig_mod.a"], ""),
        (["module.a", "a"], ""),
        (["model.a"], ""),
        (["module."], ""),
        ([], ""),
    ],
)
def test_common_prefix(names: list[str], prefix: str) -> None:
    assert common_prefix(names) == prefix


parts = st.sampled_from(["module.", "_orig_mod.", "a", "b", "."])


@given(st.sets(st.lists(parts, min_size=1, max_size=4).map("".join), max_size=6))
def test_names_stay_distinct_and_nothing_more_comes_off(names: set[str]) -> None:
    prefix = common_prefix(names)
    short = {name.removeprefix(prefix) for name in names}
    assert len(short) == len(names)
    assert "" not in short
    assert common_prefix(short) == ""
