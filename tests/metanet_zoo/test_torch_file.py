"""Files of torch.save: read without running what they name."""

import argparse
import os
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from metanet_zoo.errors import CheckpointError
from metanet_zoo.torch_file import load_torch_file

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.zeros(2)}


class Trap:
    """Touches a file when unpickled: the mark that code has run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.mark), os.O_CREAT | os.O_WRONLY)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save(
        {"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}, path, _use_new_zipfile_serialization=zipped
    )
    loaded = load_torch_file(path)
    assert isinstance(loaded, dict)
    assert torch.equal(loaded["state_dict"]["fc.weight"], STATE["fc.weight"])
    assert loaded["args"].lr == 0.1


def test_zipped_tensors_are_mapped_and_private(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    content = path.read_bytes()
    loaded = load_torch_file(path)
    assert isinstance(loaded, dict)
    if Path("/proc/self/maps").exists():
        assert str(path) in Path("/proc/self/maps").read_text()
    loaded["fc.weight"].fill_(9)
    assert path.read_bytes() == content


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_named_and_never_run(tmp_path: Path, zipped: bool) -> None:
    mark, path = tmp_path / "mark", tmp_path / "trap.pt"
    torch.save({"state_dict": STATE, "extra": Trap(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"trap\.pt: this pickle needs code \(\w+\.open\).*sandbox.*safetensors"
    ):
        load_torch_file(path)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "module.pt"
    torch.save(nn.Linear(2, 3), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*model\.state_dict\(\)"):
        load_torch_file(path)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.Linear(2, 3)).save(path)
    with pytest.raises(CheckpointError, match="a TorchScript program, expected a saved state dict"):
        load_torch_file(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\x00.", b"plain text", bytes(99)]
)
def test_no_torch_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.pt: damaged, or not written by torch\.save \(\w+"):
        load_torch_file(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, bytes]:
    path = tmp_path_factory.mktemp("small") / "a.pt"
    contents = {}
    for zipped in (True, False):
        torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
        contents[zipped] = path.read_bytes()
    return contents


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    zipped=st.booleans(),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=5),
    cut=st.floats(0, 1) | st.just(1.0),
)
def test_damage_is_an_error_and_never_a_crash(
    tmp_path: Path, small: dict[bool, bytes], zipped: bool, flips: list[tuple[float, int]], cut: float
) -> None:
    content = bytearray(small[zipped])
    for place, mask in flips:
        content[int(place * len(content))] ^= mask
    path = tmp_path / "fuzz.pt"
    path.write_bytes(content[: int(cut * len(content))])
    try:
        load_torch_file(path)
    except CheckpointError:
        return
    assert cut > 0.9
