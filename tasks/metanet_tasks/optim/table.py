"""The table of a comparison: final losses with intervals, steps to AdamW's best, accuracy, time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metanet_tasks.optim.baselines import BASELINES
from metanet_tasks.optim.harness import STEPS, WINDOW, Results, best

REFERENCE = ("AdamW", "cosine")
"""What steps and differences are counted against."""
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95 % quantiles of Student's t for n - 1 degrees of freedom, by n."""


@dataclass(frozen=True)
class Row:
    """One optimizer on one task.

    Args:
        optimizer: its name.
        schedule: its schedule.
        rate: the tuned rate.
        edge: whether the best rate was at an edge of the sweep.
        trials: learning rates that were tried for it.
        finals: final loss by seed.
        accuracy: mean test accuracy.
        seconds: median seconds of a run that ran alone.
        difference: mean paired difference of final losses to the reference, with its 95 % half-width, which
            is None for one seed.
        steps: steps to the reference's mean final loss, or None if it was not reached.
        curve: mean curve.
    """

    optimizer: str
    schedule: str
    rate: float
    edge: bool
    trials: int
    finals: tuple[float, ...]
    accuracy: float
    seconds: float
    difference: tuple[float, float | None] | None
    steps: int | None
    curve: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean final loss."""
        return sum(self.finals) / len(self.finals)

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None for one seed."""
        return statistics.stdev(self.finals) / math.sqrt(len(self.finals)) if len(self.finals) > 1 else None


def rows(results: Results, task: str, *, steps: int = STEPS) -> list[Row]:
    """Return the rows of a task, best first."""
    runs: dict[tuple[str, str], dict[float, dict[int, dict[str, Any]]]] = {}
    for setting, result in results:
        if setting.task == task and setting.steps == steps:
            by_rate = runs.setdefault((setting.optimizer, setting.schedule), {})
            by_rate.setdefault(setting.rate, {})[setting.seed] = result
    chosen: dict[tuple[str, str], tuple[float, dict[int, dict[str, Any]]]] = {}
    for (optimizer, schedule), by_rate in runs.items():
        rate = best(results, task, optimizer, schedule, steps)
        if rate is not None:
            chosen[optimizer, schedule] = (rate, by_rate[rate])
    reference = chosen.get(REFERENCE, (0.0, {}))[1]
    goal = statistics.mean(r["final"] for r in reference.values()) if reference else None
    found = []
    for (optimizer, schedule), (rate, by_seed) in chosen.items():
        rates = sorted(runs[optimizer, schedule])
        curve = _mean_curve([result["curve"] for result in by_seed.values()])
        found.append(
            Row(
                optimizer,
                schedule,
                rate,
                optimizer in BASELINES and rate in (rates[0], rates[-1]),
                len(rates) if optimizer in BASELINES else 0,
                tuple(by_seed[seed]["final"] for seed in sorted(by_seed)),
                statistics.mean(result["accuracy"] for result in by_seed.values()),
                _seconds(list(by_seed.values())),
                _paired(by_seed, reference) if reference else None,
                None if goal is None else _reached(curve, goal),
                curve,
            )
        )
    return sorted(found, key=lambda row: row.mean)


def _seconds(results: Sequence[dict[str, Any]]) -> float:
    alone: list[float] = [result["seconds"] for result in results if result.get("batch", 1) == 1]
    found: float = statistics.median(alone or [result["seconds"] for result in results])
    return found


def _mean_curve(curves: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(sum(values) / len(values) for values in zip(*curves, strict=True))


def _paired(
    mine: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]]
) -> tuple[float, float | None] | None:
    shared = sorted(set(mine) & set(theirs))
    differences = [mine[seed]["final"] - theirs[seed]["final"] for seed in shared]
    if not differences or not all(map(math.isfinite, differences)):
        return None
    mean, count = statistics.mean(differences), len(differences)
    if count < 2:
        return mean, None
    return mean, T_95.get(count, 1.96) * statistics.stdev(differences) / math.sqrt(count)


def _reached(curve: Sequence[float], goal: float) -> int | None:
    """Return the step from which on the running mean of five points stays at or below a loss."""
    smooth = [
        sum(curve[max(i - 4, 0) : i + 1]) / len(curve[max(i - 4, 0) : i + 1]) for i in range(len(curve))
    ]
    reached = next((i for i, value in enumerate(smooth) if value <= goal), None)
    return None if reached is None else (reached + 1) * WINDOW


def markdown(found: Sequence[Row], steps: int = STEPS) -> str:
    """Return the rows as a Markdown table."""
    heads = [
        "optimizer",
        "schedule",
        "rate",
        "rates tried",
        "seeds",
        "final loss",
        "minus AdamW + cosine (95 %)",
        "steps to its best",
        "test accuracy %",
        "s per run",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in found:
        difference = (
            "" if row.difference is None else _with_error(f"{row.difference[0]:+.4f}", row.difference[1])
        )
        reached = "" if row.steps is None else f"{row.steps} ({row.steps / steps:.2f}×)"
        rate = f"{row.rate:.3g}{' (edge)' if row.edge else ''}"
        cells = [
            row.optimizer,
            row.schedule,
            rate,
            str(row.trials),
            str(len(row.finals)),
            _with_error(f"{row.mean:.4f}", row.error),
            difference,
            reached,
            f"{100 * row.accuracy:.1f}",
            f"{row.seconds:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_error(mean: str, error: float | None) -> str:
    return mean if error is None else f"{mean} ± {error:.4f}"
