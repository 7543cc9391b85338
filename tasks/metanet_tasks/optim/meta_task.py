"""Meta-training of an update rule as a Lightning task: resumable, selecting on tasks of its own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from metanet.optim.meta.tasks import ACTIVATIONS, Classification, MLPTask
from metanet.optim.meta.trainer import MetaSettings, MetaTrainer, train_once
from metanet.optim.pretrained import RULES, MetaWeights
from metanet.optim.rule import UpdateRule


@dataclass(frozen=True)
class MLPFamily:
    """The distribution of inner tasks: MLPs of one to three hidden layers on images of 64 pixels.

    Args:
        data: data sets, drawn uniformly.
        widths: bounds of the log-uniform hidden widths.
        layers: bounds of the number of hidden layers.
        scales: bounds of the log-uniform reparametrisation; (1, 1) for none.
        widenings: bounds of how many times as wide networks are parametrised to be, log-uniform.

    See `MLPTask` for the two reparametrisations.
    """

    data: Sequence[Classification]
    widths: tuple[int, int] = (16, 64)
    layers: tuple[int, int] = (1, 3)
    scales: tuple[float, float] = (1.0, 1.0)
    widenings: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        """Refuse bounds that nothing lies between."""
        for name in ("widths", "scales", "widenings"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"expected {name} with 0 < low <= high, found {low} and {high}")

    def __call__(self, generator: torch.Generator) -> MLPTask:
        """Draw a task."""

        def uniform() -> float:
            return float(torch.rand((), generator=generator))

        def choose(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        def spread(low: float, high: float) -> float:
            return math.exp(math.log(low) + uniform() * (math.log(high) - math.log(low)))

        low, high = self.layers
        hidden = [round(spread(*self.widths)) for _ in range(low + choose(high - low + 1))]
        data = self.data[choose(len(self.data))]
        activation = ["relu", *ACTIVATIONS][choose(len(ACTIVATIONS) + 1)]
        classes = int(data.labels.max()) + 1
        widths = (data.inputs.shape[1], *hidden, classes)
        scale = spread(*self.scales)
        # no draw where there is none: tasks of earlier seeds stay what they were
        widening = spread(*self.widenings) if self.widenings != (1.0, 1.0) else 1.0
        return MLPTask(data, widths, activation, scale=scale, widening=widening)


class MetaTask(lightning.LightningModule):
    """One meta-parameter vector θ, moved by Adam along the estimates of `MetaTrainer`.

    Args:
        rule: what is meta-trained.
        trainer: estimates gradients.
        selection: tasks on which checkpoints are compared, with the number of inner steps.
        steps: meta-steps.
        learning_rate: of Adam, in units of the meta-parameters' scales; warmup and cosine.
        every: meta-steps between comparisons.
        start: initial θ, zeros by default.
    """

    def __init__(
        self,
        rule: UpdateRule,
        trainer: MetaTrainer,
        selection: Sequence[tuple[MLPTask, int]],
        *,
        steps: int,
        learning_rate: float,
        every: int,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.rule = rule
        self.meta = trainer
        self.selection = selection
        self.steps = steps
        self.learning_rate = learning_rate
        self.every = every
        self.theta = nn.Parameter(torch.zeros(rule.size) if start is None else start.clone())
        self.register_buffer("average", self.theta.detach().clone())
        self.register_buffer("chosen", self.theta.detach().clone())
        self.curve: list[dict[str, float]] = []
        self.average: Tensor
        self.chosen: Tensor

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam; the schedule is applied by hand."""
        return torch.optim.Adam([self.theta], lr=self.learning_rate, betas=(0.9, 0.99))

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Take one meta-step."""
        step = int(batch)
        optimizer: Any = self.optimizers()
        rise = min((step + 1) / 20, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        gradient, figures = self.meta.gradient(self.theta.detach())
        self.theta.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
        weight = 1 / min(step + 1, 40)
        self.average.lerp_(self.theta.detach(), weight)
        entry = {"step": float(step), **figures}
        if (step + 1) % self.every == 0 or step + 1 == self.steps:
            entry["selection"] = self.compare()
        self.curve.append(entry)
        self.log_dict(figures, prog_bar=True)

    def compare(self) -> float:
        """Evaluate the averaged θ on the selection tasks, and keep it if it is the best so far."""
        metas = self.rule.unpack(self.average[None])
        losses = [
            float(train_once(self.rule, metas, task, horizon, particles=4, seed=10_000)[-100:].mean())
            for task, horizon in self.selection
        ]
        found = sum(losses) / len(losses)
        if found <= min(
            (entry["selection"] for entry in self.curve if "selection" in entry), default=math.inf
        ):
            self.chosen.copy_(self.average)
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the particles."""
        checkpoint["meta_trainer"] = self.meta.state_dict()
        checkpoint["curve"] = self.curve

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the particles up again."""
        self.meta.load_state_dict(checkpoint["meta_trainer"])
        self.curve = checkpoint["curve"]


class _Steps(torch.utils.data.Dataset[int]):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> int:
        return index


def meta_train(
    rule: str,
    family: MLPFamily,
    selection: Sequence[tuple[MLPTask, int]],
    out: Path,
    *,
    steps: int,
    settings: MetaSettings,
    learning_rate: float = 0.06,
    every: int = 50,
    seed: int = 0,
    start: Tensor | None = None,
    description: Mapping[str, object] | None = None,
    compile: bool = False,
) -> MetaWeights:
    """Meta-train a rule; a run that was killed continues in the same folder.

    Args:
        rule: name of the rule.
        family: distribution of inner tasks.
        selection: tasks apart from it and from the benchmark, on which the checkpoint is chosen.
        out: folder for ``last.ckpt``, ``weights.safetensors`` and ``card.json``.
        steps: meta-steps.
        settings: of the estimator.
        learning_rate: of Adam over θ.
        every: meta-steps between checkpoints and comparisons.
        seed: of everything.
        start: initial θ.
        description: further entries of the card.
        compile: the rule's loops (`metanet.optim.rule.UpdateRule.compiling`).

    Returns:
        The chosen meta-weights, also written to ``out``.
    """
    made = RULES[rule]().compiling() if compile else RULES[rule]()
    task = MetaTask(
        made,
        MetaTrainer(made, family, settings, seed),
        selection,
        steps=steps,
        learning_rate=learning_rate,
        every=every,
        start=start,
    )
    out.mkdir(parents=True, exist_ok=True)
    last = out / "last.ckpt"
    keep = ModelCheckpoint(out, filename="last", every_n_train_steps=every, enable_version_counter=False)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[keep],
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    begun = time.process_time()
    loader = torch.utils.data.DataLoader(_Steps(steps), batch_size=1)
    trainer.fit(task, loader, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    card: dict[str, object] = {
        "rule": rule,
        "meta_steps": steps,
        "inner_steps": task.meta.inner_steps,
        "cpu_seconds_of_the_last_stretch": round(time.process_time() - begun),
        "seed": seed,
        "settings": asdict(settings),
        "learning_rate": learning_rate,
        "hidden_layers": family.layers,
        "hidden_widths": family.widths,
        "reparametrisations": {"scales": family.scales, "widenings": family.widenings},
        "selection_losses": [round(e["selection"], 4) for e in task.curve if "selection" in e],
        **(description or {}),
    }
    weights = MetaWeights(out.name, made, made.unpack(task.chosen[None].clone()), card)
    weights.save(out / "weights.safetensors")
    curve = [{key: round(value, 5) for key, value in entry.items()} for entry in task.curve]
    (out / "card.json").write_text(
        json.dumps({**card, "hash": weights.hash, "curve": curve}), encoding="utf-8"
    )
    return weights
