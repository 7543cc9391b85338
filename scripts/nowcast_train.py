"""Train a forecaster of weights on trajectories of small MLPs, and see whether nowcasting helps elsewhere.

    python scripts/nowcast_train.py --data ../shared/data --out runs/nowcast

Networks are MLPs with one to three hidden layers of 16-64 units on Fashion-MNIST averaged to 8x8, trained by
AdamW at rates that vary, half of them with a cosine. A forecaster is trained on what their weights were some
steps later, by the mean absolute error in units of the past change (Knyazev et al. 2025). Afterwards AdamW
trains the tasks of the comparison with and without it, constant and cosine; a few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from metanet.optim.forecaster import FORMS, STATES, Forecaster, History
from metanet.optim.meta.tasks import Classification, MLPTask
from metanet.optim.nowcaster import Nowcaster
from metanet_tasks.optim.harness import Setting, Training, run
from metanet_tasks.optim.meta_task import MLPFamily
from metanet_tasks.optim.tasks import TASKS, fashion_mnist


@dataclass(frozen=True)
class Trajectory:
    """States of networks of one shape at equal distances: per parameter ``[states, networks, …]``."""

    task: MLPTask
    states: list[Tensor]
    cosine: bool


def main() -> None:
    """Read the options, train, write the forecasters and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with fashion-mnist/, cifar10/, …")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--out", type=Path, required=True, help="folder for forecasters and figures")
    parser.add_argument("--groups", type=int, default=12, help="shapes of networks")
    parser.add_argument("--networks", type=int, default=8, help="networks per shape")
    parser.add_argument("--horizon", type=int, default=2000, help="steps of a trajectory")
    parser.add_argument("--every", type=int, default=100, help="steps between forecasts")
    parser.add_argument("--ahead", type=int, default=200, help="steps that forecasts look ahead at most")
    parser.add_argument("--updates", type=int, default=1500, help="steps of a forecaster's training")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--tasks", nargs="*", default=["mlp", "mlp-deep", "cnn"], help="to compare on")
    parser.add_argument("--rates", nargs=2, type=float, default=[0.016, 0.032], help="constant and cosine")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.process_time()
    generator = torch.Generator().manual_seed(options.seed)
    apart = options.every // STATES
    past: list[Trajectory] = []
    paths = {form: options.out / f"{form}.safetensors" for form in options.forms}
    for form, path in paths.items():
        if path.exists():
            continue
        while len(past) < options.groups:
            past.append(trajectory(options.data, options.networks, options.horizon, apart, generator))
        made, card = train(
            form, past, options.ahead // apart, options.updates, options.learning_rate, generator
        )
        Forecaster(form, made.metas, {**vars_of(options), **card}).save(path)
        print(f"{form}, {time.process_time() - begun:.0f} core-s so far: {card}", flush=True)
    compare({form: Forecaster.load(path) for form, path in paths.items()}, options)


def vars_of(options: argparse.Namespace) -> dict[str, object]:
    """Return the options that made a forecaster."""
    names = ("groups", "networks", "horizon", "every", "ahead", "updates", "learning_rate", "seed")
    return {name: getattr(options, name) for name in names}


def trajectory(
    folder: Path, networks: int, horizon: int, apart: int, generator: torch.Generator
) -> Trajectory:
    """Train networks of one shape with AdamW and keep every ``apart``-th state."""
    inputs, labels = fashion_mnist(folder).train
    task = MLPFamily([Classification(inputs, labels)])(generator)
    rate = math.exp(math.log(0.004) + float(torch.rand((), generator=generator)) * math.log(16))
    cosine = bool(torch.rand((), generator=generator) < 0.5)
    parameters = [p.requires_grad_() for p in task.initialize(networks, generator)]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    kept: list[list[Tensor]] = [[] for _ in parameters]
    for step in range(horizon):
        indices = torch.randint(len(labels), (networks, task.batch_size), generator=generator)
        with torch.no_grad():
            _, gradients = task.gradients([p.detach() for p in parameters], indices)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if cosine:
            rise = min((step + 1) / (horizon / 20), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate * rise * 0.5 * (1 + math.cos(math.pi * (step + 0.5) / horizon))
        optimizer.step()
        if (step + 1) % apart == 0:
            for states, parameter in zip(kept, parameters, strict=True):
                states.append(parameter.detach().clone())
    return Trajectory(task, [torch.stack(states) for states in kept], cosine)


def error(made: Forecaster, past: Trajectory, at: int, ahead: int) -> Tensor:
    """Return the mean absolute error of a forecast, in units of the past change of every tensor."""
    histories = [
        History(states[at - STATES + 1 : at + 1], role, entry)
        for states, role, entry in zip(past.states, past.task.roles, past.task.entries, strict=True)
    ]
    found = made(histories, ahead, (at + 1) / len(past.states[0]), past.task.links)
    total, count = torch.zeros(()), 0
    for forecast, history, states in zip(found, histories, past.states, strict=True):
        change = (history.states[-1] - history.states[0]).flatten(1)
        size = change.square().mean(1).sqrt() + 1e-8
        distance = (forecast - states[at + ahead]).flatten(1).abs() / size[:, None]
        total, count = total + distance.sum(), count + distance.numel()
    return total / count


def train(
    form: str,
    past: list[Trajectory],
    furthest: int,
    updates: int,
    learning_rate: float,
    generator: torch.Generator,
) -> tuple[Forecaster, dict[str, object]]:
    """Fit a forecaster to all trajectories but the last two, which it is held to."""
    made = Forecaster.initial(form)
    metas = [meta.requires_grad_() for meta in made.metas.values()]
    optimizer = torch.optim.Adam(metas, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    for _ in range(updates):
        chosen = past[draw(len(past) - 2)]
        count = len(chosen.states[0])
        ahead = 1 + draw(furthest)
        at = STATES - 1 + draw(count - ahead - STATES + 1)
        optimizer.zero_grad()
        error(made, chosen, at, ahead).backward()
        torch.nn.utils.clip_grad_norm_(metas, 1.0)
        optimizer.step()
        schedule.step()
    still = Forecaster.initial(form)
    figures: dict[str, object] = {}
    with torch.no_grad():
        for ahead in sorted({1, furthest // 2, furthest}):
            for name, other in (("forecast", made), ("no change", still)):
                errors = [
                    float(error(other, held, at, ahead))
                    for held in past[-2:]
                    for at in range(STATES - 1, len(held.states[0]) - ahead, 7)
                ]
                figures[f"{name}, {ahead} ahead"] = round(statistics.mean(errors), 4)
    return made, {"held-out error": figures}


def compare(forecasters: Mapping[str, Forecaster], options: argparse.Namespace) -> None:
    """Train with and without forecasts, in pairs; print and keep the final training losses."""
    lines = []
    for name in options.tasks:
        example = TASKS[name].data(options.data).train[0][:2]
        for schedule, rate in zip(("constant", "cosine"), options.rates, strict=True):
            finals: dict[str, list[float]] = {}
            for seed in range(options.seeds):
                setting = Setting(name, "AdamW", rate, schedule, seed, options.horizon)
                for label, made in {"none": None, **forecasters}.items():
                    wrap = None if made is None else partial(jumping, made, example, options)
                    result = run(TASKS[name], setting, options.data, wrap)
                    finals.setdefault(label, []).append(result["final"])
                    lines.append({**asdict(setting), "forecasts": label, **result})
            (options.out / "runs.json").write_text(json.dumps(lines), encoding="utf-8")
            for label, values in finals.items():
                differences = [a - b for a, b in zip(values, finals["none"], strict=True)]
                spread = statistics.stdev(differences) / len(values) ** 0.5 if len(values) > 1 else 0.0
                print(
                    f"{name:<9} AdamW {schedule:<9}{rate:<6g} forecasts: {label:<7}"
                    f"{statistics.mean(values):.4f}, difference {statistics.mean(differences):+.4f} "
                    f"± {spread:.4f} ({len(values)} seeds)",
                    flush=True,
                )


def jumping(made: Forecaster, example: Tensor, options: argparse.Namespace, training: Training) -> None:
    """Give a training forecasts."""
    training.optimizers = [
        Nowcaster(
            made,
            optimizer,
            training.model,
            total_steps=options.horizon,
            every=options.every,
            ahead=options.ahead,
            example_args=(example,),
        )
        for optimizer in training.optimizers
    ]


if __name__ == "__main__":
    main()
