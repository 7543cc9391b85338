"""Writing checkpoints."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metanet_zoo import CheckpointError, open_checkpoint, save_checkpoint


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(True), "d": torch.zeros(0, 2)}
    save_checkpoint(path, tensors, {"made": "by a test"})
    checkpoint = open_checkpoint(path)
    assert checkpoint.metadata == {"made": "by a test"}
    assert checkpoint.keys() == tensors.keys()
    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in tensors.items())
    assert list(tmp_path.iterdir()) == [path]


def test_views_shared_and_trainable_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    parameter = nn.Parameter(torch.ones(2))
    empty = torch.zeros(0)
    tensors = {
        "base": base,
        "same": base,
        "transposed": base.t(),
        "row": base[1],
        "column": base[:, 1],
        "expanded": torch.ones(1).expand(4),
        "parameter": parameter,
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag,
        "empty": empty,
        "same_empty": empty,
    }
    save_checkpoint(tmp_path / "a.safetensors", tensors)
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint[name], tensor.detach()), name


def test_saving_over_the_checkpoint_that_is_open(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"a": torch.ones(1000)})
    checkpoint = open_checkpoint(path)
    read = checkpoint["a"]
    save_checkpoint(path, checkpoint)
    assert torch.equal(open_checkpoint(path)["a"], torch.ones(1000))
    assert torch.equal(read, torch.ones(1000))


BAD: dict[str, tuple[object, type[Exception], str]] = {
    "meta": (torch.zeros(2, device="meta"), CheckpointError, "'bad': a meta tensor without values"),
    "sparse": (torch.eye(2).to_sparse(), CheckpointError, "layout torch.sparse_coo"),
    "double complex": (
        torch.zeros(2, dtype=torch.complex128),
        CheckpointError,
        "torch.complex128, expected",
    ),
    "no tensor": ([1, 2], TypeError, "'bad': found list"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path, kind: str) -> None:
    value, error, message = BAD[kind]
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"old": torch.ones(1)})
    with pytest.raises(error, match=message):
        save_checkpoint(path, {"good": torch.ones(1), "bad": value})  # type: ignore[dict-item]
    assert list(open_checkpoint(path)) == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_names_and_metadata(tmp_path: Path) -> None:
    tensor = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"ends in \.safetensors"):
        save_checkpoint(tmp_path / "a.pt", {"a": tensor})
    with pytest.raises(CheckpointError, match="'__metadata__', which the format keeps"):
        save_checkpoint(tmp_path / "a.safetensors", {"__metadata__": tensor})
    with pytest.raises(TypeError, match="metadata 'epoch': found 3, expected text"):
        save_checkpoint(tmp_path / "a.safetensors", {"a": tensor}, {"epoch": 3})  # type: ignore[dict-item]
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_checkpoint(tmp_path / "absent" / "a.safetensors", {"a": tensor})
    assert not list(tmp_path.iterdir())


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {"a": torch.ones(1 << 18)}
    with (
        pytest.raises(OSError, match=r"a\.safetensors: not written .*nothing is left"),
        file_size_limit(1 << 16),
    ):
        save_checkpoint(tmp_path / "a.safetensors", tensors)
    assert not list(tmp_path.iterdir())
