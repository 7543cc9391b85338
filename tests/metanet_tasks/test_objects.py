from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from metanet_tasks.objects import is_object, load_object, parse_input


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [
        ("f32[1,3,8,8]", (1, 3, 8, 8), torch.float32),
        ("f64[2, 5]", (2, 5), torch.float64),
        ("bf16[4]", (4,), torch.bfloat16),
        ("i64[1,16]:1000", (1, 16), torch.int64),
        ("bool[3]", (3,), torch.bool),
        ("f32[]", (), torch.float32),
    ],
)
def test_inputs_have_the_shape_and_dtype_that_was_written(
    text: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    value = parse_input(text, torch.Generator().manual_seed(0))
    assert tuple(value.shape) == shape
    assert value.dtype == dtype


def test_integers_stay_below_their_limit_and_reach_it() -> None:
    values = parse_input("i64[2000]:7", torch.Generator().manual_seed(0))
    assert set(values.tolist()) == set(range(7))
    assert set(parse_input("i64[200]", torch.Generator()).tolist()) == {0, 1}


@pytest.mark.parametrize(
    "text", ["f32", "f33[1]", "f32[1,-1]", "f32[1;2]", "f32[2]:5", "u8[2]:257", "i64[2]:0"]
)
def test_unreadable_inputs_are_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("[")[0]):
        parse_input(text, torch.Generator())


def test_a_path_that_exists_is_no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_object("nets.mlp:build")
    assert is_object("torch.nn:Identity")
    (tmp_path / "nets:build").write_bytes(b"")
    assert not is_object("nets:build")
    assert not is_object("org/name")
    assert not is_object("model.pt")


def test_objects_come_from_the_current_folder_in_evaluation_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(2, 3), nn.Dropout())
def needs(x):
    return x
ready = build()
n = 3
"""
    (tmp_path / "local_nets_of_this_test.py").write_text(source)
    for name in ("build", "ready"):
        model = load_object(f"local_nets_of_this_test:{name}")
        assert not model.training
        assert list(model.state_dict()) == ["0.weight", "0.bias"]
    with pytest.raises(ValueError, match=r"no 'buidl'.*build"):
        load_object("local_nets_of_this_test:buidl")
    with pytest.raises(ValueError, match="is a int"):
        load_object("local_nets_of_this_test:n")
    with pytest.raises(ValueError, match="without arguments"):
        load_object("local_nets_of_this_test:needs")
    with pytest.raises(ValueError, match="no module 'nowhere_to_be_found'"):
        load_object("nowhere_to_be_found:build")
