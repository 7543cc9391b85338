from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from metanet import WeightSpec, spec_of
from metanet_zoo.spec_cache import cache_folder, cache_key, cached_spec

SPEC = spec_of(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), torch.zeros(1, 2))


class Derivation:
    """Counts how often a spec is derived."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> WeightSpec:
        self.times += 1
        return SPEC


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METANET_CACHE", str(tmp_path))
    return tmp_path


def test_a_spec_is_derived_once(folder: Path) -> None:
    derive, key = Derivation(), cache_key({"config": "a"})
    assert cached_spec(key, derive) == (SPEC, False)
    found, known = cached_spec(key, derive)
    assert known
    assert found == SPEC
    assert found.operations == SPEC.operations
    assert derive.times == 1
    assert cached_spec(cache_key({"config": "b"}), derive) == (SPEC, False)
    assert cached_spec(None, derive) == (SPEC, False)
    assert derive.times == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "edited", "folder"])
def test_a_damaged_entry_is_derived_again(folder: Path, damage: str) -> None:
    derive, key = Derivation(), cache_key({})
    cached_spec(key, derive)
    [file] = folder.rglob("*.json")
    text = file.read_text()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_text({"empty": "", "cut": text[:-40], "edited": text.replace("8 sign", "8")}[damage])
    assert cached_spec(key, derive) == (SPEC, False)
    assert derive.times == 2
    assert cached_spec(key, derive)[1] == (damage != "folder")


def test_nothing_is_left_behind_and_a_folder_that_cannot_be_written_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_spec(cache_key({}), Derivation())
    assert [path.suffix for path in folder.rglob("*") if path.is_file()] == [".json"]
    (folder / "file").write_text("")
    monkeypatch.setenv("METANET_CACHE", str(folder / "file"))
    assert cached_spec(cache_key({}), Derivation()) == (SPEC, False)


def test_the_folder_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METANET_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("METANET_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert tmp_path in cache_folder().parents
