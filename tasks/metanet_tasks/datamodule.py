"""Data module over any zoo: read, checked, canonicalised and divided once, kept in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from metanet.canonical.form import canonicalize
from metanet.features import WeightFeatures
from metanet_tasks.augmentation import GroupAugmentation
from metanet_tasks.batches import BatchLoader, StackedNetworks
from metanet_tasks.zoo_spec import zoo_spec
from metanet_zoo.store import Zoo
from metanet_zoo.transforms import coordinate_layer

Part = Literal["train", "val", "test"]
Split = Literal["auto", "random", "column"]

SPLIT_COLUMN = "split"
IMAGE_COLUMN = "image"


class ZooDataModule(LightningDataModule):
    """Train, validation and test networks of a zoo, with their labels.

    Networks that were fitted to the same image never end up in different parts.

    Args:
        zoo: folder of the zoo.
        test_zoo: another zoo of the same architecture to test on; nothing of ``zoo`` is held out then.
        batch_size: networks per training batch.
        eval_batch_size: networks per validation and test batch.
        canonical: take the signs and phases out of the weights, exactly (`metanet.canonicalize`).
        noise: standard deviation of the Gaussian noise on training weights, in units of each tensor's own.
        group_augmentation: random group elements on training networks: none, permutations, or all freedoms.
        motion: strength of random shifts, turns, scalings and shears of the signals of training INRs, made
            exactly on their first layer (`metanet_zoo.transforms`); 0 for networks that are no INRs.
        split: where the parts come from: ``column``, the zoo's own train/test; ``random``; or ``auto``, the
            column if there is one.
        val_fraction: share of the training images held out for validation; 0 validates on nothing.
        test_fraction: share of the images held out for the test, if it is neither a zoo nor a column.
        train_limit: train on this many networks at most.
        seed: of the split, the order of the batches and the augmentation.

    Raises:
        ValueError: the zoo has no labels, shares are out of range, or settings contradict each other.
    """

    def __init__(
        self,
        zoo: str,
        test_zoo: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        canonical: bool = True,
        noise: float = 0.1,
        group_augmentation: GroupAugmentation = "none",
        motion: float = 0.0,
        split: Split = "auto",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        train_limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, found {share}")
        if batch_size < 1 or eval_batch_size < 1:
            raise ValueError(f"batch sizes must be at least 1, found {batch_size} and {eval_batch_size}")
        if not (noise >= 0 and motion >= 0):
            raise ValueError(f"noise and motion must be at least 0, found {noise} and {motion}")
        if split not in get_args(Split):
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(get_args(Split))}")
        if train_limit is not None and train_limit < 1:
            raise ValueError(f"train_limit must be at least 1, found {train_limit}")
        if group_augmentation not in get_args(GroupAugmentation):
            raise ValueError(
                f"unknown group augmentation {group_augmentation!r}; "
                f"expected one of {', '.join(get_args(GroupAugmentation))}"
            )
        self.zoo = Zoo.open(zoo)
        self.test_zoo = Zoo.open(test_zoo) if test_zoo is not None else None
        if canonical and group_augmentation == "all":
            raise ValueError(
                "canonical=True takes signs and phases out of the weights, group_augmentation='all' puts "
                "random ones back; choose canonical=False or group_augmentation='permutations'"
            )
        self.spec = zoo_spec(self.zoo)
        if motion:
            coordinate_layer(self.spec)
        labels = [other.labels for other in (self.zoo, self.test_zoo) if other is not None]
        known = self.zoo.label_names
        if self.test_zoo is not None:
            self.spec.check(self.test_zoo.shapes)
            if self.test_zoo.label_names != known:
                raise ValueError(
                    f"{test_zoo} has the labels {list(self.test_zoo.label_names)}, {zoo} {list(known)}; "
                    "they must agree"
                )
        highest = max(int(values.max()) for values in labels)
        self.label_names = list(known) or [str(i) for i in range(highest + 1)]
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.canonical, self.noise, self.motion = canonical, noise, motion
        self.group_augmentation: GroupAugmentation = group_augmentation
        self.split: Split = split
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.train_limit, self.seed = train_limit, seed
        self.parts: dict[Part, StackedNetworks] = {}
        self.scales: dict[str, float] = {}

    @property
    def spec_json(self) -> str:
        """The spec as JSON text, for the model's hyperparameters."""
        return self.spec.to_json()

    def setup(self, stage: str | None = None) -> None:
        """Read, canonicalise and split the networks, once."""
        if self.parts:
            return
        for part, (zoo, indices) in self.split_indices().items():
            tensors = zoo.read(indices)
            _require_finite(zoo, indices, tensors)
            if self.canonical and len(indices):
                tensors = canonicalize(self.spec, tensors)
            self.parts[part] = StackedNetworks(tensors, zoo.labels[indices], indices)
        train = self.parts["train"].tensors
        self.scales = {
            n: float(t.double().std(correction=0)) for n, t in train.items() if t.is_floating_point()
        }

    def split_indices(self) -> dict[Part, tuple[Zoo, Tensor]]:
        """Return the zoo and the places of every part's networks."""
        everything = torch.arange(len(self.zoo))
        has_column = SPLIT_COLUMN in self.zoo.manifest.columns
        if self.split == "column" and not has_column:
            raise ValueError(
                f"{self.zoo.path} has no column {SPLIT_COLUMN!r}; its columns are "
                f"{', '.join(self.zoo.manifest.columns)}; choose split=random"
            )
        if self.test_zoo is not None:
            train, test, test_zoo = everything, torch.arange(len(self.test_zoo)), self.test_zoo
        elif (
            has_column
            and self.split != "random"
            and {"train", "test"} <= set(self.zoo.split_by(SPLIT_COLUMN))
        ):
            by_name = self.zoo.split_by(SPLIT_COLUMN)
            train, test, test_zoo = by_name["train"], by_name["test"], self.zoo
        else:
            shares = {"train": 1 - self.test_fraction, "test": self.test_fraction}
            divided = self.zoo.split(shares, self.seed, group_by=IMAGE_COLUMN)
            train, test, test_zoo = divided["train"], divided["test"], self.zoo
        shares = {"train": 1 - self.val_fraction, "val": self.val_fraction}
        of = self.zoo.split(shares, self.seed + 1, group_by=IMAGE_COLUMN)
        held_out = torch.isin(train, of["val"])
        chosen = train[~held_out]
        if self.train_limit is not None and self.train_limit < len(chosen):
            generator = torch.Generator().manual_seed(self.seed)
            chosen = (
                chosen[torch.randperm(len(chosen), generator=generator)[: self.train_limit]].sort().values
            )
        if not len(chosen):
            raise ValueError(
                f"{self.zoo.path} leaves no networks to train on; lower val_fraction or test_fraction"
            )
        return {"train": (self.zoo, chosen), "val": (self.zoo, train[held_out]), "test": (test_zoo, test)}

    def features(self, part: Part) -> WeightFeatures:
        """Return all networks of a part as features, canonical if so set, without augmentation."""
        return WeightFeatures.from_state_dict(self.spec, self.parts[part].tensors, batched=True)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches with noise and random group elements."""
        return BatchLoader(
            self.spec,
            self.parts["train"],
            self.batch_size,
            seed=self.seed,
            noise=self.noise,
            scales=self.scales,
            group_augmentation=self.group_augmentation,
            motion=self.motion,
            canonical=self.canonical,
        )

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Networks of held-out training images, as they are; nothing if there are none."""
        if not len(self.parts["val"]):
            return []
        return BatchLoader(self.spec, self.parts["val"], self.eval_batch_size)

    def test_dataloader(self) -> BatchLoader:
        """Networks of the test images, as they are."""
        return BatchLoader(self.spec, self.parts["test"], self.eval_batch_size)


def _require_finite(zoo: Zoo, indices: Tensor, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        bad = ~tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else ~tensor.isfinite()
        if bool(bad.any()):
            raise ValueError(
                f"{zoo.path}: {int(bad.sum())} networks have values that are not finite, the first is "
                f"network {int(indices[bad][0])} in {name!r}; they have diverged, write a zoo without them"
            )
