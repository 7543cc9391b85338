"""Runs of the comparison of optimizers outlive a kill in the middle of a line."""

from pathlib import Path

from metanet_tasks.optim.harness import Results, Setting


def test_a_torn_line_costs_its_own_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    settings = [Setting("mlp", "AdamW", 0.01, "cosine", seed) for seed in range(3)]
    results = Results(path)
    for setting in settings[:2]:
        results.add(setting, {"final": 1.0})
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    resumed = Results(path)
    assert [setting for setting, _ in resumed] == settings[:1]
    resumed.add(settings[2], {"final": 2.0})
    assert [setting for setting, _ in Results(path)] == [settings[0], settings[2]]
