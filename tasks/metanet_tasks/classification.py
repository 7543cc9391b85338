"""The classification task: say from the weights alone what a network represents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from metanet.canonical.form import canonicalize
from metanet.features import WeightFeatures
from metanet.spec import WeightSpec
from metanet_tasks.batches import Batch, epoch_seed
from metanet_tasks.datamodule import ZooDataModule
from metanet_tasks.networks import build_network

CHECKPOINT = "model.ckpt"
"""Name of the checkpoint in the folder of a run."""


class INRClassification(LightningModule):
    """Classify networks by their weights: cross-entropy on ``network(features)``.

    Trained by AdamW under the one-cycle policy. The hyperparameters are plain values and, with the state
    dict, all that it takes to rebuild the module (`load_classifier`). Every epoch draws its dropout from a
    seed of its own, so a resumed run continues as if it had not been interrupted.

    Args:
        spec: the spec of the networks to classify, as JSON text.
        label_names: what the classes mean.
        network: a key of `metanet_tasks.networks.NETWORKS`.
        options: of that network, e.g. ``{"hidden_channels": 32, "num_layers": 4}``.
        canonical: whether the weights are brought into their canonical form first.
        learning_rate: the peak of the one-cycle schedule.
        weight_decay: of AdamW.
        label_smoothing: of the cross-entropy.
        warmup: share of the steps in which the learning rate rises.
        seed: of what happens at random inside the network while training.

    References:
        Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101.
        Smith and Topin (2018), Super-Convergence, https://arxiv.org/abs/1708.07120.
    """

    def __init__(
        self,
        spec: str,
        label_names: Sequence[str],
        network: str = "unf",
        options: dict[str, Any] | None = None,
        canonical: bool = True,
        learning_rate: float = 4e-3,
        weight_decay: float = 0.01,
        label_smoothing: float = 0.0,
        warmup: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        options = dict(options or {})
        self.save_hyperparameters(
            {
                "spec": spec,
                "label_names": list(label_names),
                "network": network,
                "options": options,
                "canonical": canonical,
                "learning_rate": learning_rate,
                "weight_decay": weight_decay,
                "label_smoothing": label_smoothing,
                "warmup": warmup,
                "seed": seed,
            }
        )
        self.spec = WeightSpec.from_json(spec)
        self.label_names = tuple(label_names)
        self.canonical = canonical
        self.network = build_network(network, self.spec, len(self.label_names), options)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        classes = len(self.label_names)
        self.accuracy = nn.ModuleDict(
            {part: MulticlassAccuracy(classes, average="micro") for part in ("train_", "val_", "test_")}
        )

    def setup(self, stage: str) -> None:
        """Take the statistics of the training networks before the first epoch."""
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, ZooDataModule):
            self.network.fit_encoding(data.features("train"))  # type: ignore[operator]

    def forward(self, features: WeightFeatures) -> Tensor:
        """Map features of canonical weights (if so set) to logits ``[b, classes]``."""
        return self.network(features)  # type: ignore[no-any-return]

    @torch.no_grad()
    def probabilities(self, tensors: Mapping[str, Tensor], batch_size: int = 512) -> Tensor:
        """Return the probabilities of the classes for stacked state dicts, canonicalised here if so set.

        Args:
            tensors: entry name -> ``[models, *shape]``.
            batch_size: networks at a time.

        Returns:
            ``[models, classes]``.

        Raises:
            ValueError: names or shapes do not fit the spec.
        """
        self.spec.check({name: tuple(tensor.shape) for name, tensor in tensors.items()}, leading=1)
        was_training = self.training
        self.eval()
        results = []
        count = next(iter(tensors.values())).shape[0]
        for start in range(0, count, batch_size):
            part = {
                n: t[start : start + batch_size].to(
                    self.device, torch.float32 if t.is_floating_point() else t.dtype
                )
                for n, t in tensors.items()
            }
            part = canonicalize(self.spec, part) if self.canonical else part
            features = WeightFeatures.from_state_dict(self.spec, part, batched=True)
            results.append(self(features).softmax(-1).cpu())
        self.train(was_training)
        return torch.cat(results) if results else torch.zeros(0, len(self.label_names))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue a schedule that was laid out for another number of steps."""
        schedules = checkpoint.get("lr_schedulers") or [{}]
        begun = schedules[0].get("total_steps")
        if begun is None or self._trainer is None or not self.trainer.training:
            return
        if begun != (now := int(self.trainer.estimated_stepping_batches)):
            raise ValueError(
                f"the run was begun for {begun} steps, now it has {now}; continue it with the same "
                "max_epochs, batch_size and data, which the learning rate follows"
            )

    def on_train_epoch_start(self) -> None:
        """Seed dropout by the epoch."""
        torch.manual_seed(epoch_seed(self.hparams["seed"] + 1, self.current_epoch))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self._step("train", batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._step("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._step("test", batch)

    def _step(self, part: str, batch: Batch) -> Tensor:
        features, labels = batch
        logits = self(features)
        loss: Tensor = self.loss(logits, labels)
        accuracy = self.accuracy[f"{part}_"]
        assert isinstance(accuracy, MulticlassAccuracy)
        accuracy(logits, labels)
        self.log(f"{part}/loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        self.log(f"{part}/accuracy", accuracy, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW and its one-cycle schedule over all steps of the run."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.hparams["learning_rate"], weight_decay=self.hparams["weight_decay"]
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.hparams["learning_rate"],
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=self.hparams["warmup"],
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def load_classifier(path: str | Path) -> INRClassification:
    """Rebuild a trained classifier from its checkpoint, running no code that the file carries.

    Args:
        path: a checkpoint of `INRClassification`, or the folder of a run (its ``model.ckpt``).

    Raises:
        ValueError: no such checkpoint, or it is something else.
    """
    file = Path(path)
    if file.is_dir():
        file = file / CHECKPOINT
        if not file.is_file():
            raise ValueError(f"{path} holds no {CHECKPOINT}; pass the folder of a run, or a checkpoint")
    checkpoint = read_checkpoint(file)
    settings = checkpoint["hyper_parameters"]
    try:
        known = {key: settings[key] for key in ("spec", "label_names", "network", "options", "canonical")}
        model = INRClassification(**known)
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{file} is no checkpoint of a classifier that this version can rebuild: {error}"
        ) from None
    return model.eval()


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a training checkpoint with tensors and plain values alone.

    Raises:
        ValueError: there is none, it cannot be read, it needs code, or it is no training checkpoint.
    """
    if not file.is_file():
        raise ValueError(f"no checkpoint {file}; pass the file or folder that metanet train wrote")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises whatever its unpickler meets; the lines after the first advise to drop the safety.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{file} cannot be read as a checkpoint of plain values and tensors: {reason}"
        ) from None
    if not isinstance(checkpoint, dict) or not {"hyper_parameters", "state_dict"} <= set(checkpoint):
        raise ValueError(f"{file} is no training checkpoint; expected one that metanet train wrote")
    return checkpoint
