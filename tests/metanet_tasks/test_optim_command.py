"""``metanet optim`` at the command line: what there is, what a rule is, and mistakes that cost no hours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metanet.optim.pretrained import RULES, shipped
from metanet_tasks import optim_command
from metanet_tasks.cli import main
from metanet_tasks.optim import bench
from metanet_tasks.optim.baselines import BASELINES
from metanet_tasks.optim.harness import Results, Setting
from metanet_tasks.optim.table import markdown, rows
from metanet_tasks.optim.tasks import TASKS


def test_the_help_names_what_there_is() -> None:
    assert tuple(TASKS) == optim_command.TASKS
    assert tuple(BASELINES) == optim_command.BASELINES


def test_shipped_weights_and_rules_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optim", "list"]) == 0
    text = capsys.readouterr().out
    assert main(["optim", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found["shipped"]] == shipped()
    assert {entry["name"]: entry["meta_parameters"] for entry in found["rules"]} == {
        name: rule().size for name, rule in RULES.items()
    }
    assert all(name in text for name in (*shipped(), *RULES))


@pytest.mark.parametrize("rule", list(RULES))
def test_rules_are_described(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optim", "info", rule]) == 0
    text = capsys.readouterr().out
    assert f"{rule}: a rule with {RULES[rule]().size} meta-parameters; shipped" in text
    assert ("needs the spec" in text) == RULES[rule].needs_spec
    assert main(["optim", "info", rule, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["about"] in text
    assert sum(found["shapes"].values()) == found["meta_parameters"]
    assert ("default" in found["shipped"]) == (rule == "structured")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the folder of the data sets with --data or METANET_DATA"),
        (["--data", "FOLDER", "--quick", "--tasks", "cnn"], "leave out --tasks"),
        (["--data", "FOLDER", "--quick", "--dry-run"], "leave out --dry-run"),
        (["--data", "FOLDER", "--quick", "--out", "o"], "leave out --out"),
        (["--data", "FOLDER", "--quick", "--jobs", "2"], "leave out --jobs"),
        (["--data", "FOLDER", "--quick"], "the task mlp needs data that FOLDER lacks: no images at"),
        (["--data", "FOLDER"], "name a folder with --out"),
        (["--data", "FOLDER", "--out", "o", "--tasks", "mpl"], "unknown task mpl; there are mlp, mlp-wide"),
        (["--data", "FOLDER", "--out", "o", "--tasks", "rnn", "--baselines"], "the task rnn needs data"),
        (["--data", "FOLDER", "--quick", "--optimizer", "graph"], "'graph' is a rule, no meta-weights"),
        (["--data", "FOLDER", "--quick", "--optimizer", "nonsense"], "no meta-weights 'nonsense'"),
        (["--data", "FOLDER", "--quick", "--seeds", "0"], "at least 1, found 1, 0"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("METANET_DATA", raising=False)
    given = [str(tmp_path) if argument == "FOLDER" else argument for argument in arguments]
    assert main(["optim", "bench", *given]) == 2
    assert message.replace("FOLDER", str(tmp_path)) in capsys.readouterr().err


def test_baselines_of_packages_that_are_missing_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    monkeypatch.setenv("METANET_DATA", str(tmp_path))
    assert main(["optim", "bench", "--dry-run"]) == 2
    shown = capsys.readouterr().err
    assert "the baselines SOAP, schedule-free AdamW need the package pytorch_optimizer" in shown
    assert main(["optim", "bench", "--dry-run", "--baselines", "AdamW"]) == 2
    assert f"the task mlp needs data that {tmp_path} lacks" in capsys.readouterr().err


def test_one_seed_has_no_error(tmp_path: Path) -> None:
    results = Results(tmp_path / "runs.jsonl")

    def add(optimizer: str, schedule: str, seed: int, final: float) -> None:
        result: dict[str, Any] = {"final": final, "curve": [final], "accuracy": 0.5, "seconds": 1.0}
        results.add(Setting("mlp", optimizer, 0.01, schedule, seed), result)

    for seed in range(2):
        add("AdamW", "cosine", seed, 0.5 + 0.1 * seed)
    add("learned:default", "own", 0, 0.4)
    learned, reference = rows(results, "mlp")
    assert learned.error is None
    assert reference.error == pytest.approx(0.05)
    lines = markdown([learned, reference]).splitlines()
    assert "| 1 | 0.4000 | -0.1000 |" in lines[2]
    assert "| 2 | 0.5500 ± 0.0500 | +0.0000 ± 0.0000 |" in lines[3]
