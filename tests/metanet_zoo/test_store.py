"""The zoo store: written in whole shards, read as slices, checked byte by byte."""

import errno
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from metanet_zoo.architectures import Siren
from metanet_zoo.collect import merge_zoos, zoo_from_checkpoints
from metanet_zoo.manifest import ZooError
from metanet_zoo.store import Zoo
from metanet_zoo.writer import ZooWriter

ARCHITECTURE = Siren(hidden_features=3, hidden_layers=1).config


def models(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        name: tensor.shape for name, tensor in Siren(hidden_features=3, hidden_layers=1).state_dict().items()
    }
    return {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}


def columns(count: int, first: int = 0) -> dict[str, Any]:
    numbers = torch.arange(first, first + count)
    return {
        "label": numbers % 3,
        "image": numbers // 2,
        "split": ["train" if n % 4 else "test" for n in range(count)],
    }


def make_zoo(
    path: Path, count: int = 23, shard_size: int = 5, seed: int = 0
) -> tuple[Zoo, dict[str, Tensor]]:
    tensors, rows = models(count, seed), columns(count)
    with ZooWriter(
        path, architecture=ARCHITECTURE, label_names=("a", "b", "c"), shard_size=shard_size
    ) as writer:
        for start in range(0, count, 7):
            part = slice(start, start + 7)
            writer.append(
                {name: t[part] for name, t in tensors.items()}, {name: c[part] for name, c in rows.items()}
            )
    return Zoo.open(path), tensors


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    zoo, tensors = make_zoo(tmp_path / "zoo")
    assert len(zoo) == 23
    assert [shard.count for shard in zoo.manifest.shards] == [5, 5, 5, 5, 3]
    assert_same(zoo.load(), tensors)
    assert zoo.labels.tolist() == [n % 3 for n in range(23)]
    assert zoo.label_names == ("a", "b", "c")
    assert zoo.column("split")[:5] == ["test", "train", "train", "train", "test"]
    assert zoo.metadata.num_rows == 23
    assert zoo.verify().ok
    assert sorted(file.name for file in (tmp_path / "zoo").iterdir())[-1] == "zoo.json"


@pytest.mark.parametrize(
    "indices",
    [slice(3, 17), slice(None, None, 4), slice(None, None, -1), [22, 0, 5, 4, 5, -1], [], torch.tensor([9])],
)
def test_any_selection_of_models(tmp_path: Path, indices: Any) -> None:
    zoo, tensors = make_zoo(tmp_path / "zoo")
    chosen = list(range(23))[indices] if isinstance(indices, slice) else [int(i) for i in indices]
    assert_same(zoo.read(indices), {name: tensor[chosen] for name, tensor in tensors.items()})


def test_reading_does_not_share_memory_with_the_file(tmp_path: Path) -> None:
    zoo, tensors = make_zoo(tmp_path / "zoo")
    for tensor in zoo.read(slice(0, 3)).values():
        tensor.zero_()
    assert_same(zoo.load(), tensors)


def test_no_model_beyond_the_last(tmp_path: Path) -> None:
    zoo, _ = make_zoo(tmp_path / "zoo")
    with pytest.raises(IndexError, match="no model 23 in a zoo of 23"):
        zoo.read([0, 23])
    with pytest.raises(KeyError, match="no column 'psnr'; it has label, image, split"):
        zoo.column("psnr")


def test_dtypes_are_kept(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 2).bfloat16(),
        "count": torch.arange(3),
        "flag": torch.tensor([[True], [False], [True]]),
    }
    with ZooWriter(tmp_path / "zoo", architecture={}) as writer:
        writer.append(tensors, {"label": torch.zeros(3)})
    zoo = Zoo.open(tmp_path / "zoo")
    assert_same(zoo.read([2, 0, 1]), {name: tensor[[2, 0, 1]] for name, tensor in tensors.items()})
    assert zoo.shapes == {"half": (2,), "count": (), "flag": (1,)}
    with pytest.raises(ZooError, match="does not say how its networks are built"):
        zoo.build_module()


def test_a_model_runs(tmp_path: Path) -> None:
    zoo, tensors = make_zoo(tmp_path / "zoo")
    module = zoo.build_module()
    module.load_state_dict(zoo.state_dict(7))
    reference = Siren(hidden_features=3, hidden_layers=1)
    reference.load_state_dict({name: tensor[7] for name, tensor in tensors.items()})
    points = torch.rand(4, 2)
    torch.testing.assert_close(module(points), reference(points), rtol=0, atol=0)


def test_batches_cover_every_model_once(tmp_path: Path) -> None:
    zoo, tensors = make_zoo(tmp_path / "zoo")
    batches = list(zoo.batches(6, shuffle=1, columns=["label", "split"]))
    order = torch.cat([batch.indices for batch in batches])
    assert order.sort().values.tolist() == list(range(23))
    assert order.tolist() != list(range(23))
    for batch in batches:
        assert_same(batch.weights, {name: tensor[batch.indices] for name, tensor in tensors.items()})
        assert batch.columns["label"].tolist() == [n % 3 for n in batch.indices.tolist()]
        assert batch.columns["split"] == ["train" if n % 4 else "test" for n in batch.indices.tolist()]
    again = torch.cat([batch.indices for batch in zoo.batches(6, shuffle=1)])
    assert order.tolist() == again.tolist()
    some = list(zoo.batches(4, indices=torch.tensor([5, 1, 2, 8, 9]), drop_last=True))
    assert [batch.indices.tolist() for batch in some] == [[5, 1, 2, 8]]


def test_split_is_seeded_and_keeps_images_together(tmp_path: Path) -> None:
    zoo, _ = make_zoo(tmp_path / "zoo")
    parts = zoo.split({"train": 0.7, "test": 0.3}, seed=3)
    assert sorted([*parts["train"].tolist(), *parts["test"].tolist()]) == list(range(23))
    images = {name: {n // 2 for n in part.tolist()} for name, part in parts.items()}
    assert not images["train"] & images["test"]
    assert len(images["train"]) == 8  # of 12 images, those whose place is below 0.7
    assert parts["test"].tolist() == zoo.split({"train": 0.7, "test": 0.3}, seed=3)["test"].tolist()
    assert parts["test"].tolist() != zoo.split({"train": 0.7, "test": 0.3}, seed=4)["test"].tolist()
    with pytest.raises(ValueError, match="add up to 1"):
        zoo.split({"train": 0.7, "test": 0.7})
    by_column = zoo.split_by("split")
    assert sorted(torch.cat(list(by_column.values())).tolist()) == list(range(23))
    assert 0 in by_column["test"].tolist()


def test_appending_keeps_the_old_models(tmp_path: Path) -> None:
    _, tensors = make_zoo(tmp_path / "zoo")
    more = models(4, seed=1)
    with ZooWriter(
        tmp_path / "zoo", architecture=ARCHITECTURE, label_names=("a", "b", "c"), append=True
    ) as writer:
        writer.append(more, columns(4, first=23))
    zoo = Zoo.open(tmp_path / "zoo")
    assert len(zoo) == 27
    assert_same(zoo.load(), {name: torch.cat([tensor, more[name]]) for name, tensor in tensors.items()})
    with pytest.raises(ZooError, match="its architecture are"):
        ZooWriter(tmp_path / "zoo", architecture=Siren().config, label_names=("a", "b", "c"), append=True)
    with pytest.raises(ZooError, match="holds no finished zoo"):
        ZooWriter(tmp_path / "other", architecture=ARCHITECTURE, append=True)


def test_an_error_while_appending_leaves_the_old_zoo(tmp_path: Path) -> None:
    zoo, tensors = make_zoo(tmp_path / "zoo")
    before = {file.name: file.read_bytes() for file in zoo.path.iterdir()}

    def interrupted() -> None:
        names = ("a", "b", "c")
        with ZooWriter(
            zoo.path, architecture=ARCHITECTURE, label_names=names, append=True, shard_size=2
        ) as writer:
            writer.append(models(5, seed=1), columns(5))
            assert len(list(zoo.path.iterdir())) > len(before)
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        interrupted()
    assert {file.name: file.read_bytes() for file in zoo.path.iterdir()} == before
    assert_same(Zoo.open(zoo.path).load(), tensors)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, after=3)
    with pytest.raises(OSError, match="No space left"):
        make_zoo(tmp_path / "zoo")
    assert list(tmp_path.iterdir()) == []


def fill_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let `after` files be written, and of every later one only the first half."""
    write_bytes = Path.write_bytes
    written = 0

    def write(self: Path, data: bytes) -> int:
        nonlocal written
        written += 1
        if written <= after:
            return write_bytes(self, data)
        write_bytes(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)


def drop_entry(tensors: dict[str, Tensor], rows: dict[str, Any]) -> None:
    del tensors["seq.0.bias"]


def reshape_entry(tensors: dict[str, Tensor], rows: dict[str, Any]) -> None:
    tensors["seq.0.bias"] = torch.zeros(2, 4)


def fewer_rows(tensors: dict[str, Tensor], rows: dict[str, Any]) -> None:
    rows["label"], rows["image"], rows["split"] = rows["label"][:1], rows["image"][:1], rows["split"][:1]


def uneven_rows(tensors: dict[str, Tensor], rows: dict[str, Any]) -> None:
    rows["label"] = rows["label"][:1]


def drop_column(tensors: dict[str, Tensor], rows: dict[str, Any]) -> None:
    del rows["image"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop_entry, "entry 'seq.0.bias' is absent in the new models"),
        (reshape_entry, r"entry 'seq.0.bias' is Entry\(shape=\(4,\)"),
        (fewer_rows, "1 rows of metadata"),
        (uneven_rows, "different lengths"),
        (drop_column, "found metadata columns"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor], dict[str, Any]], None], words: str
) -> None:
    def write() -> None:
        with ZooWriter(tmp_path / "zoo", architecture=ARCHITECTURE) as writer:
            writer.append(models(2), columns(2))
            tensors, rows = models(2), columns(2)
            spoil(tensors, rows)
            writer.append(tensors, rows)

    with pytest.raises(ZooError, match=words):
        write()
    assert not (tmp_path / "zoo").exists()


def test_occupied_folders_are_refused(tmp_path: Path) -> None:
    zoo, _ = make_zoo(tmp_path / "zoo")
    with pytest.raises(ZooError, match="already holds a zoo"):
        ZooWriter(zoo.path, architecture=ARCHITECTURE)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("a")
    with pytest.raises(ZooError, match=r"not empty \(it holds a\.txt\)"):
        ZooWriter(tmp_path / "letters", architecture=ARCHITECTURE)
    with pytest.raises(ZooError, match="there is no folder"):
        ZooWriter(tmp_path / "absent" / "zoo", architecture=ARCHITECTURE)
    with (
        pytest.raises(ZooError, match="at least one"),
        ZooWriter(tmp_path / "empty", architecture=ARCHITECTURE),
    ):
        pass
    assert not (tmp_path / "empty").exists()


def test_verify_finds_every_kind_of_damage(tmp_path: Path) -> None:
    zoo, _ = make_zoo(tmp_path / "zoo")
    weights = zoo.path / zoo.manifest.shards[1].weights
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    (zoo.path / zoo.manifest.shards[2].models).unlink()
    truncated = zoo.path / zoo.manifest.shards[3].weights
    truncated.write_bytes(truncated.read_bytes()[:-8])
    (zoo.path / "stray").write_text("")
    problems = "\n".join(Zoo.open(zoo.path).verify().problems)
    assert f"{weights.name} has changed" in problems
    assert "models-00002.parquet is missing" in problems
    assert f"{truncated.name} has changed" in problems
    assert f"{truncated.name} cannot be read" in problems
    assert "stray does not belong" in problems
    assert "weights-00000" not in problems
    with pytest.raises(ZooError, match="cannot be read"):
        Zoo.open(zoo.path).read([16])
    with pytest.raises(ZooError, match=r"models-00002\.parquet cannot be read"):
        _ = Zoo.open(zoo.path).metadata


def test_verify_counts_values_that_are_not_finite(tmp_path: Path) -> None:
    tensors = models(3)
    tensors["seq.0.weight"][1, 0, 0] = float("nan")
    tensors["seq.0.weight"][2, 0, 0] = float("inf")
    with ZooWriter(tmp_path / "zoo", architecture=ARCHITECTURE) as writer:
        writer.append(tensors, columns(3))
    report = Zoo.open(tmp_path / "zoo").verify()
    assert report.ok
    assert report.non_finite["seq.0.weight"] == 2
    assert sum(report.non_finite.values()) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.update(format="other"), "no manifest of a zoo"),
        (lambda value: value.update(version=9), "format version 9, this release reads 1"),
        (lambda value: value.pop("shards"), "broken part .KeyError: 'shards'"),
        (
            lambda value: value["shards"][0].update(weights="../x.safetensors"),
            "shards lie beside the manifest",
        ),
        (lambda value: value["shards"][0].update(count=0), "expected 1 or more"),
        (lambda value: value["shards"][0].update(count=4), r"expected \[4, 3, 2\]"),
    ],
)
def test_lying_manifests_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    zoo, _ = make_zoo(tmp_path / "zoo")
    value = json.loads((zoo.path / "zoo.json").read_text())
    change(value)
    (zoo.path / "zoo.json").write_text(json.dumps(value))
    with pytest.raises(ZooError, match=words):
        Zoo.open(zoo.path).read([0])


def test_open_says_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"there is no zoo\.json in it"):
        Zoo.open(tmp_path)
    (tmp_path / "zoo.json").write_text("{")
    with pytest.raises(ZooError, match="is no JSON"):
        Zoo.open(tmp_path)


def test_a_zoo_travels_to_worker_processes(tmp_path: Path) -> None:
    zoo, tensors = make_zoo(tmp_path / "zoo")
    zoo.read([0])
    assert_same(pickle.loads(pickle.dumps(zoo)).load(), tensors)


def test_merging_keeps_equal_image_numbers_apart(tmp_path: Path) -> None:
    one, first = make_zoo(tmp_path / "one", count=9)
    two, second = make_zoo(tmp_path / "two", count=8, seed=1)
    merged = merge_zoos([one.path, two.path], tmp_path / "merged", shard_size=4)
    assert_same(merged.load(), {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()})
    assert merged.column("source") == ["one"] * 9 + ["two"] * 8
    assert merged.labels.tolist() == [*one.labels.tolist(), *two.labels.tolist()]
    assert merged.label_names == one.label_names
    assert merged.verify().ok
    halves = merged.split({"a": 0.5, "b": 0.5})
    held = [{((n if n < 9 else n - 9) // 2, n < 9) for n in part.tolist()} for part in halves.values()]
    assert not held[0] & held[1]
    assert len(held[0] | held[1]) == 9


def test_zoos_of_other_architectures_do_not_merge(tmp_path: Path) -> None:
    make_zoo(tmp_path / "one", count=3)
    other = Siren(hidden_features=4, hidden_layers=1)
    with ZooWriter(tmp_path / "two", architecture=other.config) as writer:
        writer.append({name: tensor[None] for name, tensor in other.state_dict().items()}, columns(1))
    with pytest.raises(ZooError, match=r"cannot merge .*two: its architecture"):
        merge_zoos([tmp_path / "one", tmp_path / "two"], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_checkpoints_become_a_zoo(tmp_path: Path) -> None:
    tensors = models(3)
    files = [tmp_path / "a.safetensors", tmp_path / "b.pt", tmp_path / "c.safetensors"]
    for i, file in enumerate(files):
        state = {name: tensor[i].clone() for name, tensor in tensors.items()}
        if file.suffix == ".pt":
            torch.save({"state_dict": state}, file)
        else:
            save_file(state, file)
    zoo = zoo_from_checkpoints(files, tmp_path / "zoo", {"label": [4, 5, 6]}, architecture=ARCHITECTURE)
    assert_same(zoo.load(), tensors)
    assert zoo.labels.tolist() == [4, 5, 6]
    assert zoo.column("file") == [str(file) for file in files]
    assert isinstance(zoo.build_module(), Siren)
    save_file({"seq.0.weight": torch.zeros(3, 2)}, files[2])
    with pytest.raises(ZooError, match=r"c\.safetensors: entry 'seq.0.bias' is absent"):
        zoo_from_checkpoints(files, tmp_path / "second")
    assert not (tmp_path / "second").exists()
