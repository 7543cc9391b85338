from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch

from metanet_tasks.classification import INRClassification
from metanet_tasks.cli import main
from metanet_tasks.datamodule import ZooDataModule
from metanet_tasks.prediction import classify
from metanet_tasks.training import fit_classifier
from metanet_zoo import save_checkpoint
from metanet_zoo.store import Zoo
from metanet_zoo.writer import ZooWriter
from tests.metanet_tasks.tiny_zoo import CLASSES


@pytest.fixture(scope="module")
def run(tiny_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mlp"
    fit_classifier(
        ZooDataModule(str(tiny_zoo.path), batch_size=16),
        out,
        network="flat_mlp",
        options={"hidden_features": 16},
        max_epochs=2,
    )
    return out


@pytest.fixture
def folder(tiny_zoo: Zoo, tmp_path: Path) -> Path:
    networks = tmp_path / "networks"
    networks.mkdir()
    for i in (0, 3):
        save_checkpoint(networks / f"net{i}.safetensors", tiny_zoo.state_dict(i))
    torch.save({"state_dict": tiny_zoo.state_dict(5)}, networks / "net5.pt")
    return networks


def test_zoo_folder_and_file_give_the_same_answers(tiny_zoo: Zoo, run: Path, folder: Path) -> None:
    whole = classify([tiny_zoo.path], run, top=3)
    assert len(whole.rows) == 60
    assert whole.rows[3].name == "im/1#1"
    assert whole.rows[3].true_label == CLASSES[1]
    right = sum(row.label == row.true_label for row in whole.rows)
    assert whole.accuracy == pytest.approx(right / 60)
    some = classify([folder, folder / "net3.safetensors"], run, top=3)
    assert [Path(row.name).name for row in some.rows] == [
        "net0.safetensors",
        "net3.safetensors",
        "net5.pt",
        "net3.safetensors",
    ]
    assert some.accuracy is None
    for row, index in zip(some.rows, (0, 3, 5, 3), strict=True):
        assert [label for label, _ in row.ranking] == [label for label, _ in whole.rows[index].ranking]
        assert dict(row.ranking) == pytest.approx(dict(whole.rows[index].ranking), abs=1e-5)
        assert sum(p for _, p in row.ranking) == pytest.approx(1)


def test_what_does_not_fit_is_named_or_gets_a_row(run: Path, folder: Path) -> None:
    save_checkpoint(folder / "other.safetensors", {"weight": torch.zeros(3, 2)})
    diverged = {**dict(torch.load(folder / "net5.pt", weights_only=True)["state_dict"])}
    diverged["seq.0.bias"] = torch.full((6,), float("nan"))
    save_checkpoint(folder / "nan.safetensors", diverged)
    (folder / "cut.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(ValueError, match=r"cut\.safetensors.*--skip-invalid"):
        classify([folder], run)
    rows = {Path(row.name).name: row for row in classify([folder], run, skip_invalid=True).rows}
    assert rows["net0.safetensors"].error is None
    assert "missing seq.0.weight" in str(rows["other.safetensors"].error)
    assert "not finite in seq.0.bias" in str(rows["nan.safetensors"].error)
    assert rows["cut.safetensors"].label is None


def test_a_zoo_of_another_architecture_is_named(run: Path, tmp_path: Path) -> None:
    with ZooWriter(tmp_path / "other.zoo", architecture={}) as writer:
        writer.append({"weight": torch.zeros(4, 2)}, {"label": torch.zeros(4, dtype=torch.long)})
    with pytest.raises(ValueError, match=r"other\.zoo: these weights do not fit"):
        classify([tmp_path / "other.zoo"], run)
    with pytest.raises(ValueError, match="neither a zoo"):
        classify([tmp_path], run)
    with pytest.raises(ValueError, match="there is no"):
        classify([tmp_path / "missing"], run)
    with pytest.raises(ValueError, match="between 1 and the number of labels, 3"):
        classify([tmp_path / "other.zoo"], run, top=4)


def test_formats_agree(tiny_zoo: Zoo, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["classify", str(tiny_zoo.path), "--model", str(run), "--top", "2"]
    assert main([*arguments, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["networks"] == 60
    assert main([*arguments, "--format", "csv"]) == 0
    text = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["label"] for row in rows] == [row["label"] for row in answer["predictions"]]
    assert list(rows[0]) == [
        "name",
        "label",
        "probability",
        "true_label",
        "error",
        "label_2",
        "probability_2",
    ]
    assert main([*arguments, "--out", str(tmp_path / "p.csv")]) == 0
    assert (tmp_path / "p.csv").read_text() == text
    assert "60 networks, accuracy" in capsys.readouterr().out
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "im/0#1" in table
    assert "20 more" in table


def test_permuted_and_sign_flipped_networks_get_the_same_answer(tiny_zoo: Zoo, tmp_path: Path) -> None:
    data = ZooDataModule(str(tiny_zoo.path))
    torch.manual_seed(0)
    model = INRClassification(data.spec_json, CLASSES, "unf", {"hidden_channels": 4, "num_layers": 2})
    data.setup()
    model.network.fit_encoding(data.features("train"))  # type: ignore[operator]
    from metanet.group import GroupElement

    weights = {name: tensor.double() for name, tensor in tiny_zoo.load().items()}
    element = GroupElement.random(data.spec, torch.Generator().manual_seed(0), kinds="all")
    expected = model.probabilities(weights)
    torch.testing.assert_close(model.probabilities(element @ weights), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-4)
