from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from metanet_tasks.classification import load_classifier
from metanet_tasks.cli import main
from metanet_tasks.configs import find_config, shipped_configs
from metanet_tasks.datamodule import ZooDataModule
from metanet_tasks.networks import build_network
from metanet_tasks.train_config import build_cli, train
from metanet_zoo.store import Zoo

SMALL = ["--model.options", '{"hidden_channels": 4, "num_layers": 2}', "--trainer.max_epochs", "2"]


@pytest.mark.parametrize("name", ["digits_unf", "mnist_inr_dws", "mnist_inr_gmn", "mnist_inr_unf"])
def test_shipped_configurations_build(name: str, tiny_zoo: Zoo, tmp_path: Path) -> None:
    assert name in shipped_configs()
    cli = build_cli(["--config", str(find_config(name)), "--data.zoo", str(tiny_zoo.path)], tmp_path)
    stored = yaml.safe_load(find_config(name).read_text())
    assert cli.model.hparams["network"] == stored["model"]["network"]
    assert cli.model.hparams["options"] == stored["model"]["options"]
    assert cli.trainer.max_epochs == stored["trainer"]["max_epochs"]
    assert isinstance(cli.datamodule, ZooDataModule)
    build_network(stored["model"]["network"], cli.datamodule.spec, 3, stored["model"]["options"])


def test_train_writes_what_it_resolved_to_and_repeats_itself(
    tiny_zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = [
        "train",
        "--config",
        "mnist_inr_unf",
        "--data.zoo",
        str(tiny_zoo.path),
        "--data.noise",
        "0.2",
        *SMALL,
    ]
    assert main([*arguments, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((out / "result.json").read_text())
    assert result["epochs"] == 2
    resolved = yaml.safe_load((out / "config.yaml").read_text())
    assert resolved["data"]["noise"] == 0.2
    assert resolved["model"]["options"] == {"hidden_channels": 4, "num_layers": 2}
    assert resolved["trainer"]["max_epochs"] == 2
    model = load_classifier(out)
    assert model.hparams["canonical"] is True
    assert model.hparams["seed"] == 0
    again = train(out / "config.yaml", out=tmp_path / "again")
    assert again.metrics == result["metrics"]
    assert main([*arguments, "--out", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments, "--out", str(out), "--resume"]) == 0
    assert "test" in capsys.readouterr().out


def test_a_run_continues_from_a_checkpoint_elsewhere_but_not_for_longer(
    tiny_zoo: Zoo, tmp_path: Path
) -> None:
    settings = ["--data.zoo", str(tiny_zoo.path), *SMALL]
    first = train("digits_unf", settings, out=tmp_path / "a")
    other = train("digits_unf", settings, out=tmp_path / "b", resume=first.checkpoint)
    assert other.metrics == first.metrics
    with pytest.raises(ValueError, match=r"begun for \d+ steps.*max_epochs"):
        train("digits_unf", [*settings, "--trainer.max_epochs", "3"], out=tmp_path / "a", resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere"], "none of digits_unf"),
        (["--config", "digits_unf"], "data.zoo"),
        (["--config", "digits_unf", "--data.zoo", "missing"], "holds no zoo"),
        (["--config", "digits_unf", "--data.colour", "1"], "colour"),
        (["--config", "digits_unf", "--data.noise", "loud", "--data.zoo", "missing"], "noise"),
        (["--config", "digits_unf", "--data.zoo", "ZOO", "--model.network", "unet"], "unet"),
        (["--config", "digits_unf", "--data.zoo", "ZOO", "--model.options.depth", "3"], "depth"),
    ],
)
def test_errors_are_one_line_and_leave_nothing_behind(
    arguments: list[str], message: str, tiny_zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tiny_zoo.path) if argument == "ZOO" else argument for argument in arguments]
    assert main(["train", *given, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("metanet: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "end",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL],
    ids=lambda end: end.name,
)
def test_a_process_that_is_told_to_end_can_be_resumed(
    tiny_zoo: Zoo, tmp_path: Path, end: signal.Signals
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--config", "digits_unf", "--data.zoo", str(tiny_zoo.path), "--out", str(out)]
    arguments += [
        "--model.options",
        '{"hidden_channels": 4, "num_layers": 2}',
        "--trainer.max_epochs",
        "5000",
    ]
    command = [sys.executable, "-m", "metanet_tasks.cli", *arguments]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts
    )
    deadline = time.monotonic() + 240
    while process.poll() is None and not _epochs(out) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(end)
    _, error = process.communicate(timeout=180)
    done = _epochs(out)
    assert done >= 1
    if end == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert error == "metanet: interrupted; the same command with --resume continues\n"
    checkpoint = torch.load(out / "model.ckpt", weights_only=True)
    assert checkpoint["epoch"] + 1 >= done - 1


def _heed_interrupts() -> None:
    """Undo what shells do to jobs in the background: they, and these tests with them, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _epochs(out: Path) -> int:
    file = out / "metrics.csv"
    return len(file.read_text().splitlines()) - 1 if (out / "model.ckpt").exists() and file.exists() else 0


def test_every_setting_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help-settings"]) == 0
    shown = capsys.readouterr().out
    for setting in ("--data.group_augmentation", "--model.label_smoothing", "--trainer.max_epochs"):
        assert setting in shown
