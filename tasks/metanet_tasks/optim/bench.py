"""The comparison of optimizers: sweeps, seeds, tables and plots; what is done is not done again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metanet_tasks.console import progress
from metanet_tasks.optim.baselines import BASELINES
from metanet_tasks.optim.harness import STEPS, Results, Setting, best, run, sweep
from metanet_tasks.optim.table import Row, markdown, rows
from metanet_tasks.optim.tasks import TASKS

SHIPPED_TABLE = Path(__file__).with_name("mlp_baselines.jsonl")
"""Runs of the tuned baselines on the MLP task, made by `bench` itself."""


def bench(
    data: Path,
    out: Path,
    learned: Sequence[str],
    *,
    tasks: Sequence[str] | None = None,
    baselines: Sequence[str] | None = None,
    seeds: int = 5,
    as_json: bool = False,
) -> int:
    """Tune every baseline on the first seed, run its best rate and the learned optimizers on all seeds.

    Args:
        data: folder of the data sets.
        out: folder for ``runs.jsonl``, ``table.md``, ``table.json`` and a plot per task.
        learned: names or paths of meta-weights.
        tasks: names of tasks; all by default.
        baselines: names of baselines; all by default.
        seeds: number of paired seeds.
        as_json: print JSON instead of tables.

    Raises:
        ValueError: unknown tasks or baselines.
    """
    chosen = _known(tasks, TASKS, "task")
    against = _known(baselines, BASELINES, "baseline")
    results = Results(out / "runs.jsonl")
    for name in chosen:
        tuned = [setting for optimizer in against for setting in sweep(name, optimizer)]
        _run_all(tuned, results, data, f"{name}: sweeps")
        final = [
            Setting(name, optimizer, rate, schedule, seed)
            for optimizer in against
            for schedule in BASELINES[optimizer].schedules
            if (rate := best(results, name, optimizer, schedule)) is not None
            for seed in range(seeds)
        ]
        final += _learned(name, learned, seeds)
        _run_all(final, results, data, f"{name}: seeds")
        _write(results, chosen, out)
    _show(results, chosen, as_json=as_json)
    return 0


def quick(data: Path, learned: Sequence[str], *, seeds: int = 5, as_json: bool = False) -> int:
    """Run learned optimizers on the MLP task and print them in the table of the shipped baselines."""
    results = Results(SHIPPED_TABLE)
    for setting in _learned("mlp", learned, seeds):
        results.found.pop(setting.key, None)
    scratch = _Unkept(results)
    _run_all(_learned("mlp", learned, seeds), scratch, data, "mlp")
    _show(scratch, ["mlp"], as_json=as_json)
    return 0


class _Unkept(Results):
    """Results that start from others and write nothing."""

    def __init__(self, start: Results) -> None:
        self.found = dict(start.found)

    def add(self, setting: Setting, result: dict[str, Any]) -> None:
        self.found[setting.key] = result


def _learned(task: str, names: Sequence[str], seeds: int) -> list[Setting]:
    return [Setting(task, f"learned:{name}", 1.0, "own", seed) for name in names for seed in range(seeds)]


def _known(names: Sequence[str] | None, table: Iterable[str], what: str) -> list[str]:
    known = list(table)
    if names is None:
        return known
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown {what} {', '.join(unknown)}; there are {', '.join(known)}")
    return list(names)


def _run_all(settings: Sequence[Setting], results: Results, data: Path, label: str) -> None:
    left = [setting for setting in settings if setting.key not in results.found]
    with progress() as bar:
        shown = bar.add_task(label, total=len(settings), completed=len(settings) - len(left), note="")
        for setting in left:
            results.add(setting, run(TASKS[setting.task], setting, data))
            bar.advance(shown)


def _write(results: Results, tasks: Sequence[str], out: Path) -> None:
    """Write the tables and plots of what is done so far."""
    from metanet_tasks.optim.plot import plot_curves

    parts = []
    for task in tasks:
        found = rows(results, task)
        if found:
            parts.append(f"## {task}\n\n{markdown(found, STEPS)}\n")
            plot_curves(found, out / f"{task}.png", f"{task}: training loss")
    (out / "table.md").write_text("\n".join(parts), encoding="utf-8")
    (out / "table.json").write_text(json.dumps(_json(results, tasks), indent=1), encoding="utf-8")


def _json(results: Results, tasks: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    return {task: [_entry(row) for row in rows(results, task)] for task in tasks}


def _entry(row: Row) -> dict[str, Any]:
    return {**asdict(row), "mean": row.mean, "error": row.error}


def _show(results: Results, tasks: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_json(results, tasks), indent=1))
        return
    for task in tasks:
        print(f"{task}: mean training loss of the last 100 of {STEPS} steps\n")
        print(markdown(rows(results, task)))
        print()
