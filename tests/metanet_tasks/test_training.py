from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from metanet_tasks.baselines import FlatMLP
from metanet_tasks.classification import INRClassification, load_classifier
from metanet_tasks.datamodule import ZooDataModule
from metanet_tasks.networks import NETWORKS, build_network, network_options
from metanet_tasks.training import TRAINER_DEFAULTS, fit_classifier, run, run_callbacks
from metanet_zoo.store import Zoo

OPTIONS: dict[str, dict[str, Any]] = {
    "unf": {"hidden_channels": 4, "num_layers": 2, "head_features": 8},
    "dws": {"hidden_channels": 4, "num_layers": 2, "head_features": 8},
    "gmn": {"hidden_channels": 4, "num_layers": 2},
    "flat_mlp": {"hidden_features": 16, "dropout": 0.1},
}


def data(zoo: Zoo, **settings: Any) -> ZooDataModule:
    return ZooDataModule(str(zoo.path), batch_size=16, **settings)


def test_what_the_weights_say_is_learned(tiny_zoo: Zoo, tmp_path: Path) -> None:
    result = fit_classifier(
        data(tiny_zoo), tmp_path, options=OPTIONS["unf"], max_epochs=12, learning_rate=0.02
    )
    assert result.metrics["test/accuracy"] > 0.8
    assert result.history[-1]["train/loss"] < 0.5 * result.history[0]["train/loss"]


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_the_checkpoint_of_every_network_rebuilds_it(tiny_zoo: Zoo, tmp_path: Path, network: str) -> None:
    result = fit_classifier(
        data(tiny_zoo), tmp_path / "run", network=network, options=OPTIONS[network], max_epochs=2
    )
    assert [row["epoch"] for row in result.history] == [0, 1]
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["metrics"]["test/accuracy"] == result.metrics["test/accuracy"]
    rebuilt = load_classifier(tmp_path / "run")
    assert rebuilt.label_names == tiny_zoo.label_names
    weights = tiny_zoo.load()
    torch.testing.assert_close(
        rebuilt.probabilities(weights), result.model.probabilities(weights), rtol=0, atol=0
    )
    parts = rebuilt.probabilities(weights, batch_size=7)
    torch.testing.assert_close(parts, rebuilt.probabilities(weights))


class Killed(Exception):
    pass


class KillAfter(Callback):
    """Die in the middle of an epoch, as a process does that is killed."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise Killed


def test_a_killed_run_resumes_exactly(tiny_zoo: Zoo, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "network": "unf",
        "options": {**OPTIONS["unf"], "head_dropout": 0.3},
        "max_epochs": 4,
        "label_smoothing": 0.1,
    }
    whole = fit_classifier(data(tiny_zoo), tmp_path / "whole", **settings)
    torch.manual_seed(123)
    model = INRClassification(
        data(tiny_zoo).spec_json,
        tiny_zoo.label_names,
        settings["network"],
        settings["options"],
        label_smoothing=0.1,
    )
    model.load_state_dict(_initial(tiny_zoo, settings))
    out = tmp_path / "killed"
    callbacks = [*run_callbacks(out), KillAfter(2)]
    trainer = Trainer(**{**TRAINER_DEFAULTS, "max_epochs": 4, "callbacks": callbacks})
    with pytest.raises(Killed):
        run(trainer, model, data(tiny_zoo), out)
    torch.rand(100)
    resumed = fit_classifier(data(tiny_zoo), out, resume=True, **settings)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    columns = ("epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy")
    assert [[row[c] for c in columns] for row in resumed.history] == [
        [row[c] for c in columns] for row in whole.history
    ]
    first = torch.load(tmp_path / "whole" / "model.ckpt", weights_only=True)
    second = torch.load(out / "model.ckpt", weights_only=True)
    assert first["global_step"] == second["global_step"]
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert len((out / "metrics.csv").read_text().splitlines()) == 5


def _initial(zoo: Zoo, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = INRClassification(
        data(zoo).spec_json, zoo.label_names, settings["network"], settings["options"], label_smoothing=0.1
    )
    return model.state_dict()


def test_a_folder_with_a_run_is_neither_overwritten_nor_resumed_as_another(
    tiny_zoo: Zoo, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"network": "flat_mlp", "options": OPTIONS["flat_mlp"], "max_epochs": 1}
    fit_classifier(data(tiny_zoo), tmp_path, **settings)
    with pytest.raises(ValueError, match="holds a run already"):
        fit_classifier(data(tiny_zoo), tmp_path, **settings)
    with pytest.raises(ValueError, match=r"learning_rate was 0.004, now 0.1"):
        fit_classifier(data(tiny_zoo), tmp_path, learning_rate=0.1, resume=True, **settings)
    with pytest.raises(ValueError, match="no checkpoint"):
        fit_classifier(data(tiny_zoo), tmp_path / "new", resume=True, **settings)
    assert not (tmp_path / "new").exists()


def test_unknown_networks_and_options_list_the_known_ones(tiny_zoo: Zoo) -> None:
    spec = data(tiny_zoo).spec
    with pytest.raises(ValueError, match="unf, dws, gmn, flat_mlp"):
        build_network("unet", spec, 3, {})
    with pytest.raises(ValueError, match=r"no options \['width'\]; it has .*hidden_channels"):
        build_network("unf", spec, 3, {"width": 3})
    assert "network" not in network_options("dws")
    with pytest.raises(ValueError, match="at least one"):
        FlatMLP(spec, 3, num_layers=0)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint .*missing.ckpt"):
        load_classifier(tmp_path / "missing.ckpt")
    with pytest.raises(ValueError, match=r"holds no model.ckpt"):
        load_classifier(tmp_path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="no training checkpoint"):
        load_classifier(tmp_path / "plain.pt")
    torch.save({"hyper_parameters": {"spec": "{}"}, "state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="can rebuild"):
        load_classifier(tmp_path / "other.ckpt")
    torch.save({"hyper_parameters": Killed, "state_dict": {}}, tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match="plain values and tensors"):
        load_classifier(tmp_path / "code.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "plain.pt").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cut.ckpt cannot be read"):
        load_classifier(tmp_path / "cut.ckpt")
