"""Is a permutation planted in a trained network found again, exactly?

    python scripts/planted_recovery.py --work runs/merging

Trained networks: the MLP and ResNet-20 of `merging_training.py`, the Llama of `character_transformer.py`
(grouped queries), and a ViT and an LSTM trained here within a minute each. Each is permuted by random
elements of its derived group, as it is and with noise on every tensor (in parts of the tensor's deviation),
and weight matching, which sees weights alone, is to find the elements. What is done is kept in --work. The
table goes to scripts/results/planted_recovery.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from character_transformer import character_tokenizer, encode, read_text, train_text
from merging_training import build, load, trained
from torch import Tensor, nn

from metanet import GroupElement, WeightSpec, spec_of
from metanet.matching.weights import weight_matching
from metanet_zoo.atomic import write_json_atomic
from metanet_zoo.checkpoint import open_checkpoint
from metanet_zoo.saving import save_checkpoint

RESULTS = Path(__file__).parent / "results" / "planted_recovery.md"
DRAWS = 10
NOISES = (0.0, 0.5, 1.0, 3.0)
State = dict[str, Tensor]
Case = tuple[WeightSpec, State, str]


class ViT(nn.Module):
    """A vision transformer for 28×28 images: patches of 7×7, width 64, two blocks of four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 64, 7, 7)
        self.token = nn.Parameter(torch.zeros(1, 1, 64))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, 64))
        block = nn.TransformerEncoderLayer(64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, 1, 28, 28]` to `[b, 10]`."""
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(y), -1, -1), y], 1) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(y))[:, 0])
        return logits


class CharacterLSTM(nn.Module):
    """A language model over characters: an LSTM of two layers of width 96."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 48)
        self.lstm = nn.LSTM(48, 96, 2, batch_first=True)
        self.head = nn.Linear(96, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `[b, time]` to `[b, time, vocabulary]`."""
        logits: Tensor = self.head(self.lstm(self.embedding(tokens))[0])
        return logits


def fit(target: Path, model: nn.Module, batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]) -> State:
    """Train a model by Adam for 300 steps, unless its weights are there."""
    if not target.is_file():
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
        generator = torch.Generator().manual_seed(0)
        for step in range(300):
            x, y = batch(generator)
            loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 100 == 99:
                print(f"{target.stem} step {step + 1}: loss {float(loss.detach()):.3f}", flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(target, model.state_dict(), {"loss": f"{float(loss.detach()):.3f}"})
    return open_checkpoint(target).state_dict()


def classifier(dataset: str, name: str, work: Path) -> Case:
    """Return a classifier of `merging_training.py`."""
    model = build(dataset).eval()
    state = trained(dataset, 0, work)
    return spec_of(model, load(dataset, "test").x[:1]), state, name


def vision_transformer(work: Path) -> Case:
    """Return the ViT, trained on MNIST."""
    torch.manual_seed(0)
    model, images = ViT(), load("mnist", "train")

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(images.x), (128,), generator=generator)
        return images.x[rows], images.y[rows]

    state = fit(work / "planted" / "vit.safetensors", model, batch)
    return spec_of(model.eval(), images.x[:1]), state, "ViT, 2 blocks of width 64, 4 heads; MNIST, 300 steps"


def recurrent(work: Path) -> Case:
    """Return the LSTM, trained on characters."""
    text, held_out = read_text()
    tokenizer = character_tokenizer(text + held_out)
    tokens = encode(tokenizer, text)
    torch.manual_seed(0)
    model = CharacterLSTM(len(tokenizer))

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(tokens) - 65, (32, 1), generator=generator)
        windows = tokens[starts + torch.arange(65)]
        return windows[:, :-1], windows[:, 1:]

    state = fit(work / "planted" / "lstm.safetensors", model, batch)
    return (
        spec_of(model.eval(), tokens[None, :8]),
        state,
        "LSTM, 2 layers of width 96; tiny Shakespeare, 300 steps",
    )


def language_model(work: Path) -> Case:
    """Return the Llama with two query heads over each of two key-value heads."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(train_text(0, work))).eval()
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    spec = spec_of(model, input_ids=torch.arange(8)[None])
    return spec, state, "Llama, 2 blocks of width 96, 4 heads over 2 key-value heads; tiny Shakespeare"


CASES: dict[str, Callable[[Path], Case]] = {
    "mlp": lambda work: classifier("mnist", "MLP 784-512-512-512-10; MNIST", work),
    "resnet": lambda work: classifier("cifar10", "ResNet-20; CIFAR-10", work),
    "vit": vision_transformer,
    "lstm": recurrent,
    "llama": language_model,
}


def noisy(state: State, noise: float, generator: torch.Generator) -> State:
    """Add noise to every tensor, in parts of the deviation of its values."""

    def changed(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or noise == 0 or tensor.numel() < 2:
            return tensor
        return tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=generator)

    return {name: changed(tensor) for name, tensor in state.items()}


def recover(spec: WeightSpec, state: State, noise: float, seed: int) -> dict[str, float]:
    """Plant an element, match, and return how much of it was found."""
    generator = torch.Generator().manual_seed(seed)
    planted = GroupElement.random(spec, generator)
    target = planted @ noisy(state, noise, generator)
    begun = time.process_time()
    found = weight_matching(spec, target, state)
    seconds = time.process_time() - begun
    right = total = 0
    for name, permutation in planted.permutations.items():
        right += int((permutation == found.element.permutations[name]).sum())
        total += permutation.numel()
    before, best, left = (
        distance(target, other) for other in (state, planted @ state, found.element @ state)
    )
    return {
        "units": right / total,
        "exact": float(right == total),
        "left": left / before,
        "excess": (left - best) / before,
        "cpu_s": seconds,
    }


def distance(a: State, b: State) -> float:
    """Return ‖a − b‖² without the statistics of norms."""
    return sum(
        float((x - b[name]).double().square().sum())
        for name, x in a.items()
        if x.is_floating_point() and not name.endswith(("running_mean", "running_var"))
    )


def measure(name: str, work: Path) -> dict[str, Any]:
    """Plant and match, for every amount of noise, unless it has been done."""
    target = work / "planted" / f"{name}.json"
    if target.is_file():
        kept: dict[str, Any] = json.loads(target.read_text())
        return kept
    spec, state, title = CASES[name](work)
    result: dict[str, Any] = {"title": title, "groups": len(spec.groups), "rows": {}}
    drawn = GroupElement.random(spec, torch.Generator().manual_seed(0))
    result["units"] = sum(p.numel() for p in drawn.permutations.values())
    for noise in NOISES:
        rows = [recover(spec, state, noise, seed) for seed in range(DRAWS)]
        result["rows"][str(noise)] = {key: sum(row[key] for row in rows) / DRAWS for key in rows[0]}
        print(name, noise, json.dumps(result["rows"][str(noise)]), flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(target, result)
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Planted permutations of trained networks",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, torch {torch.__version__}, CPU. {DRAWS} random "
        "elements of the derived group each; weight matching from its default start. Noise in parts of every "
        "tensor's deviation. Recovered: elements found exactly, and the share of units that went where they "
        "should. Left: ‖a − g·b‖² after, as a part of what it was before; above planted: the part of it that "
        "the planted element itself would not leave.",
        "",
        "| network | groups, units | noise | elements recovered | units | left | above planted | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for noise, row in result["rows"].items():
            lines.append(
                f"| {result['title']} | {result['groups']}, {result['units']} | {noise} "
                f"| {round(DRAWS * row['exact'])} of {DRAWS} | {row['units']:.2%} | {row['left']:.2g} "
                f"| {row['excess']:.1g} | {row['cpu_s']:.2f} |"
            )
    return "\n".join([*lines, ""])


def main() -> None:
    """Plant, match, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/merging"))
    parser.add_argument("--only", action="append", choices=CASES, help="these networks; no table is written")
    options = parser.parse_args()
    results = [measure(name, options.work) for name in options.only or CASES]
    if not options.only:
        RESULTS.write_text(table(results), encoding="utf-8")
        print(RESULTS)


if __name__ == "__main__":
    main()
