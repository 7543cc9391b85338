"""Safetensors headers held against their bytes."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from metanet_zoo.errors import CheckpointError
from metanet_zoo.safetensors_file import DTYPES, SafetensorsFile
from metanet_zoo.safetensors_header import read_header


def write_raw(path: Path, header: object, buffer: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + buffer)
    return path


def entry(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = {"a": entry([2], [0, 8]), "b": entry([1, 3], [8, 20])}


def test_every_dtype_round_trips(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(0, 2, (3, 4 * dtype.itemsize), generator=generator, dtype=torch.uint8).view(dtype)
        for name, dtype in DTYPES.items()
    }
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    file = SafetensorsFile(path)
    assert set(file.names()) == set(tensors)
    for name, tensor in tensors.items():
        assert file.shape(name) == tuple(tensor.shape)
        assert file.dtype(name) == tensor.dtype
        read = file.read(name)
        assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype)
        if tensor.numel() and tensor.dim():
            assert torch.equal(read.view(torch.uint8), tensor.view(torch.uint8))


def test_misaligned_tensor_is_read(tmp_path: Path) -> None:
    numbers = torch.tensor([1.5, -2.0])
    header = {"odd": entry([3], [0, 3], "U8"), "b": entry([2], [3, 11])}
    path = write_raw(tmp_path / "a.safetensors", header, bytes(3) + numbers.numpy().tobytes())
    assert torch.equal(SafetensorsFile(path).read("b"), numbers)


def test_close_then_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(4)}, path)
    file = SafetensorsFile(path)
    before = file.read("a")
    file.close()
    file.close()
    assert torch.equal(before, file.read("a"))


def test_writing_to_a_read_tensor_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(4)}, path)
    content = path.read_bytes()
    SafetensorsFile(path).read("a").fill_(7)
    assert path.read_bytes() == content


LIES: dict[str, tuple[object, int, str]] = {
    "unknown dtype": ({"a": entry([2], [0, 8], "F31")}, 8, r"'a' has the dtype 'F31', expected one of BOOL"),
    "dtype no text": ({"a": entry([2], [0, 8], ["F32"])}, 8, "has the dtype"),
    "negative size": ({"a": entry([-2], [0, 8])}, 8, r"shape \[-2\], expected .*non-negative"),
    "fractional size": ({"a": entry([2.0], [0, 8])}, 8, "non-negative integers"),
    "boolean size": ({"a": entry([True], [0, 4])}, 4, "non-negative integers"),
    "endless shape": ({"a": entry([1] * 65, [0, 4])}, 4, "at most 64"),
    "shape no list": ({"a": entry(2, [0, 8])}, 8, "has the shape 2"),
    "offsets reversed": ({"a": entry([2], [8, 0])}, 8, "0 <= start <= stop"),
    "three offsets": ({"a": entry([2], [0, 4, 8])}, 8, "0 <= start <= stop"),
    "too few bytes": ({"a": entry([3], [0, 8])}, 8, r"'a' .*\[0, 8\], expected 12 bytes"),
    "overflowing product": ({"a": entry([2**62, 2**62], [0, 8])}, 8, "expected 8507"),
    "beyond the buffer": ({"a": entry([2], [0, 8])}, 4, r"'a' ends at byte 8 .* which has 4; .*truncated"),
    "starts beyond": ({"a": entry([1], [4, 8])}, 8, r"'a' starts at byte 4 .*hole after the header.*byte 0"),
    "hole": (
        {"a": entry([1], [0, 4]), "b": entry([1], [8, 12])},
        12,
        r"hole after 'a', expected byte 4",
    ),
    "overlap": (
        {"a": entry([2], [0, 8]), "b": entry([1], [4, 8])},
        8,
        r"overlaps 'a', expected byte 8",
    ),
    "bytes left over": (GOOD, 24, "4 bytes follow the last tensor"),
    "missing key": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "an object of dtype, shape and data_offsets"),
    "entry no object": ({"a": [1, 2]}, 8, "an object of dtype"),
    "metadata no text": ({"__metadata__": {"a": 1}}, 0, "__metadata__ is .*object of strings"),
    "header a list": ([1], 0, "JSON list, expected an object"),
    "no JSON": (b'{"a": ', 0, "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', 0, "not JSON"),
    "deep JSON": (b"[" * 100_000, 0, "not JSON"),
    "long number": (b'{"a": ' + b"9" * 5000 + b"}", 0, "not JSON"),
    "name twice": (b'{"a": {}, "a": {}}', 0, "repeats 'a'"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_header_is_refused(tmp_path: Path, lie: str) -> None:
    header, size, message = LIES[lie]
    path = write_raw(tmp_path / "lying.safetensors", header, bytes(size))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert "lying.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [10**4, 100_000_001, 2**64 - 1])
def test_header_longer_than_the_file_or_the_limit(tmp_path: Path, length: int) -> None:
    path = write_raw(tmp_path / "long.safetensors", GOOD, bytes(20), length=length)
    with pytest.raises(CheckpointError, match=f"announce a header of {length} bytes, expected at most"):
        read_header(path)


def test_a_sparse_file_cannot_ask_for_a_giant_header(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "sparse.safetensors", b"{}", b"", length=200_000_000)
    with path.open("r+b") as file:
        file.truncate(10**9)
    with pytest.raises(CheckpointError, match="expected at most 100000000"):
        read_header(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = save({"a": torch.randn(3), "b": torch.arange(5)})
    path = tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
            read_header(path)


SMALL = save(
    {"a": torch.randn(3), "b.weight": torch.arange(5), "c": torch.ones(2, 2).bool()}, {"note": "fuzz"}
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(1, 255)), min_size=1, max_size=6),
    size=st.integers(0, 2 * len(SMALL)),
)
def test_damaged_bytes_load_or_are_refused(tmp_path: Path, flips: list[tuple[int, int]], size: int) -> None:
    content = bytearray(SMALL)
    for position, mask in flips:
        content[position] ^= mask
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(content[:size])
    try:
        file = SafetensorsFile(path)
        for name in file.names():
            assert file.read(name).shape == file.shape(name)
    except CheckpointError:
        return
    assert size >= len(SMALL)
