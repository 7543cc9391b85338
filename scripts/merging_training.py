"""Networks to merge: MLPs on MNIST and Fashion-MNIST, ResNet-20 and a plain CNN on CIFAR-10, trained here.

    python scripts/merging_training.py mnist --seed 0 --out runs/merging

Called by `merging_quality.py`; a finished network is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from metanet_zoo.checkpoint import open_checkpoint
from metanet_zoo.idx import open_idx_folder
from metanet_zoo.saving import save_checkpoint

DATA = Path(os.environ.get("METANET_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    optimizer: str
    augment: bool = False


RECIPES = {
    "mnist": Recipe(10, 256, 0.1, 5e-4, "sgd"),
    "fashion-mnist": Recipe(12, 256, 0.1, 5e-4, "sgd"),
    "cifar10": Recipe(10, 128, 0.2, 5e-4, "sgd", augment=True),
    "cifar10-cnn": Recipe(8, 128, 0.05, 5e-4, "sgd", augment=True),
}


@dataclass(frozen=True)
class Images:
    """Normalised images `[n, channels, height, width]` and their labels `[n]`."""

    x: Tensor
    y: Tensor


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm around a shortcut, projected where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.down: nn.Module = nn.Identity()
        if channels != out:
            self.down = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, channels, h, w]` to `[b, out, h / stride, w / stride]`."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.down(x))


def resnet20(width: int = 1, classes: int = 10) -> nn.Module:
    """ResNet-20 of `width` × (16, 32, 64) channels for 32×32 images.

    References:
        He et al. (2016), Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385.
    """
    channels = [16 * width, 32 * width, 64 * width]
    layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, 1, 1, bias=False), nn.BatchNorm2d(channels[0])]
    layers.append(nn.ReLU())
    before = channels[0]
    for stage, out in enumerate(channels):
        for block in range(3):
            layers.append(BasicBlock(before, out, 2 if stage and not block else 1))
            before = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def mlp(width: int = 512) -> nn.Module:
    """784-512-512-512-10 with ReLU: three hidden layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


def cnn(classes: int = 10) -> nn.Module:
    """Three 3×3 convolutions of 32, 64 and 128 channels with pooling, then 256 units: no normalisation."""
    layers: list[nn.Module] = []
    for before, out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 256), nn.ReLU(), nn.Linear(256, classes))


def convolutional(dataset: str) -> bool:
    """Whether the network of a data set is made of convolutions."""
    return dataset.startswith("cifar10")


def build(dataset: str) -> nn.Module:
    """The network that is trained on a data set."""
    makers = {"cifar10": resnet20, "cifar10-cnn": cnn}
    return makers.get(dataset, mlp)()


def load(dataset: str, split: str, folder: Path = DATA) -> Images:
    """Images of a split, normalised by the mean and deviation of the training images."""
    if convolutional(dataset):
        folder = folder / "cifar10"
        # The first 27,000 official training images train, the last 2,000 of the 30,000 that lie here test.
        files = range(27) if split == "train" else range(28, 30)
        labels = json.loads((folder / "cifar10_labels.json").read_text())["labels"]
        pixels = np.concatenate(
            [
                np.array(Image.open(folder / f"cifar10_batch_{i:02d}.png")).reshape(-1, 32, 32, 3)
                for i in files
            ]
        )
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
        y = torch.tensor(labels[files[0] * 1000 : (files[-1] + 1) * 1000])
        mean, deviation = torch.tensor([0.491, 0.482, 0.447]), torch.tensor([0.247, 0.243, 0.262])
        return Images((x - mean[:, None, None]) / deviation[:, None, None], y)
    images = open_idx_folder(folder / dataset, split)
    assert images.labels is not None
    x = images.images.float().div(255)[:, None]
    mean_, deviation_ = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}[dataset]
    return Images((x - mean_) / deviation_, images.labels)


def flip_and_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images and move each by up to four pixels."""
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    padded = F.pad(x, (4, 4, 4, 4))
    dy, dx = torch.randint(9, (2, len(x)), generator=generator)
    rows = (torch.arange(32) + dy[:, None])[:, None, :, None]
    columns = (torch.arange(32) + dx[:, None])[:, None, None, :]
    return padded[
        torch.arange(len(x))[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns
    ]


def train(dataset: str, seed: int, folder: Path, recipe: Recipe | None = None) -> Path:
    """Train the network of one seed, unless it is there, and return its file."""
    target = folder / dataset / f"{seed}.safetensors"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    recipe = recipe or RECIPES[dataset]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data, model = load(dataset, "train"), build(dataset)
    images = convolutional(dataset)
    if images:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), recipe.learning_rate, 0.9, weight_decay=recipe.weight_decay, nesterov=True
        )
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
    steps = recipe.epochs * math.ceil(len(data.x) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.2
    )
    begun = time.process_time()
    for epoch in range(recipe.epochs):
        total = 0.0
        for rows in torch.randperm(len(data.x), generator=generator).split(recipe.batch_size):
            x = flip_and_crop(data.x[rows], generator) if recipe.augment else data.x[rows]
            if images:
                x = x.to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=images):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), data.y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        print(f"{dataset} seed {seed} epoch {epoch + 1}: loss {total / len(data.x):.4f}", flush=True)
    facts = {"recipe": asdict(recipe), "cpu_s": round(time.process_time() - begun), "seed": seed}
    save_checkpoint(target, model.state_dict(), {"training": json.dumps(facts)})
    return target


def trained(dataset: str, seed: int, folder: Path) -> dict[str, Tensor]:
    """State dict of the network of one seed, trained if need be."""
    return open_checkpoint(train(dataset, seed, folder)).state_dict()


def main() -> None:
    """Train the network of one seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/merging"))
    parser.add_argument("--optimizer", choices=["sgd", "adamw"])
    options = parser.parse_args()
    recipe = RECIPES[options.dataset]
    if options.optimizer == "adamw":
        recipe = Recipe(recipe.epochs, recipe.batch_size, 1e-3, 1e-4, "adamw", recipe.augment)
    train(options.dataset, options.seed, options.out, recipe)


if __name__ == "__main__":
    main()
