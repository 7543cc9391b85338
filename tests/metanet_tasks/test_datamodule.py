from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metanet.canonical.form import canonicalize
from metanet.testing import assert_close
from metanet_tasks.batches import BatchLoader, epoch_seed
from metanet_tasks.datamodule import ZooDataModule
from metanet_zoo.manifest import ZooError
from metanet_zoo.store import Zoo
from metanet_zoo.writer import ZooWriter
from tests.metanet_tasks.tiny_zoo import write_zoo


def module(zoo: Zoo, **settings: Any) -> ZooDataModule:
    data = ZooDataModule(str(zoo.path), **settings)
    data.setup()
    return data


def test_parts_cover_the_zoo_and_views_of_an_image_stay_together(tiny_zoo: Zoo) -> None:
    data = module(tiny_zoo, val_fraction=0.2, test_fraction=0.3)
    indices = [data.parts[part].indices for part in ("train", "val", "test")]
    assert sorted(torch.cat(indices).tolist()) == list(range(60))
    assert all(len(part) for part in indices)
    images = tiny_zoo.column("image")
    assert isinstance(images, torch.Tensor)
    seen = [set(images[part].tolist()) for part in indices]
    assert seen[0].isdisjoint(seen[1] | seen[2])
    assert seen[1].isdisjoint(seen[2])


def test_another_zoo_is_the_test_part(tiny_zoo: Zoo, tmp_path: Path) -> None:
    other = write_zoo(tmp_path / "other.zoo", images=6, views=1, seed=9)
    data = module(tiny_zoo, test_zoo=str(other.path), val_fraction=0.0)
    assert (len(data.parts["train"]), len(data.parts["val"]), len(data.parts["test"])) == (60, 0, 6)
    assert data.val_dataloader() == []
    expected = canonicalize(data.spec, other.load())
    assert_close(dict(data.parts["test"].tensors), expected, tolerance=0)


def test_a_column_of_the_zoo_decides_the_split(tiny_zoo: Zoo, tmp_path: Path) -> None:
    named = ["test" if i < 12 else "train" for i in range(60)]
    with ZooWriter(
        tmp_path / "zoo", architecture=tiny_zoo.architecture, label_names=tiny_zoo.label_names
    ) as writer:
        writer.append(tiny_zoo.load(), {"label": tiny_zoo.labels, "split": named})
    zoo = Zoo.open(tmp_path / "zoo")
    assert module(zoo, val_fraction=0.0).parts["test"].indices.tolist() == list(range(12))
    assert len(module(zoo, val_fraction=0.0, split="random", test_fraction=0.5).parts["test"]) == 30
    with pytest.raises(ValueError, match="no column 'split'"):
        module(tiny_zoo, split="column")


def test_weights_are_canonical_only_if_asked_for(tiny_zoo: Zoo) -> None:
    raw = module(tiny_zoo, canonical=False).parts["train"]
    stored = tiny_zoo.read(raw.indices)
    assert_close(dict(raw.tensors), stored, tolerance=0)
    canonical = module(tiny_zoo).parts["train"]
    assert not torch.equal(canonical.tensors["seq.0.bias"], stored["seq.0.bias"])


def test_training_batches_depend_on_seed_and_epoch_alone(tiny_zoo: Zoo) -> None:
    def batches(seed: int, epoch: int) -> list[torch.Tensor]:
        loader = module(
            tiny_zoo, batch_size=16, seed=seed, group_augmentation="permutations"
        ).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [features.tensors["seq.1.weight"] for features, _ in loader]

    first = batches(0, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, batches(0, 3), strict=True))
    for other in (batches(1, 3), batches(0, 4)):
        assert not torch.equal(first[0], other[0])
    assert [len(batch) for batch in first][:-1] == [16] * (len(first) - 1)


def test_noise_is_for_training_alone_and_in_units_of_each_tensor(tiny_zoo: Zoo) -> None:
    data = module(tiny_zoo, batch_size=1000, noise=0.5)
    loader = data.train_dataloader()
    ((noisy, labels),) = loader
    generator = torch.Generator().manual_seed(epoch_seed(0, 0))
    order = torch.randperm(len(labels), generator=generator)
    for name, clean in data.features("train").tensors.items():
        residual = (noisy.tensors[name] - clean[order]) / data.scales[name]
        if residual.numel() > 500:
            assert float(residual.std()) == pytest.approx(0.5, rel=0.1)
    clean_batches = BatchLoader(data.spec, data.parts["test"], 1000)
    ((features, _),) = clean_batches
    assert_close(dict(features.tensors), dict(data.features("test").tensors), tolerance=0)


def test_a_limit_takes_fewer_networks_to_train_on(tiny_zoo: Zoo) -> None:
    full, limited = module(tiny_zoo), module(tiny_zoo, train_limit=10)
    assert len(limited.parts["train"]) == 10
    assert set(limited.parts["train"].indices.tolist()) <= set(full.parts["train"].indices.tolist())
    assert torch.equal(limited.parts["test"].indices, full.parts["test"].indices)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"batch_size": 0}, "batch sizes"),
        ({"noise": -1.0}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"train_limit": 0}, "train_limit"),
        ({"split": "half"}, "auto, random, column"),
        ({"group_augmentation": "all"}, "canonical=False"),
        ({"group_augmentation": "some"}, "none, permutations, all"),
    ],
)
def test_impossible_settings_are_named(tiny_zoo: Zoo, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZooDataModule(str(tiny_zoo.path), **settings)


def test_zoos_that_cannot_be_classified_are_refused(tiny_zoo: Zoo, tmp_path: Path) -> None:
    with ZooWriter(tmp_path / "unlabelled", architecture=tiny_zoo.architecture) as writer:
        writer.append(tiny_zoo.load(), {"image": torch.arange(60)})
    with pytest.raises(ZooError, match="no column of labels"):
        ZooDataModule(str(tmp_path / "unlabelled"))
    broken = tiny_zoo.load()
    broken["seq.0.weight"][7] = float("nan")
    with ZooWriter(tmp_path / "diverged", architecture=tiny_zoo.architecture) as writer:
        writer.append(broken, {"label": tiny_zoo.labels})
    with pytest.raises(ValueError, match="network 7"):
        module(Zoo.open(tmp_path / "diverged"))
    with pytest.raises(ZooError, match="holds no zoo"):
        ZooDataModule(str(tmp_path))


def test_motion_moves_the_signals_of_training_networks_alone(tiny_zoo: Zoo) -> None:
    still = module(tiny_zoo, noise=0.0, batch_size=1000)
    moving = module(tiny_zoo, noise=0.0, motion=0.1, batch_size=1000)
    ((still_features, labels),) = still.train_dataloader()
    ((moved, moved_labels),) = moving.train_dataloader()
    assert len(labels) == len(moved_labels)
    assert not torch.allclose(
        still_features.tensors["seq.0.weight"].sum(), moved.tensors["seq.0.weight"].sum()
    )
    canonical = canonicalize(moving.spec, moved)
    assert_close(
        dict(canonical.tensors), dict(moved.tensors), tolerance=1e-4, what="a moved network is canonical"
    )
    ((tested, _),) = moving.test_dataloader()
    assert_close(dict(tested.tensors), dict(still.features("test").tensors), tolerance=0)
