"""Language models to merge: small Llamas over the characters of tiny Shakespeare, one per seed, trained here.

    python scripts/character_transformer.py --seed 0 --out runs/merging

A model is a folder that `transformers` reads, tokenizer included; a finished one is not trained again.
Two layers of width 96, four query heads over two key-value heads, rotary positions, RMSNorm, a gated MLP and
a head of its own. The first nine tenths of the text train, the last tenth is held out (`valid.txt`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DATA = Path(os.environ.get("METANET_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
NAME = "tinyshakespeare"


@dataclass(frozen=True)
class TextRecipe:
    """How a language model is trained."""

    steps: int = 600
    batch_size: int = 32
    context: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    optimizer: str = "adamw"


RECIPE = TextRecipe()


def read_text(folder: Path = DATA) -> tuple[str, str]:
    """Return the text that trains and the text that is held out."""
    text = (folder / NAME / "input.txt").read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def character_tokenizer(text: str) -> Any:
    """Return a tokenizer of `transformers` with a token for every character of a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: i for i, character in enumerate(["<unk>", *sorted(set(text))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def llama(vocabulary: int, context: int = RECIPE.context) -> Any:
    """Return an untrained model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=vocabulary,
            max_position_embeddings=context,
            tie_word_embeddings=False,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def encode(tokenizer: Any, text: str) -> Tensor:
    """Return the tokens of a text, `[tokens]`."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"])


def train_text(seed: int, out: Path, recipe: TextRecipe = RECIPE) -> Path:
    """Train the model of one seed, unless it is there, and return its folder."""
    target = out / NAME / str(seed)
    if (target / "training.json").is_file():
        return target
    text, held_out = read_text()
    tokenizer = character_tokenizer(text + held_out)
    tokens = encode(tokenizer, text)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = llama(len(tokenizer), recipe.context)
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, step / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
        ),
    )
    begun = time.process_time()
    window = torch.arange(recipe.context + 1)
    for step in range(recipe.steps):
        starts = torch.randint(len(tokens) - recipe.context, (recipe.batch_size, 1), generator=generator)
        batch = tokens[starts + window]
        logits = model(input_ids=batch[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            seconds = time.process_time() - begun
            print(
                f"{NAME} seed {seed} step {step + 1}: loss {float(loss.detach()):.3f}, {seconds:.0f} CPU s",
                flush=True,
            )
    target.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target.parent / "valid.txt").write_text(held_out, encoding="utf-8")
    facts = {"recipe": asdict(recipe), "cpu_s": round(time.process_time() - begun), "seed": seed}
    (target / "training.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    return target


def main() -> None:
    """Train the model of one seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    parser.add_argument("--out", type=Path, default=Path("runs/merging"))
    options = parser.parse_args()
    train_text(options.seed, options.out, TextRecipe(steps=options.steps))


if __name__ == "__main__":
    main()
