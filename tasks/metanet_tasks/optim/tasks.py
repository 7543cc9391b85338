"""The tasks on which optimizers are compared: small networks on real data, and held-out variants of them.

They follow the four tasks of UNF's optimizer (appendix C), rebuilt on data that is at hand: an MLP on 8×8
Fashion-MNIST, a CNN on 16×16 CIFAR-10, a character RNN and a two-block transformer on tiny Shakespeare.
Initial weights and batches depend on the seed alone, so that runs of different optimizers are paired.

References:
    Zhou et al. 2024, Universal neural functionals, https://arxiv.org/abs/2402.05232.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH = 128


@dataclass(frozen=True)
class Data:
    """Training and test examples: ``inputs [n, …]`` and ``targets [n, …]`` each."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A network to train.

    Args:
        name: of the task.
        build: makes the network.
        data: reads the data from the folder that holds ``fashion-mnist``, ``cifar10``, ``tinyshakespeare``.
        batch_size: examples per step.
        held_out: whether the shipped meta-weights never saw its kind of network.
        batched: whether sweeps run as one batch, which pays where a step is mostly overhead.
    """

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[Path], Data]
    batch_size: int = BATCH
    held_out: bool = True
    batched: bool = False


def fashion_mnist(folder: Path) -> Data:
    """Return Fashion-MNIST averaged to 8×8: ``[n, 64]`` in [0, 1]."""
    return _fashion_mnist(folder)


@lru_cache(maxsize=1)
def _fashion_mnist(folder: Path) -> Data:
    from metanet_zoo.images import open_images

    def part(split: str) -> tuple[Tensor, Tensor]:
        prefix = "train" if split == "train" else "t10k"
        found = open_images(folder / "fashion-mnist" / f"{prefix}-images-idx3-ubyte.gz", split=split)
        if found.labels is None:
            raise ValueError(
                f"{folder / 'fashion-mnist'} has no labels: expected {prefix}-labels-idx1-ubyte.gz"
            )
        pixels = found.images[:, None].float() / 255
        return functional.interpolate(pixels, size=(8, 8), mode="area").flatten(1), found.labels

    return Data(part("train"), part("test"))


def text(length: int) -> Callable[[Path], Data]:
    """Return a reader of tiny Shakespeare in pieces of ``length`` characters and the ones that follow."""

    def read(folder: Path) -> Data:
        codes = _characters(folder)
        pieces = codes[: len(codes) // (length + 1) * (length + 1)].view(-1, length + 1)
        cut = int(len(pieces) * 0.95)
        train, test = pieces[:cut], pieces[cut:]
        return Data((train[:, :-1], train[:, 1:]), (test[:, :-1], test[:, 1:]))

    return read


@lru_cache(maxsize=1)
def _characters(folder: Path) -> Tensor:
    content = (folder / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    order = {character: code for code, character in enumerate(sorted(set(content)))}
    return torch.tensor([order[character] for character in content])


def cifar10(folder: Path) -> Data:
    """Return CIFAR-10 averaged to 16×16: ``[n, 3, 16, 16]``, standardised per channel."""
    return _cifar10(folder)


@lru_cache(maxsize=1)
def _cifar10(folder: Path) -> Data:
    from PIL import Image

    def part(files: range) -> Tensor:
        images = []
        for number in files:
            with Image.open(folder / "cifar10" / f"cifar10_batch_{number:02d}.png") as picture:
                images.append(torch.from_numpy(np.asarray(picture).reshape(-1, 32, 32, 3).copy()))
        pixels = torch.cat(images).permute(0, 3, 1, 2).float() / 255
        return functional.interpolate(pixels, size=(16, 16), mode="area")

    labels = torch.tensor(json.loads((folder / "cifar10" / "cifar10_labels.json").read_text())["labels"])
    train, test = part(range(27)), part(range(28, 30))
    mean, std = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    return Data(((train - mean) / std, labels[:27_000]), ((test - mean) / std, labels[28_000:30_000]))


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU, norm: bool = False) -> Callable[[], nn.Module]:
    """Return a builder of an MLP."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), *([nn.LayerNorm(fan_out)] if norm else []), activation()]
        return nn.Sequential(*layers[: -2 if norm else -1])

    return build


def cnn(first: int = 16, second: int = 32) -> Callable[[], nn.Module]:
    """Return a builder of UNF's CNN: two convolutions, global average pooling, a linear layer."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(second, 10),
        )

    return build


CHARACTERS = 65


class Recurrent(nn.Module):
    """A character model: embedding, recurrent layer, head."""

    def __init__(self, kind: type[nn.RNN] | type[nn.GRU], embedding: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, embedding)
        self.cells = kind(embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, CHARACTERS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[batch, length, 65]`` logits of ``[batch, length]`` codes."""
        logits: Tensor = self.head(self.cells(self.embedding(tokens))[0])
        return logits


class Transformer(nn.Module):
    """A causal transformer with learned positions."""

    def __init__(self, width: int = 32, heads: int = 4, blocks: int = 2, length: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CHARACTERS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[batch, length, 65]`` logits of ``[batch, length]`` codes."""
        hidden = self.embedding(tokens) + self.positions
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class PatchTransformer(nn.Module):
    """A ViT on 16×16 images in 4×4 patches."""

    def __init__(self, width: int = 32, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(torch.randn(16, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[batch, 10]`` logits of ``[batch, 3, 16, 16]`` images."""
        hidden = self.patches(images).flatten(2).mT + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden).mean(1))
        return logits


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("mlp", mlp(64, 32, 32, 10), fashion_mnist, held_out=False, batched=True),
        Task("mlp-wide", mlp(64, 128, 128, 10), fashion_mnist, batched=True),
        Task("mlp-deep", mlp(64, 32, 32, 32, 32, 10), fashion_mnist, batched=True),
        Task("mlp-gelu", mlp(64, 48, 10, activation=nn.GELU), fashion_mnist, held_out=False, batched=True),
        Task("mlp-norm", mlp(64, 32, 32, 10, norm=True), fashion_mnist, batched=True),
        Task("cnn", cnn(), cifar10),
        Task("vit", PatchTransformer, cifar10),
        Task("rnn", lambda: Recurrent(nn.RNN), text(16), batch_size=64),
        Task("gru", lambda: Recurrent(nn.GRU), text(16), batch_size=64),
        Task("transformer", Transformer, text(16), batch_size=64),
    )
}
"""Tasks by name. The shipped weights were meta-trained on MLPs with one to three layers of 16–64 units."""


def loss_of(model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy."""
    logits = model(inputs)
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor], limit: int = 4096) -> float:
    """Return the share of right answers on the first test examples."""
    inputs, targets = data[0][:limit], data[1][:limit]
    model.eval()
    found = float((model(inputs).argmax(-1) == targets).float().mean())
    model.train()
    return found
