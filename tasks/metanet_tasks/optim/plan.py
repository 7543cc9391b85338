"""What a comparison still has to run, in units; who runs them; and how long that will take."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeAlias

import torch

from metanet_tasks.optim.baselines import BASELINES
from metanet_tasks.optim.batched import run_batch
from metanet_tasks.optim.harness import Results, Setting, best, run, sweep
from metanet_tasks.optim.tasks import TASKS

Unit: TypeAlias = tuple[Setting, ...]
"""Settings that run as one batch, or one that runs alone."""
PROBE = 24
"""Steps by which the time of a step is measured."""


def sweeps(task: str, baselines: Sequence[str], results: Results) -> list[Unit]:
    """Return what is left of tuning the baselines: all rates and schedules of one at once where it pays."""
    units: list[Unit] = []
    for optimizer in baselines:
        left = [setting for setting in sweep(task, optimizer) if setting.key not in results.found]
        units += [tuple(left)] if TASKS[task].batched and left else [(setting,) for setting in left]
    return units


def finals(
    task: str, baselines: Sequence[str], learned: Sequence[str], seeds: int, results: Results
) -> list[Unit]:
    """Return what is left of the runs on all seeds, each alone, so that its seconds mean something."""
    tuned = [
        Setting(task, optimizer, rate, schedule, seed)
        for optimizer in baselines
        for schedule in BASELINES[optimizer].schedules
        if (rate := best(results, task, optimizer, schedule)) is not None
        for seed in range(seeds)
    ]
    settings = [*tuned, *learned_settings(task, learned, seeds)]
    return [(setting,) for setting in settings if setting.key not in results.found]


def learned_settings(task: str, names: Sequence[str], seeds: int) -> list[Setting]:
    """Return the runs of learned optimizers, which have nothing to tune."""
    return [Setting(task, f"learned:{name}", 1.0, "own", seed) for name in names for seed in range(seeds)]


def run_unit(unit: Unit, data: Path) -> list[dict[str, Any]]:
    """Run the settings of a unit."""
    task = TASKS[unit[0].task]
    return run_batch(task, unit, data) if len(unit) > 1 else [run(task, unit[0], data)]


def run_all(units: Sequence[Unit], data: Path, jobs: int) -> Iterator[tuple[Unit, list[dict[str, Any]]]]:
    """Yield units with their results as they end.

    Args:
        units: to run.
        data: folder of the data sets.
        jobs: processes of one thread each; 1 runs here.
    """
    if jobs == 1:
        for unit in units:
            yield unit, run_unit(unit, data)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin) as pool:
        futures = {pool.submit(run_unit, unit, data): unit for unit in units}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _begin() -> None:
    """Prepare a process of `run_all`: one thread, and an end with its parent even if that is killed."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass(frozen=True)
class Cost:
    """What one optimizer on one task still takes.

    Args:
        task: its name.
        optimizer: its name.
        runs: trainings left.
        step_ms: measured milliseconds of a step of one training alone.
        batch_step_ms: the same for the batch of its sweep, or None.
        seconds: estimate for all of them on one core.
    """

    task: str
    optimizer: str
    runs: int
    step_ms: float
    batch_step_ms: float | None
    seconds: float


def estimate(
    tasks: Sequence[str],
    baselines: Sequence[str],
    learned: Sequence[str],
    seeds: int,
    results: Results,
    data: Path,
) -> Iterator[Cost]:
    """Measure some steps of everything that is left to run and yield what all of it will take."""
    for task in tasks:
        for optimizer in baselines:
            swept = sweeps(task, [optimizer], results)
            ends = finals(task, [optimizer], [], seeds, results)
            settings = [setting for unit in swept for setting in unit]
            unknown = {s.schedule for s in settings} - {unit[0].schedule for unit in ends}
            alone = len(ends) + len(unknown) * (seeds - 1)  # seed 0 of the best rate is in the sweep
            if settings or alone:
                middle = BASELINES[optimizer].rates[2]
                one = settings[0] if settings else ends[0][0]
                yield _cost(replace(one, rate=middle), swept, alone, data)
        for name in learned:
            left = finals(task, [], [name], seeds, results)
            if left:
                yield _cost(left[0][0], [], len(left), data)


def _cost(setting: Setting, swept: Sequence[Unit], alone: int, data: Path) -> Cost:
    def seconds_per_step(unit: Unit) -> float:
        short = tuple(replace(one, steps=PROBE) for one in unit)
        seconds: float = sum(result["seconds"] for result in run_unit(short, data))
        return seconds / PROBE

    timed = partial(seconds_per_step, (setting,))
    step = min(timed(), timed())
    batches = [unit for unit in swept if len(unit) > 1]
    batch_step = seconds_per_step(batches[0]) if batches else None
    single = alone + len(swept) - len(batches)
    total = single * step + len(batches) * (batch_step or 0.0)
    return Cost(
        setting.task,
        setting.optimizer,
        alone + sum(map(len, swept)),
        1e3 * step,
        None if batch_step is None else 1e3 * batch_step,
        total * setting.steps,
    )
