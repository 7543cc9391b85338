"""The comparison of optimizers: every task takes every optimizer, batches are what single runs are."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metanet.optim.roles import roles_of
from metanet_tasks.optim import bench as comparison
from metanet_tasks.optim import harness, plan
from metanet_tasks.optim import plot as pictures
from metanet_tasks.optim.baselines import BASELINES
from metanet_tasks.optim.batched import run_batch
from metanet_tasks.optim.harness import Results, Setting, run
from metanet_tasks.optim.tasks import TASKS, Data, Task

FOREIGN = {"SOAP", "schedule-free AdamW"}
OPTIMIZERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name in FOREIGN and importlib.util.find_spec("pytorch_optimizer") is None,
            reason="pytorch_optimizer is not installed",
        ),
    )
    for name in (*BASELINES, "learned:default")
]


def synthetic(task: Task, examples: int = 32) -> Task:
    """Return a task on random data whose targets depend on the inputs, images and weights in float64."""
    generator = torch.Generator().manual_seed(0)
    if task.name.startswith("mlp"):
        inputs = torch.rand(examples, 64, generator=generator).double()
        pairs = inputs, (inputs[:, 0] * 10).long()
    elif task.name in ("cnn", "vit"):
        inputs = torch.randn(examples, 3, 16, 16, generator=generator).double()
        pairs = inputs, (inputs.mean((1, 2, 3)) > 0).long()
    else:
        inputs = torch.randint(65, (examples, 16), generator=generator)
        pairs = inputs, (inputs + 1) % 65
    return replace(
        task, build=lambda: task.build().double(), data=lambda folder: Data(pairs, pairs), batch_size=8
    )


def setting(task: str, optimizer: str, **options: float) -> Setting:
    learned = optimizer.startswith("learned:")
    rate = 1.0 if learned else BASELINES[optimizer].rates[2]
    chosen = {"rate": rate, "schedule": "own" if learned else "constant", "seed": 0, "steps": 20, **options}
    return Setting(task, optimizer, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_takes_every_optimizer(name: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "WINDOW", 5)
    result = run(synthetic(TASKS[name]), setting(name, optimizer, steps=5), Path())
    assert math.isfinite(result["final"])
    assert result["final"] < 1.2 * math.log(65 if name in ("rnn", "gru", "transformer") else 10)


def test_roles_of_the_networks() -> None:
    roles = {name: roles_of(task.build()) for name, task in TASKS.items()}
    assert roles["transformer"]["positions"] == roles["transformer"]["embedding.weight"] == "embedding"
    assert roles["vit"]["positions"] == "embedding"
    assert roles["vit"]["patches.weight"] == roles["cnn"]["2.weight"] == "hidden"
    for kind in ("rnn", "gru"):
        assert roles[kind]["cells.weight_ih_l0"] == roles[kind]["cells.weight_hh_l0"] == "hidden"
        assert roles[kind]["cells.bias_hh_l0"] == "vector"
    for name, found in roles.items():
        outputs = [parameter for parameter, role in found.items() if role == "output"]
        assert outputs == [[n for n in found if n.endswith("weight") and found[n] != "vector"][-1]], name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_batch_is_its_runs(optimizer: str) -> None:
    task = synthetic(TASKS["mlp-norm"])
    schedules = ("own",) if optimizer.startswith("learned:") else BASELINES[optimizer].schedules
    chosen = [
        replace(setting("mlp-norm", optimizer), schedule=schedule, seed=seed, rate=rate)
        for schedule, seed, rate in ((schedules[0], 0, 0.01), (schedules[-1], 1, 0.02))
    ]
    together = run_batch(task, chosen, Path())
    exact = 2e-5 if optimizer != "SOAP" else 0.15  # its eigenvectors of equal eigenvalues are rounding errors
    for one, found in zip(chosen, together, strict=True):
        assert found["batch"] == len(chosen)
        assert found["curve"] == pytest.approx(run(task, one, Path())["curve"], abs=exact)


def test_a_divergent_run_of_a_batch_leaves_the_others_alone() -> None:
    task = synthetic(TASKS["mlp"])
    chosen = [replace(setting("mlp", "SGD-momentum"), rate=rate) for rate in (0.05, 1e6)]
    sound, divergent = run_batch(task, chosen, Path())
    assert divergent["final"] == math.inf
    assert sound["curve"] == pytest.approx(run(task, chosen[0], Path())["curve"], abs=2e-5)


def test_a_comparison_in_pieces_is_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {name: synthetic(TASKS[name]) for name in ("mlp", "rnn")}
    for module in (comparison, plan):
        monkeypatch.setattr(module, "TASKS", small)
    rates = (0.001, 0.01)
    monkeypatch.setattr(
        plan, "sweep", lambda task, name: [setting(task, name, rate=rate, steps=2000) for rate in rates]
    )
    monkeypatch.setattr(pictures, "plot_curves", lambda rows, path, title: path.touch())
    done: list[Setting] = []

    def quickly(unit: plan.Unit, data: Path) -> list[dict[str, object]]:
        done.extend(unit)
        result = {"curve": [1.0] * 100, "accuracy": 0.5, "seconds": 1.0}
        return [{**result, "final": one.rate} for one in unit]

    monkeypatch.setattr(plan, "run_unit", quickly)
    for task in small:
        comparison.bench(tmp_path, tmp_path, ["default"], tasks=[task], baselines=["AdamW"], seeds=2)
    assert len(done) == len(set(done)) == 2 * (2 + 1 + 2)  # two rates, one more seed of the best, learned
    table = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert set(table) == {"mlp", "rnn"}
    assert {row["rate"] for row in table["rnn"] if row["optimizer"] == "AdamW"} == {0.001}
    comparison.bench(tmp_path, tmp_path, ["default"], baselines=["AdamW"], seeds=2)
    assert len(done) == 10, "what is done is not done again"
    left = list(
        plan.estimate(list(small), ["AdamW"], ["default"], 3, Results(tmp_path / "runs.jsonl"), tmp_path)
    )
    assert [(cost.task, cost.optimizer, cost.runs) for cost in left] == [
        (task, optimizer, 1) for task in small for optimizer in ("AdamW", "learned:default")
    ]
