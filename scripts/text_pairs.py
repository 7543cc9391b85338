"""What two language models trained apart are worth half-way between them, and how high the loss rises."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from character_transformer import NAME, RECIPE, encode, read_text, train_text
from torch import Tensor, nn

from metanet import spec_of
from metanet.axis import Perm
from metanet.freedoms.folding import fold_gains
from metanet.matching.orthogonal import orthogonal_matching
from metanet.matching.singular import singular_vector_alignment
from metanet.matching.weights import weight_matching
from metanet.merging.paths import barrier_path, interpolate
from metanet_zoo.atomic import write_json_atomic

State = dict[str, Tensor]
POINTS = 25
WINDOWS = 100
"""Held-out windows over which the loss is measured: the first ones."""
ROWS = (
    "naive",
    "weights, residual stream fixed",
    "weights, residual stream permuted",
    "naive, gains folded",
    "weights, residual stream permuted, gains folded",
    "residual stream turned, gains folded",
)


class TextPair:
    """Two models, as they are and with the gains of their norms folded into what reads them."""

    def __init__(self, seeds: tuple[int, int], work: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folders = [train_text(seed, work) for seed in seeds]
        models = [AutoModelForCausalLM.from_pretrained(str(folder)).eval() for folder in folders]
        tokens = encode(AutoTokenizer.from_pretrained(str(folders[0])), read_text()[1])
        self.windows = tokens[: WINDOWS * RECIPE.context].reshape(WINDOWS, RECIPE.context)
        self.plain: nn.Module = models[0]
        self.spec = spec_of(self.plain, input_ids=self.windows[:1])
        self.folded: nn.Module = fold_gains(self.plain, self.spec)
        self.folded_spec = spec_of(self.folded, input_ids=self.windows[:1])
        self.states = [_copy(model) for model in models]
        self.folded_states = [_copy(fold_gains(model, self.spec)) for model in models]
        axis = self.spec.axes["model.embed_tokens.weight"][1]
        assert isinstance(axis, Perm)
        self.stream = axis.group

    def loss(self, model: nn.Module, state: Mapping[str, Tensor]) -> float:
        """Return nats per character on the held-out windows."""
        model.load_state_dict(dict(state))
        total = 0.0
        with torch.no_grad():
            for part in self.windows.split(50):
                logits = model(input_ids=part).logits[:, :-1]
                total += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
        return total / (WINDOWS * (RECIPE.context - 1))

    def measure(self, label: str) -> dict[str, Any]:
        """Align the second model as a row says and measure the path."""
        folded = label.endswith("gains folded")
        model, spec = (self.folded, self.folded_spec) if folded else (self.plain, self.spec)
        a, b = self.folded_states if folded else self.states
        begun = time.process_time()
        facts = {"gain": 0.0}
        if label.startswith("residual stream turned"):
            found = orthogonal_matching(spec, a, b)
            facts, b = {"gain": found.gain}, found.element @ b
        elif label.startswith("weights"):
            matched = weight_matching(spec, a, b, fixed=[self.stream] if "fixed" in label else [])
            b = matched.element @ b
            facts = {"gain": matched.gain}
        facts["cpu_s"] = time.process_time() - begun
        path = barrier_path(a, b, lambda state: {"loss": self.loss(model, state)}, points=POINTS)
        middle = self.loss(model, interpolate(a, b, 0.5))
        facts["singular"] = fmean(singular_vector_alignment(spec, a, b).values())
        return {
            **facts,
            "midpoint": middle,
            "barrier": path.barrier,
            "losses": list(path.metrics["loss"]),
        }


def _copy(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def text_pair(seeds: tuple[int, int], work: Path) -> dict[str, Any]:
    """Measure what has not been measured of one pair, and return all."""
    target = work / NAME / f"pair-{seeds[0]}-{seeds[1]}.json"
    result: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {"seeds": list(seeds)}
    rows = result.setdefault("rows", {})
    if missing := [label for label in ROWS if label not in rows]:
        pair = TextPair(seeds, work)
        result["ends"] = [pair.loss(pair.plain, state) for state in pair.states]
        for label in missing:
            rows[label] = pair.measure(label)
            write_json_atomic(target, result)
            shown = {k: v for k, v in rows[label].items() if k != "losses"}
            print(NAME, seeds, label, json.dumps(shown), flush=True)
    return result
