"""What two image classifiers trained apart are worth half-way between them, and how high the loss rises."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
import torch.nn.functional as F
from merging_training import Images, build, convolutional, load, trained
from torch import Tensor

from metanet import spec_of
from metanet.matching.activations import activation_matching
from metanet.matching.singular import singular_vector_alignment
from metanet.matching.starts import Start
from metanet.matching.weights import Matching, weight_matching
from metanet.merging.paths import barrier_path, interpolate
from metanet.merging.repair import repair, reset_batch_norm
from metanet_zoo.atomic import write_json_atomic

State = dict[str, Tensor]
POINTS = 25
CALIBRATION = {"cifar10": 400}
"""Training images that corrections and activation matching look at: the last ones; by default 2,000."""
TRAINING = {"mnist": 20000, "fashion-mnist": 20000, "cifar10": 400}
"""Training images over which the loss along the path is measured: the first ones; by default 2,000."""
MANY: list[Start] = ["greedy", "sorted", "identity", *(["random"] * 20)]  # type: ignore[list-item]


@dataclass(frozen=True)
class Row:
    """One way to merge a pair.

    Args:
        matching: how the second network is aligned.
        correction: of the activations' statistics, at every point between the ends.
        curve: measure the whole path, not only its middle.
    """

    matching: Literal["naive", "weights", "23 starts", "activations"]
    correction: Literal["", "BN reset", "REPAIR", "RESCALE"] = ""
    curve: bool = True

    @property
    def label(self) -> str:
        """As the table calls it."""
        return f"{self.matching}, {self.correction}" if self.correction else self.matching


PLAIN = (
    Row("naive"),
    Row("weights"),
    Row("weights", "REPAIR", curve=False),
    Row("weights", "RESCALE", curve=False),
)
ROWS = {
    "mnist": PLAIN,
    "fashion-mnist": PLAIN,
    "cifar10-cnn": (
        Row("naive"),
        Row("weights"),
        Row("weights", "REPAIR", curve=False),
        Row("activations"),
        Row("activations", "REPAIR", curve=False),
    ),
    "cifar10": (
        Row("naive"),
        Row("naive", "BN reset"),
        Row("weights"),
        Row("weights", "BN reset"),
        Row("weights", "REPAIR", curve=False),
        Row("weights", "RESCALE", curve=False),
        Row("23 starts", "BN reset", curve=False),
        Row("activations", "BN reset"),
        Row("activations", "REPAIR", curve=False),
    ),
}


class Evaluator:
    """Loss and accuracy of state dicts of one architecture; convolutions run in bfloat16."""

    def __init__(self, dataset: str) -> None:
        self.model = build(dataset).eval()
        self.convolutional = convolutional(dataset)
        whole, count = load(dataset, "train"), TRAINING.get(dataset, 2000)
        self.train = Images(self._laid(whole.x[:count].clone()), whole.y[:count])
        self.calibration = self._laid(whole.x[-CALIBRATION.get(dataset, 2000) :].clone())
        test = load(dataset, "test")
        self.test = Images(self._laid(test.x), test.y)
        if self.convolutional:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _laid(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.convolutional else x

    def measure(self, state: Mapping[str, Tensor], images: Images) -> tuple[float, float]:
        """Return loss and accuracy."""
        self.model.load_state_dict(dict(state))
        self.model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.convolutional):
            logits = torch.cat([self.model(part).float() for part in images.x.split(250)])
        right = (logits.argmax(1) == images.y).float().mean()
        return float(F.cross_entropy(logits, images.y)), float(right)

    def corrected(self, correction: str, merged: State, a: State, b: State, weight: float) -> State:
        """Return a merge whose activations' statistics are corrected."""
        if not correction:
            return merged
        # Weights change within the context: none may be kept in bfloat16 from before.
        with torch.autocast("cpu", torch.bfloat16, enabled=self.convolutional, cache_enabled=False):
            if correction == "BN reset":
                self.model.load_state_dict(merged)
                reset_batch_norm(self.model, self.calibration.split(500))
                return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            kind: Literal["repair", "rescale"] = "repair" if correction == "REPAIR" else "rescale"
            return repair(self.model, merged, a, b, self.calibration, weight=weight, correction=kind)


class ImagePair:
    """Two networks of one data set, and their matchings, each found when it is asked for."""

    def __init__(self, evaluator: Evaluator, dataset: str, seeds: tuple[int, int], work: Path) -> None:
        self.evaluator = evaluator
        self.a, self.b = (trained(dataset, seed, work) for seed in seeds)
        self.seconds: dict[str, float] = {}

    @cached_property
    def spec(self) -> Any:
        """Spec of both."""
        return spec_of(self.evaluator.model, self.evaluator.test.x[:1])

    def _timed(self, name: str, find: Callable[[], Matching]) -> Matching:
        begun = time.process_time()
        found = find()
        self.seconds[name] = time.process_time() - begun
        return found

    @cached_property
    def weights(self) -> Matching:
        """Weight matching as it is by default."""
        return self._timed("weights", lambda: weight_matching(self.spec, self.a, self.b))

    @cached_property
    def starts(self) -> Matching:
        """Weight matching from many starts, of which the nearest end is kept."""
        return self._timed("23 starts", lambda: weight_matching(self.spec, self.a, self.b, starts=MANY))

    @cached_property
    def activations(self) -> Matching:
        """Activation matching on the calibration images."""
        model, x = self.evaluator.model, self.evaluator.calibration
        return self._timed("activations", lambda: activation_matching(self.spec, model, self.a, self.b, x))

    def end(self, matching: str) -> State:
        """Return the second network, aligned."""
        if matching == "naive":
            return self.b
        found = {"weights": "weights", "23 starts": "starts", "activations": "activations"}[matching]
        element = getattr(self, found).element
        return element @ self.b  # type: ignore[no-any-return]

    def facts(self, matching: str) -> dict[str, float]:
        """Return what a matching costs and brings: CPU seconds, ‖a − b‖² removed, singular vectors."""
        end, seconds = self.end(matching), self.seconds.get(matching, 0.0)
        names = [name for name in self.a if not name.endswith(("running_mean", "running_var", "tracked"))]
        before, after = (
            sum(float((self.a[k] - other[k]).double().square().sum()) for k in names)
            for other in (self.b, end)
        )
        singular = fmean(singular_vector_alignment(self.spec, self.a, end).values())
        return {"cpu_s": seconds, "gain": 1 - after / before, "singular": singular}

    def measure(self, row: Row) -> dict[str, Any]:
        """Return accuracy at the midpoint, and the losses along the path."""
        a, end, evaluator = self.a, self.end(row.matching), self.evaluator
        middle = evaluator.corrected(row.correction, interpolate(a, end, 0.5), a, end, 0.5)
        result: dict[str, Any] = {"accuracy": evaluator.measure(middle, evaluator.test)[1]}
        if row.curve:
            weights = iter(i / (POINTS - 1) for i in range(POINTS))

            def loss(state: State) -> dict[str, float]:
                weight = next(weights)
                if 0 < weight < 1:
                    state = evaluator.corrected(row.correction, state, a, end, weight)
                return {"loss": evaluator.measure(state, evaluator.train)[0]}

            path = barrier_path(a, end, loss, points=POINTS)
            result |= {"barrier": path.barrier, "losses": list(path.metrics["loss"])}
        return result


def image_pair(dataset: str, seeds: tuple[int, int], work: Path, evaluator: Evaluator) -> dict[str, Any]:
    """Measure what has not been measured of one pair, and return all."""
    target = work / dataset / f"pair-{seeds[0]}-{seeds[1]}.json"
    result: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {"seeds": list(seeds)}
    rows, matchings = result.setdefault("rows", {}), result.setdefault("matchings", {})
    pair = ImagePair(evaluator, dataset, seeds, work)
    if "ends" not in result:
        result["ends"] = [evaluator.measure(state, evaluator.test)[1] for state in (pair.a, pair.b)]
    for row in ROWS[dataset]:
        if row.label in rows:
            continue
        rows[row.label] = pair.measure(row)
        if row.matching not in matchings:
            matchings[row.matching] = pair.facts(row.matching)
        write_json_atomic(target, result)
        shown = {k: v for k, v in rows[row.label].items() if k != "losses"}
        print(dataset, seeds, row.label, json.dumps(shown), flush=True)
    return result
