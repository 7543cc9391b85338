"""One door to every kind of checkpoint."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import metanet_zoo
from metanet_zoo import Checkpoint, CheckpointError, open_checkpoint

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.zeros(2), "steps": torch.tensor(7)}


def one_safetensors(folder: Path) -> Path:
    save_file(STATE, folder / "net.safetensors", {"format": "pt"})
    return folder / "net.safetensors"


def sharded(folder: Path, suffix: str = ".safetensors", stem: str = "model") -> Path:
    weight_map = {}
    for number, (name, tensor) in enumerate(STATE.items(), 1):
        file = f"{stem}-0000{number}-of-00003{suffix}"
        weight_map[name] = file
        if suffix == ".safetensors":
            save_file({name: tensor}, folder / file, {"format": "pt"})
        else:
            torch.save({name: tensor}, folder / file)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 40}, "weight_map": weight_map}))
    return index


def folder_of_shards(folder: Path) -> Path:
    return sharded(folder).parent


def folder_of_one(folder: Path) -> Path:
    return one_safetensors(folder).parent


def folder_of_bin_shards(folder: Path) -> Path:
    return sharded(folder, ".bin", "pytorch_model").parent


def torch_zip(folder: Path) -> Path:
    torch.save(STATE, folder / "net.pth")
    return folder / "net.pth"


def torch_legacy(folder: Path) -> Path:
    torch.save(STATE, folder / "net.th", _use_new_zipfile_serialization=False)
    return folder / "net.th"


def safetensors_named_bin(folder: Path) -> Path:
    return one_safetensors(folder).rename(folder / "net.bin")


def module(_: Path) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.register_buffer("steps", torch.tensor(0))

    net = Net()
    net.load_state_dict(STATE)
    return net


def mapping(_: Path) -> Mapping[str, object]:
    return STATE


Make = Callable[[Path], Path | nn.Module | Mapping[str, object]]
KINDS: list[Make] = [
    one_safetensors,
    sharded,
    folder_of_shards,
    folder_of_one,
    folder_of_bin_shards,
    torch_zip,
    torch_legacy,
    safetensors_named_bin,
    module,
    mapping,
]


@pytest.mark.parametrize("make", KINDS)
def test_every_kind_keeps_the_contract(tmp_path: Path, make: Make) -> None:
    source = make(tmp_path)
    with open_checkpoint(source) as checkpoint:
        assert isinstance(checkpoint, Checkpoint)
        assert checkpoint.keys() == STATE.keys()
        assert len(checkpoint) == 3
        assert "fc.bias" in checkpoint
        assert "bias" not in checkpoint
        for name, tensor in STATE.items():
            assert checkpoint.shape(name) == tuple(tensor.shape)
            assert checkpoint.dtype(name) == tensor.dtype
            assert torch.equal(checkpoint[name], tensor)
            assert not checkpoint[name].requires_grad
        state = checkpoint.state_dict()
        assert state.keys() == STATE.keys()
        assert all(file.is_file() for file in checkpoint.files)
        assert bool(checkpoint.files) == isinstance(source, Path)
        assert checkpoint.notes == ()
        assert "3 tensors, 9 values of float32, int64" in repr(checkpoint)
    assert torch.equal(state["fc.weight"], STATE["fc.weight"])
    nn.Linear(3, 2).load_state_dict({name[3:]: state[name] for name in ("fc.weight", "fc.bias")})


@pytest.mark.parametrize("make", KINDS)
def test_worker_processes_get_their_own(tmp_path: Path, make: Make) -> None:
    checkpoint = open_checkpoint(make(tmp_path))
    assert torch.equal(checkpoint["steps"], torch.tensor(7))
    copy = pickle.loads(pickle.dumps(checkpoint))
    assert list(copy) == list(checkpoint)
    assert all(torch.equal(copy[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("make", KINDS)
def test_unknown_names_get_the_nearest(tmp_path: Path, make: Make) -> None:
    checkpoint = open_checkpoint(make(tmp_path))
    for ask in (checkpoint.__getitem__, checkpoint.shape, checkpoint.dtype):
        with pytest.raises(KeyError, match=r"no tensor 'fc\.wieght' among 3; nearest: 'fc\.weight'"):
            ask("fc.wieght")
    assert checkpoint.get("fc.wieght") is None


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    header = json.dumps({"a": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + 2**40)  # a terabyte on paper, a block on disk
    checkpoint = open_checkpoint(path)
    assert checkpoint.shape("a") == (2**40,)
    assert "1,099,511,627,776 values of uint8" in repr(checkpoint)


def test_text_paths_and_metadata(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(one_safetensors(tmp_path)))
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.source == str(tmp_path / "net.safetensors")
    index = sharded(tmp_path)
    assert open_checkpoint(index).metadata == {"total_size": 40, "format": "pt"}
    assert [file.name for file in open_checkpoint(index).files] == [
        "model.safetensors.index.json",
        *(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
    ]


@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_and_prefixes_come_off_and_are_said(tmp_path: Path, zipped: bool) -> None:
    state = {f"module._orig_mod.{name}": tensor for name, tensor in STATE.items()}
    path = tmp_path / "run.ckpt"
    saved = {"state_dict": state, "epoch": 5, "optimizer_states": [{"state": {0: torch.ones(1)}}]}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(path)
    assert checkpoint.keys() == STATE.keys()
    assert checkpoint.metadata == {"epoch": 5}
    assert checkpoint.notes == (
        "took the dict under 'state_dict'",
        "kept as metadata, not as tensors: epoch",
        "left out: optimizer_states (list)",
        "removed the prefix 'module._orig_mod.' from all names",
    )
    assert all(note in repr(checkpoint) for note in checkpoint.notes)


def test_prefixes_in_safetensors(tmp_path: Path) -> None:
    save_file({f"module.{name}": tensor for name, tensor in STATE.items()}, tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(checkpoint["fc.weight"], STATE["fc.weight"])
    assert checkpoint.notes == ("removed the prefix 'module.' from all names",)


def test_key_picks_a_dict(tmp_path: Path) -> None:
    averaged = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"model": STATE, "ema": averaged}, tmp_path / "a.pt")
    assert torch.equal(open_checkpoint(tmp_path / "a.pt", key="ema")["steps"], torch.tensor(8))
    assert torch.equal(
        open_checkpoint({"model": STATE, "ema": averaged}, key="ema")["steps"], torch.tensor(8)
    )
    for source in (one_safetensors(tmp_path), nn.Linear(1, 1)):
        with pytest.raises(CheckpointError, match="key='ema' was given"):
            open_checkpoint(source, key="ema")


def test_a_module_keeps_its_names_and_memory() -> None:
    net = nn.DataParallel(nn.Linear(3, 2))
    checkpoint = open_checkpoint(net)
    assert list(checkpoint) == ["module.weight", "module.bias"]
    checkpoint["module.bias"].fill_(4)
    assert torch.equal(net.module.bias.detach(), torch.full((2,), 4.0))
    assert open_checkpoint(checkpoint) is checkpoint
    assert len({checkpoint, open_checkpoint(net)}) == 2


def test_a_lazy_module_is_not_ready() -> None:
    with pytest.raises(CheckpointError, match=r"weight, bias without a shape; run the module once"):
        open_checkpoint(nn.LazyLinear(2))


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    content = json.loads(index.read_text())
    weight_map = content["weight_map"]
    index.write_text(json.dumps({"weight_map": {**weight_map, "ghost": weight_map["steps"]}}))
    with pytest.raises(
        CheckpointError, match=r"'ghost' is said to be in model-00003-of-00003\..*, which holds 1"
    ):
        open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"steps": weight_map["steps"]}}))
    assert open_checkpoint(tmp_path).notes == ()
    save_file({"steps": torch.tensor(1), "extra": torch.zeros(1)}, tmp_path / weight_map["steps"])
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint) == ["steps"]
    assert checkpoint.notes == ("left out 1 tensors of the shards that the index does not list",)
    (tmp_path / weight_map["steps"]).unlink()
    with pytest.raises(CheckpointError, match="1 of 1 files that the index names are missing"):
        open_checkpoint(tmp_path)


def test_an_index_cannot_reach_outside(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    save_file({"steps": torch.tensor(1)}, tmp_path / "secret.safetensors")
    index = tmp_path / "inner" / "model.safetensors.index.json"
    for file in ("../secret.safetensors", str(tmp_path / "secret.safetensors")):
        index.write_text(json.dumps({"weight_map": {"steps": file}}))
        with pytest.raises(CheckpointError, match="outside the index's folder; nothing was opened"):
            open_checkpoint(index.parent)


def test_a_truncated_shard_is_found_at_the_door(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    shard = tmp_path / "model-00001-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"00001-of-00003.* ends at byte 24 .* which has 23"):
        open_checkpoint(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>not found</html>", "a web page or XML, expected a checkpoint"),
        (b"", "too short|damaged"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_what_downloads_leave_behind(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["no such file", "a/absent.safetensors", "/absent/model", "gpt2", "a/b/c", ""]
)
def test_neither_path_nor_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"is neither an existing path .* nor a repository 'org/name'"):
        open_checkpoint(text)


def test_a_path_goes_before_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    one_safetensors(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("org/name").files == (Path("org/name/net.safetensors"),)
    with pytest.raises(CheckpointError, match="revision='main' was given, but this is a local path"):
        open_checkpoint("org/name", revision="main")


def test_exports() -> None:
    assert {"Checkpoint", "CheckpointError", "open_checkpoint", "save_checkpoint"} <= set(dir(metanet_zoo))
    with pytest.raises(AttributeError, match=r"no attribute 'open_chekpoint'; it exports .*open_checkpoint"):
        metanet_zoo.open_chekpoint  # noqa: B018


def test_importing_is_light() -> None:
    code = (
        "import sys; sys.path[:] = eval(sys.argv[1]); import metanet_zoo; assert 'torch' not in sys.modules\n"
        "metanet_zoo.open_checkpoint\n"
        "assert not {'huggingface_hub', 'lightning', 'pyarrow'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, repr(sys.path)], check=True)


def test_real_resnets(shared_data: Path) -> None:
    for path in sorted((shared_data / "checkpoints" / "resnet-cifar10").glob("*.th")):
        checkpoint = open_checkpoint(path)
        assert checkpoint.shape("conv1.weight") == (16, 3, 3, 3)
        assert checkpoint["linear.weight"].shape == (10, 64)
        assert "removed the prefix 'module.' from all names" in checkpoint.notes
        accuracy = checkpoint.metadata["best_prec1"]
        assert isinstance(accuracy, float)
        assert 91 < accuracy < 93


def test_real_trajectory_and_policies(shared_data: Path) -> None:
    folder = shared_data / "checkpoints"
    for path in sorted((folder / "cnn-mnist-trajectory").glob("*.pt")):
        checkpoint = open_checkpoint(path)
        assert "took the dict under 'model_state'" in checkpoint.notes
        assert str(checkpoint.metadata["epoch"]) in path.stem
        assert all(tensor.isfinite().all() for tensor in checkpoint.values())
    policies = sorted((folder / "rl-policies").glob("*.pth"))
    assert len(policies) == 34
    for path in policies:
        checkpoint = open_checkpoint(path)
        assert "action_net.weight" in checkpoint
        tensor: Tensor
        for name, tensor in checkpoint.items():
            assert checkpoint.shape(name) == tuple(tensor.shape)


def test_real_pickle_is_refused(shared_data: Path) -> None:
    path = shared_data / "checkpoints" / "refuse" / "whole_module_pickle.pth"
    with pytest.raises(CheckpointError, match=r"needs code \(__main__\.Net, builtins\.getattr"):
        open_checkpoint(path)
