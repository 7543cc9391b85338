"""Runs of the comparison: a training per (task, optimizer, rate, schedule, seed), kept when it is done."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from metanet.optim import LearnedOptimizer
from metanet_tasks.optim.baselines import BASELINES
from metanet_tasks.optim.tasks import Data, Task, accuracy, loss_of

STEPS = 2000
LAST = 100
"""Steps at the end whose mean training loss is the result."""
WINDOW = 20
"""Steps that one point of a stored curve is the mean of."""


@dataclass(frozen=True)
class Setting:
    """What identifies a run.

    Args:
        task: name of the task.
        optimizer: name of a baseline, or ``learned:NAME`` with the name or path of meta-weights.
        rate: learning rate; the multiplier 1.0 of a learned optimizer.
        schedule: ``constant`` or ``cosine``; ``own`` for a learned optimizer.
        seed: of initial weights and batches.
        steps: optimizer steps.
    """

    task: str
    optimizer: str
    rate: float
    schedule: str
    seed: int
    steps: int = STEPS

    @property
    def key(self) -> str:
        """A line of text that identifies it."""
        return json.dumps(asdict(self), sort_keys=True)


def run(
    task: Task, setting: Setting, folder: Path, wrap: Callable[[Training], None] | None = None
) -> dict[str, Any]:
    """Train one network.

    Args:
        task: of the setting.
        setting: what to run.
        folder: of the data.
        wrap: changes the training before it begins, such as its optimizers.

    Returns:
        ``final`` (mean training loss of the last 100 steps), ``curve`` (means over 20 steps), ``accuracy`` on
        test examples, ``seconds`` of all steps, optimizer included; a divergent run has ``final`` = inf.
    """
    data = task.data(folder)
    inputs, targets = data.train
    training = Training(task, setting, inputs[:2])
    if wrap is not None:
        wrap(training)
    losses = torch.full((setting.steps,), math.inf)
    start = time.perf_counter()
    for step in range(setting.steps):
        chosen = training.draw(len(inputs))
        training.model.zero_grad()
        loss = loss_of(training.model, inputs[chosen], targets[chosen])
        loss.backward()
        training.step()
        if not training.sound(value := float(loss.detach())):
            break
        losses[step] = value
    seconds = time.perf_counter() - start
    training.finish()
    return outcome(losses, training.model, data, seconds)


class Training:
    """A network with its optimizers and schedules, as a setting says; seeded, so that runs are paired.

    Args:
        task: the network and the batch size.
        setting: optimizer, rate, schedule, seed, steps.
        example: two inputs.
    """

    def __init__(self, task: Task, setting: Setting, example: torch.Tensor) -> None:
        torch.manual_seed(setting.seed)
        self.model = task.build()
        self.batch_size = task.batch_size
        self.generator = torch.Generator().manual_seed(setting.seed)
        self.optimizers = _optimizers(self.model, setting, example)
        cosine = setting.schedule == "cosine"
        self.schedules = [_warmup_cosine(o, setting.steps) for o in self.optimizers] if cosine else []
        _mode(self.optimizers, training=True)

    def draw(self, count: int) -> torch.Tensor:
        """Return the indices of the next batch."""
        return torch.randint(count, (self.batch_size,), generator=self.generator)

    def step(self) -> None:
        """Let optimizers and schedules step."""
        for optimizer in self.optimizers:
            optimizer.step()
        for schedule in self.schedules:
            schedule.step()

    def sound(self, loss: float) -> bool:
        """Return whether a loss is that of a training that has not diverged."""
        return math.isfinite(loss) and loss <= 1e3

    def finish(self) -> None:
        """Bring the network to the weights that its optimizers give."""
        _mode(self.optimizers, training=False)


def outcome(losses: torch.Tensor, model: torch.nn.Module, data: Data, seconds: float) -> dict[str, Any]:
    """Return the result of a training with ``[steps]`` losses, infinite from where it diverged."""
    final = float(losses[-LAST:].mean())
    curve = losses.unfold(0, WINDOW, WINDOW).mean(1)
    return {
        "final": final,
        "curve": [round(float(value), 5) for value in curve],
        "accuracy": accuracy(model, data.test) if math.isfinite(final) else 0.0,
        "seconds": seconds,
        "threads": torch.get_num_threads(),
    }


def _optimizers(model: torch.nn.Module, setting: Setting, example: torch.Tensor) -> list[Optimizer]:
    kind, _, name = setting.optimizer.partition(":")
    if kind == "learned":
        return [
            LearnedOptimizer.from_pretrained(
                name, model, total_steps=setting.steps, example_args=(example,), lr=setting.rate
            )
        ]
    if setting.optimizer not in BASELINES:
        known = ", ".join([*BASELINES, "learned:NAME"])
        raise ValueError(f"no optimizer {setting.optimizer!r} in the comparison; there are {known}")
    return BASELINES[setting.optimizer].build(model, setting.rate, setting.steps)


def _warmup_cosine(optimizer: Optimizer, steps: int) -> LambdaLR:
    warmup = max(steps // 20, 1)

    def factor(step: int) -> float:
        rise = min((step + 1) / warmup, 1.0)
        return rise * 0.5 * (1 + math.cos(math.pi * min((step + 0.5) / steps, 1.0)))

    return LambdaLR(optimizer, factor)


def _mode(optimizers: Iterable[Optimizer], *, training: bool) -> None:
    """Switch schedule-free optimizers between the weights they train and those they give."""
    for optimizer in optimizers:
        switch = getattr(optimizer, "train" if training else "eval", None)
        if callable(switch):
            switch()


class Results:
    """Finished runs, one JSON line each; a killed benchmark continues behind the last whole line.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        if path.exists():
            text = path.read_text(encoding="utf-8")
            if text and not text.endswith("\n"):  # torn by a kill: what is added next begins its own line
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                self.found[Setting(**entry["setting"]).key] = entry["result"]

    def add(self, setting: Setting, result: dict[str, Any]) -> None:
        """Keep a run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"setting": asdict(setting), "result": result}) + "\n")
        self.found[setting.key] = result

    def __iter__(self) -> Iterator[tuple[Setting, dict[str, Any]]]:
        return ((Setting(**json.loads(key)), result) for key, result in self.found.items())


def sweep(task: str, optimizer: str, *, seeds: int = 1, steps: int = STEPS) -> list[Setting]:
    """Return the settings that tune a baseline on the first seeds."""
    baseline = BASELINES[optimizer]
    return [
        Setting(task, optimizer, rate, schedule, seed, steps)
        for schedule in baseline.schedules
        for rate in baseline.rates
        for seed in range(seeds)
    ]


def best(results: Results, task: str, optimizer: str, schedule: str, steps: int = STEPS) -> float | None:
    """Return the rate with the lowest mean final loss of a swept baseline, or None before its sweep."""
    by_rate: dict[float, list[float]] = {}
    for setting, result in results:
        if (setting.task, setting.optimizer, setting.schedule, setting.steps) == (
            task,
            optimizer,
            schedule,
            steps,
        ) and setting.seed == 0:
            by_rate.setdefault(setting.rate, []).append(result["final"])
    return min(by_rate, key=lambda rate: sum(by_rate[rate]) / len(by_rate[rate])) if by_rate else None
