"""One job per output tensor: its inputs, its parameters, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metanet.merging.floats import FLOAT_DTYPES
from metanet.merging.method import Method
from metanet.merging.recipe import Recipe, RecipeError, Slice
from metanet.merging.recipe import Source as RecipeSource
from metanet.merging.reference import ModelReference
from metanet.merging.setting import evaluate
from metanet.merging.stretch import Settings, Value
from metanet.merging.tensor import TensorTask
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.checks import check_range, check_shapes
from metanet_zoo.merging.model import MergeModel
from metanet_zoo.merging.sources import Entry, TensorSource

Missing = Literal["refuse", "drop", "keep"]
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a job: a tensor of a model, under the name it has there."""

    model: str
    source: TensorSource
    name: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of the output.

    Args:
        name: its name.
        entry: its dtype and shape.
        inputs: what it is made of; behind the models the base, then importances.
        task: how; None copies the first input's bytes.
        counter: whether it is a counter of batches, of which the largest is taken.
    """

    name: str
    entry: Entry
    inputs: tuple[Input, ...]
    task: TensorTask | None
    counter: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """What a plan depends on beside the recipe: see `metanet_zoo.merging.merge`."""

    seed: int = 0
    missing: Missing = "refuse"
    allow_nonfinite: bool = False
    compat: Literal["mergekit"] | None = None


class JobMaker:
    """Makes jobs of the tensors of a recipe's models.

    Args:
        recipe: the recipe.
        method: its method.
        models: every model it names, opened.
        options: the rest.
        notes: what the user should know is added to it.
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        models: Mapping[ModelReference, MergeModel],
        options: Options,
        notes: list[str],
    ) -> None:
        self.recipe, self.method, self.models, self.options = recipe, method, models, options
        self.notes = notes

    def job(
        self,
        name: str,
        pairs: Sequence[tuple[RecipeSource, str]],
        base: ModelReference | None,
        base_name: str,
        depth: float | None,
        piece: Slice | None,
    ) -> Job | None:
        """Return the job of one tensor, None if it is left out.

        Args:
            name: of the tensor in the output.
            pairs: models beside the base, and the tensor's name there.
            base: the base.
            base_name: the tensor's name there.
            depth: how deep its layer lies, from 0 to 1; None without layers.
            piece: the slice it belongs to.

        Raises:
            RecipeError: a parameter that the method needs is missing or out of range.
            CheckpointError: the tensor is missing in a model, or its shapes or dtypes do not fit.
        """
        wanted = [(source.model, own) for source, own in pairs]
        if base is not None:
            wanted.append((base, base_name))
        inputs: list[Input | None] = [self._input(model, own) for model, own in wanted]
        absent = [str(model) for (model, _), found in zip(wanted, inputs, strict=True) if found is None]
        if absent:
            if self.options.missing == "refuse":
                raise CheckpointError(
                    f"tensor {name!r} is missing in {', '.join(absent)} and present in other models; "
                    "--missing drop leaves such tensors out, --missing keep merges those that have them"
                )
            if self.options.missing == "drop" or (base is not None and inputs[-1] is None):
                self.notes.append(f"left out {name}, which {', '.join(absent)} lack")
                return None
        kept = [(source, found) for (source, _), found in zip(pairs, inputs, strict=False) if found]
        if not kept:
            return None
        present = [found for found in inputs if found is not None]
        check_shapes(name, [(found.model, found.entry) for found in present])
        if self.method.importances:
            present += [self._importance(source, found) for source, found in kept]
        if self.method.prepare is not None:
            present += self._grams(kept)
        return self._make(name, [source for source, _ in kept], present, base is not None, depth, piece)

    def _importance(self, source: RecipeSource, found: Input) -> Input:
        """The importances of one model's tensor; a tensor that is no float has none."""
        if found.entry.dtype not in FLOAT_DTYPES:
            return found
        if source.importance is None:
            raise RecipeError(
                f"{self.method.name} needs importances of {source.model}; name their checkpoint as importance"
            )
        weights = self._input(source.importance, found.name)
        if weights is None:
            raise CheckpointError(f"{source.importance}: no importances of {found.name!r}")
        check_shapes(found.name, [(each.model, each.entry) for each in (found, weights)])
        return weights

    def _grams(self, kept: Sequence[tuple[RecipeSource, Input]]) -> list[Input]:
        """The Gram matrices of a layer's inputs in every model; none for a tensor that has no such."""
        found: list[Input] = []
        lacking: list[str] = []
        for source, own in kept:
            assert source.importance is not None
            entry = self.models[source.importance].source.entries().get(own.name)
            if entry is None:
                lacking.append(str(source.importance))
                continue
            wanted = (own.entry.shape[-1],) * 2 if len(own.entry.shape) == 2 else ()
            if entry.shape != wanted or entry.dtype not in FLOAT_DTYPES:
                raise CheckpointError(
                    f"{source.importance}: {own.name!r} is {entry.dtype} {list(entry.shape)}, expected "
                    f"floats {list(wanted)}: the Gram matrix of what flows into a linear layer"
                )
            opened = self.models[source.importance]
            found.append(Input(str(source.importance), opened.source, own.name, entry))
        if found and lacking:
            raise CheckpointError(f"{', '.join(lacking)}: no Gram matrix of {kept[0][1].name!r}")
        return found

    def _make(
        self,
        name: str,
        sources: Sequence[RecipeSource],
        inputs: Sequence[Input],
        has_base: bool,
        depth: float | None,
        piece: Slice | None,
    ) -> Job:
        leading = inputs[len(sources)] if has_base else inputs[0]
        if any(found.entry.dtype not in FLOAT_DTYPES for found in inputs):
            return self._other(name, inputs, leading)
        dtype = self.recipe.out_dtype or self.recipe.dtype or leading.entry.dtype
        entry = Entry(dtype, leading.entry.shape)
        settings = self._settings(name, sources, depth, piece)
        copies = self.method.name == "passthrough" and settings.each("scale") == (1.0,)
        if (copies and inputs[0].entry.dtype == dtype) or entry.size == 0:
            return Job(name, entry, tuple(inputs), None)
        values = inputs[: len(sources) + has_base]
        _check_scales(values)
        wide = any(found.entry.dtype == "F64" for found in values)
        difference = None
        if self.options.compat == "mergekit" and has_base:
            difference = self.recipe.dtype or leading.entry.dtype
        task = TensorTask(
            tensor=name,
            shape=entry.shape,
            method=self.method,
            settings=settings,
            models=len(sources),
            has_base=has_base,
            seed=self.options.seed,
            dtype=np.float64 if wide else np.float32,
            difference_dtype=difference,
            allow_nonfinite=self.options.allow_nonfinite,
            grams=self.method.prepare is not None and len(inputs) > len(values),
        )
        return Job(name, entry, tuple(inputs), task)

    def _other(self, name: str, inputs: Sequence[Input], leading: Input) -> Job:
        """A tensor that is no float: a counter, or the same in all models."""
        dtypes = sorted({found.entry.dtype for found in inputs})
        if len(dtypes) > 1 or any(dtype.startswith("F8") for dtype in dtypes):
            raise CheckpointError(
                f"tensor {name!r} has dtypes {', '.join(dtypes)}; merging takes {', '.join(FLOAT_DTYPES)}: "
                "convert the model first"
            )
        counter = name.endswith(COUNTER)
        return Job(name, leading.entry, (leading, *(f for f in inputs if f is not leading)), None, counter)

    def _input(self, model: ModelReference, name: str) -> Input | None:
        opened = self.models[model]
        entry = opened.source.entries().get(name)
        if entry is None:
            tied = opened.tied(name)
            if tied is None:
                return None
            name, entry = tied, opened.source.entries()[tied]
        return Input(str(model), opened.source, name, entry)

    def _settings(
        self, name: str, sources: Sequence[RecipeSource], depth: float | None, piece: Slice | None
    ) -> Settings:
        shared_places = [piece.parameters] if piece else []
        shared_places.append(self.recipe.parameters)
        shared: dict[str, Value] = {}
        each: list[dict[str, Value]] = [{} for _ in sources]
        for parameter, described in self.method.parameters.items():
            targets = enumerate(sources) if described.per_model else [(None, None)]
            for i, source in targets:
                places = [source.parameters, *shared_places] if source else shared_places
                value = None
                for place in places:
                    try:
                        value = evaluate(place.get(parameter), name, depth)
                    except ValueError as error:
                        raise RecipeError(f"{parameter} of {name}: {error}") from None
                    if value is not None:
                        break
                if value is None:
                    value = described.default
                if value is None:
                    of = f" of {source.model}" if source else ""
                    raise RecipeError(f"{self.method.name} needs {parameter}{of} for {name}; set it")
                check_range(parameter, value, described.low, described.high)
                (shared if i is None else each[i])[parameter] = value
        return Settings(shared, tuple(each))


def _check_scales(inputs: Sequence[Input]) -> None:
    """Refuse floats of 8 bits that are to be multiplied by scales beside them: they mean nothing alone."""
    for found in inputs:
        if not found.entry.dtype.startswith("F8"):
            continue
        stem = found.name.removesuffix(".weight")
        places = [found.name + ending for ending in ("_scale", "_scale_inv")]
        places += [f"{stem}.{name}" for name in ("scale", "scale_weight", "scale_inv")]
        scales = [name for name in places if name in found.source.entries()]
        if scales:
            raise CheckpointError(
                f"{found.model}: {found.name!r} is {found.entry.dtype} with scales of its own in "
                f"{scales[0]!r}, which a merge would tear apart; write the model with its values multiplied "
                "out (dequantized)"
            )
