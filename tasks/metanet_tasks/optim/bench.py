"""The comparison of optimizers: sweeps, seeds, tables and plots; what is done is not done again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from metanet.optim import load_meta_weights
from metanet_tasks.console import progress
from metanet_tasks.optim.baselines import BASELINES
from metanet_tasks.optim.harness import STEPS, Results, Setting
from metanet_tasks.optim.plan import Unit, estimate, finals, learned_settings, run_all, sweeps
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
    jobs: int = 1,
    as_json: bool = False,
) -> int:
    """Tune every baseline on the first seed, run its best rate and the learned optimizers on all seeds.

    What is done is not done again; several calls may share a folder, one after another or at once.

    Args:
        data: folder of the data sets.
        out: folder for ``runs.jsonl``, ``table.md``, ``table.json`` and a plot per task, of all runs in it.
        learned: names or paths of meta-weights.
        tasks: names of tasks; all by default.
        baselines: names of baselines; all by default.
        seeds: number of paired seeds.
        jobs: processes that train at the same time.
        as_json: print JSON instead of tables.

    Raises:
        ValueError: unknown tasks, baselines or meta-weights; data that are not there; a baseline whose
            package is not installed. All of it before anything runs.
    """
    chosen, against = _checked(data, learned, tasks, baselines)
    kept = out / "runs.jsonl"
    for name in chosen:
        results = Results(kept)
        _run(sweeps(name, against, results), results, data, jobs, f"{name}: sweeps")
        _run(finals(name, against, learned, seeds, results), results, data, jobs, f"{name}: seeds")
        _write(Results(kept), out)
    _show(Results(kept), chosen, as_json=as_json)
    return 0


def dry_run(
    data: Path,
    out: Path | None,
    learned: Sequence[str],
    *,
    tasks: Sequence[str] | None = None,
    baselines: Sequence[str] | None = None,
    seeds: int = 5,
    jobs: int = 1,
    as_json: bool = False,
) -> int:
    """Measure some steps of all that `bench` would still run with these arguments, and print its time."""
    results = Results(out / "runs.jsonl") if out else Unkept()
    chosen, against = _checked(data, learned, tasks, baselines)
    costs = []
    with progress() as bar:
        shown = bar.add_task("measuring", total=len(chosen) * (len(against) + len(learned)), note="")
        for cost in estimate(chosen, against, learned, seeds, results, data):
            costs.append(cost)
            bar.update(shown, advance=1, note=f"{cost.task}, {cost.optimizer}")
    hours = sum(cost.seconds for cost in costs) / 3600
    if as_json:
        print(json.dumps({"costs": [asdict(cost) for cost in costs], "hours": hours / jobs}, indent=1))
        return 0
    print(f"{'task':<13}{'optimizer':<22}{'runs':>5}{'ms/step':>9}{'sweep ms/step':>15}{'minutes':>9}")
    for cost in costs:
        batch = "" if cost.batch_step_ms is None else f"{cost.batch_step_ms:.1f}"
        line = f"{cost.task:<13}{cost.optimizer:<22}{cost.runs:>5}{cost.step_ms:>9.2f}{batch:>15}"
        print(f"{line}{cost.seconds / 60:>9.1f}")
    runs = sum(cost.runs for cost in costs)
    print(f"{runs} runs of {STEPS} steps: {hours / jobs:.1f} hours with {jobs} at a time")
    return 0


def quick(data: Path, learned: Sequence[str], *, seeds: int = 5, as_json: bool = False) -> int:
    """Run learned optimizers on the MLP task and print them in the table of the shipped baselines."""
    _checked(data, learned, ["mlp"], [])
    results = Unkept(Results(SHIPPED_TABLE))
    settings = learned_settings("mlp", learned, seeds)
    _run([(setting,) for setting in settings], results, data, 1, "mlp")
    _show(results, ["mlp"], as_json=as_json)
    return 0


class Unkept(Results):
    """Results that start from others and write nothing."""

    def __init__(self, start: Results | None = None) -> None:
        self.found = dict(start.found) if start else {}

    def add(self, setting: Setting, result: dict[str, Any]) -> None:
        """Keep a run in memory."""
        self.found[setting.key] = result


def _checked(
    data: Path, learned: Sequence[str], tasks: Sequence[str] | None, baselines: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return the tasks and baselines; what would fail after hours of other runs fails now."""
    chosen, against = _known(tasks, TASKS, "task"), _known(baselines, BASELINES, "baseline")
    for name in learned:
        load_meta_weights(name)
    foreign = [name for name in against if BASELINES[name].package and not find_spec(BASELINES[name].package)]
    if foreign:
        packages = " ".join(sorted({BASELINES[name].package for name in foreign}))
        raise ValueError(
            f"the baselines {', '.join(foreign)} need the package {packages}: pip install {packages}, or "
            "name others with --baselines"
        )
    for name in chosen:
        try:
            TASKS[name].data(data)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the task {name} needs data that {data} lacks: {error}; metanet optim bench --help says "
                "what --data holds"
            ) from None
    return chosen, against


def _known(names: Sequence[str] | None, table: Iterable[str], what: str) -> list[str]:
    known = list(table)
    if names is None:
        return known
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown {what} {', '.join(unknown)}; there are {', '.join(known)}")
    return list(names)


def _run(units: Sequence[Unit], results: Results, data: Path, jobs: int, label: str) -> None:
    with progress() as bar:
        shown = bar.add_task(label, total=sum(map(len, units)), note="")
        for unit, found in run_all(units, data, jobs):
            for setting, result in zip(unit, found, strict=True):
                results.add(setting, result)
            last = f"{unit[-1].optimizer}, rate {unit[-1].rate:g}: {found[-1]['final']:.4f}"
            bar.update(shown, advance=len(unit), note=last)


def _write(results: Results, out: Path) -> None:
    """Write the tables and plots of what is done so far."""
    from metanet_tasks.optim.plot import plot_curves

    parts = []
    done = {setting.task for setting, _ in results}
    tasks = [task for task in TASKS if task in done]
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
