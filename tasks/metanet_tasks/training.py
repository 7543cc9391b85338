"""Training a task: one run in one folder, resumable, from Python or from a configuration."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from metanet_tasks.callbacks import EpochProgress, History
from metanet_tasks.classification import CHECKPOINT, INRClassification, read_checkpoint
from metanet_tasks.datamodule import ZooDataModule
from metanet_zoo.atomic import write_json_atomic

CONFIG = "config.yaml"
RESULT = "result.json"

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 40,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "gradient_clip_val": 1.0,
}
"""Settings of Lightning's trainer that differ from its own defaults."""


@dataclass(frozen=True)
class TrainingResult:
    """What a run has come to.

    Args:
        model: the trained model, in evaluation mode.
        metrics: accuracy and loss by part, after the last epoch.
        history: one row per epoch.
        seconds: time trained.
        checkpoint: where the model is stored.
    """

    model: INRClassification
    metrics: Mapping[str, float]
    history: list[dict[str, float]]
    seconds: float
    checkpoint: Path

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values, without the model's weights."""
        return {
            "metrics": dict(self.metrics),
            "epochs": len(self.history),
            "seconds": self.seconds,
            "network": self.model.hparams["network"],
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
            "checkpoint": str(self.checkpoint),
        }


def fit_classifier(
    data: ZooDataModule,
    out: str | Path,
    *,
    network: str = "unf",
    options: dict[str, Any] | None = None,
    max_epochs: int = 40,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.01,
    label_smoothing: float = 0.0,
    warmup: float = 0.3,
    seed: int = 0,
    name: str | None = None,
    resume: bool | str | Path = False,
) -> TrainingResult:
    """Train a classifier of networks and test it, from plain arguments.

    Args:
        data: the networks.
        out: folder of the run, made if needed.
        network: a key of `metanet_tasks.networks.NETWORKS`.
        options: of the network.
        max_epochs: number of epochs.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of AdamW.
        label_smoothing: of the cross-entropy.
        warmup: share of the steps in which the learning rate rises.
        seed: of the initial weights and of dropout.
        name: shown with the progress; the network's by default.
        resume: True continues the run in ``out``; a path continues that checkpoint.

    Returns:
        The trained model and its figures.
    """
    quiet()
    seed_everything(seed, verbose=False)
    model = INRClassification(
        spec=data.spec_json,
        label_names=data.label_names,
        network=network,
        options=options,
        canonical=data.canonical,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        warmup=warmup,
        seed=seed,
    )
    callbacks = [*run_callbacks(Path(out)), EpochProgress(name or f"training {network}")]
    settings = {
        **TRAINER_DEFAULTS,
        "max_epochs": max_epochs,
        "default_root_dir": str(out),
        "callbacks": callbacks,
    }
    return run(Trainer(**settings), model, data, Path(out), resume)


def run_callbacks(out: Path) -> list[Callback]:
    """Return what every run needs: a checkpoint at the end of every epoch, and the learning curve."""
    checkpoint = ModelCheckpoint(
        dirpath=out,
        filename=CHECKPOINT.removesuffix(".ckpt"),
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return [History(out), checkpoint]


def run(
    trainer: Trainer,
    model: INRClassification,
    data: ZooDataModule,
    out: Path,
    resume: bool | str | Path = False,
) -> TrainingResult:
    """Fit, test, and write ``result.json``.

    Args:
        trainer: with the callbacks of `run_callbacks`.
        model: to train.
        data: to train on.
        out: folder of the run.
        resume: True continues the run in ``out``; a path continues that checkpoint.

    Raises:
        ValueError: a run is already there and shall not be resumed, or there is none to resume, or it was
            begun with another model.
        KeyboardInterrupt: the run was interrupted or told to end; what whole epochs did is kept.
    """
    start = _resume_from(model, out, resume)
    out.mkdir(parents=True, exist_ok=True)
    try:
        trainer.fit(model, data, ckpt_path=start, weights_only=True)
    except SystemExit as stop:
        # Lightning turns Ctrl-C and SIGTERM into an exit, the latter even with code 0.
        raise KeyboardInterrupt from stop
    (tested,) = trainer.test(model, data, verbose=False)
    history = next(callback for callback in trainer.callbacks if isinstance(callback, History))  # type: ignore[attr-defined]
    last = {name: value for name, value in history.rows[-1].items() if "/" in name}
    result = TrainingResult(model.eval(), {**last, **tested}, history.rows, history.seconds, out / CHECKPOINT)
    write_json_atomic(out / RESULT, result.to_dict())
    return result


def _resume_from(model: INRClassification, out: Path, resume: bool | str | Path) -> Path | None:
    if resume is False:
        if (out / CHECKPOINT).exists():
            raise ValueError(
                f"{out} holds a run already; continue it (--resume), or choose another folder (--out)"
            )
        return None
    start = out / CHECKPOINT if resume is True else Path(resume)
    begun = read_checkpoint(start)["hyper_parameters"]
    differing = sorted(k for k in {**begun, **model.hparams} if begun.get(k) != model.hparams.get(k))
    if differing:
        details = "; ".join(
            f"{key} was {_short(begun.get(key))}, now {_short(model.hparams.get(key))}" for key in differing
        )
        raise ValueError(
            f"{start} was begun with another model: {details}. Use the same settings to continue"
        )
    return start


def quiet() -> None:
    """Keep Lightning's notices about devices, workers and other products off the terminal."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (r".*dirpath has changed.*", r".*is not empty.*", r".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message, module=r"lightning\..*")


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
