from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from metanet_tasks import demo as demo_module
from metanet_tasks.cli import main
from metanet_tasks.demo import CONTESTANTS, FULL, Recipe, demo, demo_images, train_contestant
from metanet_zoo.images import open_images

TINY = Recipe(test_images=20, train_images=30, views=2, epochs=1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "QUICK", TINY)


def test_held_out_images_are_others_and_classes_are_balanced() -> None:
    train, test = demo_images(FULL, seed=0)
    assert not set(train.ids) & set(test.ids)
    assert len(train) + len(test) == len(open_images("digits"))
    assert test.labels is not None
    counts = torch.bincount(test.labels)
    assert int(counts.max() - counts.min()) <= 2
    other, _ = demo_images(FULL, seed=1)
    assert set(other.ids) != set(train.ids)


@pytest.mark.usefixtures("tiny")
def test_a_demo_leaves_its_report_and_continues_when_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    calls = []

    def interrupted(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_contestant(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(demo_module, "train_contestant", interrupted)
    assert main(["demo", "--quick", "--out", str(out)]) == 130
    assert not (out / "report.html").exists()
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "fitting 80 networks" in shown.err
    summary = json.loads((out / "report.json").read_text())
    assert [row["name"] for row in summary["classifiers"]][:-1] == [c.title for c in CONTESTANTS]
    for row in summary["classifiers"]:
        assert f"{100 * row['accuracy']:.1f} %" in shown.out
    assert summary["networks"] == {"train": 60, "test": 20}
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    for text in ("chance", "handwritten digit", "seq.1.weight", "CC BY 4.0"):
        assert text in page
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert len(rows) == 20
    right = sum(row["label"] == row["true_label"] for row in rows) / 20
    assert right == pytest.approx(summary["classifiers"][0]["accuracy"])
    assert main(["classify", str(out / "test.zoo"), "--model", str(out / CONTESTANTS[0].run)]) == 0


@pytest.mark.usefixtures("tiny")
def test_another_demo_does_not_mix_with_an_older_one(tmp_path: Path) -> None:
    demo(tmp_path, quick=True, announce=False)
    with pytest.raises(ValueError, match="begun with other settings"):
        demo(tmp_path, quick=True, seed=1, announce=False)


@pytest.mark.slow
def test_the_demo_keeps_its_promise(tmp_path: Path) -> None:
    accuracy = {row["name"]: row["accuracy"] for row in demo(tmp_path)["classifiers"]}
    metanetwork, canonical, raw = (accuracy[contestant.title] for contestant in CONTESTANTS)
    assert metanetwork >= 0.6
    assert metanetwork >= 2 * max(canonical, raw)
