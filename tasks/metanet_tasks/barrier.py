"""The barrier between two checkpoints: metrics along the straight path, as they are and aligned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from statistics import fmean
from typing import Any

from torch import Tensor

from metanet.derive import spec_of
from metanet.matching.singular import singular_vector_alignment
from metanet.matching.weights import weight_matching
from metanet.merging.paths import Path, barrier_path
from metanet_tasks.objects import network_of
from metanet_tasks.path_evaluation import (
    Correction,
    ImageEvaluation,
    TextEvaluation,
    image_evaluation,
    text_evaluation,
)
from metanet_zoo.checkpoint import open_checkpoint
from metanet_zoo.matching.align import MIN_GAIN
from metanet_zoo.runnable import float_state, runnable_network


@dataclass(frozen=True)
class BarrierReport:
    """What lies between two checkpoints.

    Args:
        a: the first checkpoint.
        b: the second.
        paths: ``naive``, ``aligned``, ``aligned, reset`` … -> metrics along the path.
        distance: squared distance before and after matching.
        singular: mean alignment of singular vectors before and after matching.
        aligned: whether matching found more than noise.
        notes: what the user should know, one sentence each.
    """

    a: str
    b: str
    paths: Mapping[str, Path]
    distance: tuple[float, float] | None
    singular: tuple[float, float] | None
    aligned: bool | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        paths = {
            name: {
                "barrier": path.barrier,
                "weights": list(path.weights),
                **{metric: list(values) for metric, values in path.metrics.items()},
            }
            for name, path in self.paths.items()
        }
        return {
            "a": self.a,
            "b": self.b,
            "paths": paths,
            "squared_distance": None if self.distance is None else list(self.distance),
            "singular_vector_alignment": None if self.singular is None else list(self.singular),
            "aligned": self.aligned,
            "notes": list(self.notes),
        }


def measure_barrier(
    a: str,
    b: str,
    *,
    data: str | None = None,
    text: File | None = None,
    network: str | None = None,
    activation: str | None = None,
    spec_file: File | None = None,
    split: str = "test",
    limit: int | None = None,
    mean: Sequence[float] = (0.0,),
    deviation: Sequence[float] = (1.0,),
    context: int | None = None,
    points: int = 25,
    align: bool = True,
    corrections: Sequence[Correction] = (),
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> BarrierReport:
    """Measure loss and accuracy (or perplexity) along the path between two checkpoints.

    Args:
        a: the first checkpoint.
        b: the second, of the same architecture.
        data: labelled images (`metanet_zoo.open_images`).
        text: a text file, for causal language models with a tokenizer beside them.
        network: ``package.module:factory`` of the network; None rebuilds it from the checkpoint.
        activation: of a plain sequential network.
        spec_file: take this spec instead of finding one.
        split: of the data.
        limit: most images, or windows of text.
        mean: subtracted from pixel values in 0…1.
        deviation: what they are divided by.
        context: tokens per window of text; None takes 256, or the most that the model takes.
        points: number of points on the path.
        align: measure the path to the aligned b too.
        corrections: of activations' statistics, each measured along the aligned path.
        seed: of matching.
        progress: told of paths and points that are done.

    Raises:
        ValueError: no data, a network that cannot be run, or checkpoints that do not fit.
    """
    if (data is None) == (text is None):
        raise ValueError(
            "a loss needs data: give --data (labelled images) or --text (a text file), one of them"
        )
    if corrections and data is None:
        raise ValueError("corrections of activations' statistics need images; leave them out with --text")
    states = [float_state(open_checkpoint(path)) for path in (a, b)]
    runnable = runnable_network(a, network_of(network), activation=activation, spec_file=spec_file)
    model, example, spec, folder = runnable.model, runnable.example, runnable.spec, runnable.folder
    evaluation: ImageEvaluation | TextEvaluation
    if data is not None:
        evaluation = image_evaluation(
            model, example, data, split=split, limit=limit, mean=mean, deviation=deviation
        )
        if spec is None:
            spec = spec_of(model, evaluation.x[:1])
    else:
        assert text is not None
        if folder is None:
            raise ValueError(f"{a} is no folder with a configuration and a tokenizer, which --text needs")
        evaluation = text_evaluation(folder, model, text, context=context, limit=limit or 16)
    assert spec is not None
    spec.check({name: tuple(tensor.shape) for name, tensor in states[1].items()})

    def path(name: str, end: dict[str, Tensor], kind: Correction | None = None) -> Path:
        done = iter(range(points))

        def measure(state: dict[str, Tensor]) -> dict[str, float]:
            number = next(done)
            if kind is not None and 0 < number < points - 1:
                assert isinstance(evaluation, ImageEvaluation)
                state = evaluation.corrected(kind, state, states[0], end, number / (points - 1))
            return evaluation.measure(state)

        return barrier_path(
            states[0],
            end,
            measure,
            points=points,
            progress=None if progress is None else lambda count: progress(name, count, points),
        )

    paths = {"naive": path("naive", states[1])}
    if not align:
        return BarrierReport(a, b, paths, None, None, None)
    found = weight_matching(spec, states[0], states[1], seed=seed)
    moved = found.element @ states[1]
    useful = found.gain > MIN_GAIN
    notes = [] if useful else [f"matching lowers the squared distance by {found.gain:.2%} only"]
    paths["aligned"] = path("aligned", moved)
    for kind in corrections:
        paths[f"aligned, {kind}"] = path(f"aligned, {kind}", moved, kind)
    singular = [fmean(singular_vector_alignment(spec, states[0], end).values()) for end in (states[1], moved)]
    return BarrierReport(
        a, b, paths, (found.before, found.after), (singular[0], singular[1]), useful, tuple(notes)
    )
