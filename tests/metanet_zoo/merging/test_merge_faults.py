"""What goes wrong: kills, full disks, damaged and hostile inputs, two merges at once."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging import workspace
from metanet_zoo.merging.run import merge_checkpoints
from metanet_zoo.merging.workspace import Workspace, work_folder

NAMES = [f"layers.{i}.weight" for i in range(12)]

SLOW = """
import sys, time
from metanet_zoo.merging import workspace
from metanet_zoo.merging.run import merge_checkpoints
workspace.SYNC_BYTES = 1
write = workspace.write_at
def slowly(descriptor, data, offset):
    time.sleep(0.01)
    write(descriptor, data, offset)
workspace.write_at = slowly
recipe = {"merge_method": "dare_ties", "base_model": sys.argv[1],
          "models": [{"model": path} for path in sys.argv[2:4]], "parameters": {"weight": 1, "density": 0.5}}
print("ready", flush=True)
merge_checkpoints(recipe, sys.argv[4], resume="--resume" in sys.argv, max_shard_size=3000)
"""


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    paths = []
    for i in range(3):
        tensors = {name: torch.randn(16, 16, generator=generator) for name in NAMES}
        paths.append(tmp_path / f"{i}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def recipe(models: list[Path], **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "dare_ties",
        "base_model": str(models[0]),
        "models": [{"model": str(path)} for path in models[1:]],
        "parameters": {"weight": 1, "density": 0.5},
        **more,
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".safetensors"}


def test_killed_at_any_moment_nothing_looks_like_a_result_and_resuming_gives_the_same_bytes(
    models: list[Path], tmp_path: Path
) -> None:
    merge_checkpoints(recipe(models), tmp_path / "whole", max_shard_size=3000)
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW, *map(str, models), str(out)]
    moments = random.Random(0)
    resumed = False
    for attempt in range(6):
        process = subprocess.Popen(
            [*command, *(["--resume"] if attempt else [])], stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0.02, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if out.exists():
            break
        journal = work_folder(out) / workspace.JOURNAL
        resumed |= journal.exists() and len(journal.read_text().splitlines()) > 1
    if not out.exists():
        report = merge_checkpoints(recipe(models), out, max_shard_size=3000, resume=True)
        assert report.resumed == 0 or resumed
    assert contents(out) == contents(tmp_path / "whole")
    assert not work_folder(out).exists()


def failing_writes(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
    real = workspace.write_at
    count = 0

    def write(descriptor: int, data: memoryview | bytes, offset: int) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise error
        real(descriptor, data, offset)

    monkeypatch.setattr(workspace, "write_at", write)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()],
    ids=["full", "interrupt"],
)
@pytest.mark.parametrize("after", [0, 1, 4, 9])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_full_disk_or_an_interrupt_leaves_what_resume_goes_on_with(
    models: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    after: int,
    threads: int,
) -> None:
    merge_checkpoints(recipe(models), tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "SYNC_BYTES", 2000)
        failing_writes(patch, after, error)
        with pytest.raises(type(error)):
            merge_checkpoints(recipe(models), out, threads=threads)
    assert not out.exists()
    assert work_folder(out).exists()
    report = merge_checkpoints(recipe(models), out, resume=True)
    assert report.resumed <= max(0, after - 1)
    assert (report.resumed > 0) == (after >= 4)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_disk_without_room_is_seen_before_work(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage

    def full(path: Any) -> Any:
        return real(path)._replace(free=100)

    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(OSError, match="no room: the output takes"):
        merge_checkpoints(recipe(models), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resuming_another_merge_is_refused(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        failing_writes(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            merge_checkpoints(recipe(models), tmp_path / "out")
    with pytest.raises(CheckpointError, match="other inputs, recipe or version"):
        merge_checkpoints(recipe(models), tmp_path / "out", seed=1, resume=True)
    report = merge_checkpoints(recipe(models), tmp_path / "out", seed=1)
    assert report.resumed == 0


def test_a_torn_journal_costs_its_last_line_only(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_checkpoints(recipe(models), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "SYNC_BYTES", 1)
        failing_writes(patch, 8, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            merge_checkpoints(recipe(models), tmp_path / "out", threads=1)
    journal = work_folder(tmp_path / "out") / workspace.JOURNAL
    whole = journal.read_text().splitlines()
    journal.write_text(journal.read_text()[:-5])
    report = merge_checkpoints(recipe(models), tmp_path / "out", resume=True)
    assert report.resumed == len(whole) - 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_merges_to_one_output(models: list[Path], tmp_path: Path) -> None:
    with (
        Workspace(tmp_path / "out", "first", resume=False),
        pytest.raises(CheckpointError, match="another merge"),
    ):
        merge_checkpoints(recipe(models), tmp_path / "out")
    merge_checkpoints(recipe(models), tmp_path / "out")


def test_nan_is_refused_in_and_out_unless_allowed(models: list[Path], tmp_path: Path) -> None:
    bad = {name: torch.ones(16, 16) for name in NAMES}
    bad[NAMES[7]][3, 4] = float("nan")
    bad[NAMES[9]][0, 0] = float("inf")
    save_file(bad, models[1])
    with pytest.raises(
        CheckpointError, match=r"1\.safetensors: tensor 'layers.7.weight' holds NaN.*index 52"
    ):
        merge_checkpoints(recipe(models), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not work_folder(tmp_path / "out").exists()
    linear = recipe(models, merge_method="linear", parameters={"weight": 1})
    report = merge_checkpoints(linear, tmp_path / "out", allow_nonfinite=True)
    assert report.nonfinite == (NAMES[7], NAMES[9])
    assert merge_checkpoints(linear, tmp_path / "out2", allow_nonfinite=True, threads=1).nonfinite


def test_overflow_of_the_output_is_refused(models: list[Path], tmp_path: Path) -> None:
    large = {name: torch.full((16, 16), 60000.0) for name in NAMES}
    save_file(large, models[1])
    save_file(large, models[2])
    parameters = {"weight": 1, "normalize": False}
    overflowing = recipe(models, merge_method="linear", parameters=parameters, dtype="float16")
    with pytest.raises(CheckpointError, match="overflows F16"):
        merge_checkpoints(overflowing, tmp_path / "out")


def test_damaged_inputs_are_refused(models: list[Path], tmp_path: Path) -> None:
    data = models[1].read_bytes()
    models[1].write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        merge_checkpoints(recipe(models), tmp_path / "out")
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[NAMES[1]]["data_offsets"] = header[NAMES[0]]["data_offsets"]
    text = json.dumps(header).encode()
    models[1].write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(CheckpointError, match="overlaps"):
        merge_checkpoints(recipe(models), tmp_path / "out")


def test_a_file_cut_short_while_it_is_read(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty(descriptor: int, buffers: Any, offset: int) -> int:
        return 0

    monkeypatch.setattr(os, "preadv", empty)
    with pytest.raises(CheckpointError, match="cut short while it was read"):
        merge_checkpoints(recipe(models), tmp_path / "out")


def test_without_preadv_and_pwrite(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_checkpoints(recipe(models), tmp_path / "with")
    monkeypatch.delattr(os, "preadv")
    monkeypatch.delattr(os, "pwrite")
    merge_checkpoints(recipe(models), tmp_path / "without", threads=3)
    assert contents(tmp_path / "with") == contents(tmp_path / "without")


def sharded(folder: Path, weight_map: dict[str, str], files: dict[str, list[str]]) -> Path:
    folder.mkdir()
    for file, names in files.items():
        save_file({name: torch.ones(2) for name in names}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_hostile_and_inconsistent_indices(tmp_path: Path) -> None:
    outside = sharded(tmp_path / "outside", {"w": "../a.safetensors"}, {"a.safetensors": ["w"]})
    absent = sharded(
        tmp_path / "absent", {"w": "a.safetensors", "v": "a.safetensors"}, {"a.safetensors": ["w"]}
    )
    for folder, message in [(outside, "outside the index's folder"), (absent, "no tensor 'v'")]:
        with pytest.raises(CheckpointError, match=message):
            merge_checkpoints(
                {"merge_method": "passthrough", "models": [{"model": str(folder)}]}, tmp_path / "o"
            )
    # A tensor that two shards hold is taken from where the index says.
    both = sharded(
        tmp_path / "both",
        {"w": "a.safetensors", "v": "b.safetensors"},
        {"a.safetensors": ["w"], "b.safetensors": ["w", "v"]},
    )
    report = merge_checkpoints(
        {"merge_method": "passthrough", "models": [{"model": str(both)}]}, tmp_path / "o"
    )
    assert report.tensors == 2


def test_inputs_are_left_alone(models: list[Path], tmp_path: Path) -> None:
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in models]
    for path in models:
        path.chmod(0o444)
    merge_checkpoints(recipe(models), tmp_path / "out")
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in models] == before


def test_an_output_without_a_folder_is_refused(models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="create it first"):
        merge_checkpoints(recipe(models), tmp_path / "none" / "out")
