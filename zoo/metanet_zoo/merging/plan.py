"""From a recipe and its models to one job per output tensor; everything that can be wrong is found here."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metanet.merging.floats import FLOAT_DTYPES
from metanet.merging.layers import Layers, find_layers, layer_depth
from metanet.merging.method import Method
from metanet.merging.recipe import Recipe, RecipeError, Slice, nearest
from metanet.merging.recipe import Source as RecipeSource
from metanet.merging.reference import ModelReference
from metanet.merging.setting import evaluate
from metanet.merging.stretch import Settings, Value
from metanet.merging.tensor import TensorTask
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.checks import check_parameters, check_range, check_shapes, find_method
from metanet_zoo.merging.model import MergeModel
from metanet_zoo.merging.modules import module_prefixes
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What a merge will do.

    Args:
        jobs: one per output tensor, in the order of writing.
        layers: number of layers of the output, None if slices did not change it.
        notes: what the user should know, one sentence each.
    """

    jobs: tuple[Job, ...]
    layers: int | None
    notes: tuple[str, ...]


def make_plan(recipe: Recipe, models: Mapping[ModelReference, MergeModel], options: Options) -> Plan:
    """Plan a merge.

    Args:
        recipe: the recipe; parts of a multi-part model have been resolved to one recipe each.
        models: every model it names, opened.
        options: the rest.

    Raises:
        RecipeError: the recipe does not fit its method or models.
        CheckpointError: tensors are missing or differ in shape.
    """
    method = find_method(recipe.method)
    check_parameters(method, recipe)
    notes: list[str] = []
    if recipe.modules:
        jobs = tuple(_module_jobs(recipe, method, models, options, notes))
    else:
        planner = _Planner(recipe, method, models, options, notes)
        jobs = tuple(planner.from_slices() if recipe.slices else planner.from_models())
    if not jobs:
        raise CheckpointError("the models have no tensor in common; nothing to merge")
    if method.prepare is not None:
        solved = sum(job.task is not None and job.task.grams for job in jobs)
        if not solved:
            raise CheckpointError(
                f"no tensor of the models has a Gram matrix, which {method.name} needs; the names in the "
                "files of Gram matrices must be those of the models' tensors"
            )
        notes.append(f"{solved} tensors merged by the Gram matrices of their inputs, the others averaged")
    layers = sum(_length(piece) for piece in recipe.slices) or None
    return Plan(jobs, layers, tuple(notes))


def _module_jobs(
    recipe: Recipe,
    method: Method,
    models: Mapping[ModelReference, MergeModel],
    options: Options,
    notes: list[str],
) -> Iterator[Job]:
    """Jobs for a model of several parts, each with a recipe of its own."""
    names = {name for model in models.values() for name in model.source.entries()}
    left = set(names)
    for module, part in recipe.modules.items():
        if part.slices:
            raise RecipeError(f"modules.{module}: slices of a part are not supported; list its models")
        check_parameters(method, part)
        own = {name for name in names if name.startswith(module_prefixes(module))}
        if not own:
            tops = {".".join(name.split(".")[:depth]) for name in names for depth in (1, 2)}
            raise RecipeError(f"modules: no tensor belongs to {module!r}; {nearest(module, tops)}")
        left -= own
        inner = dataclasses.replace(part, dtype=recipe.dtype, out_dtype=recipe.out_dtype)
        yield from _Planner(inner, method, models, options, notes).from_models(own)
    if left:
        raise RecipeError(
            f"modules: {len(left)} tensors belong to none of {', '.join(recipe.modules)}, such as "
            f"{min(left)!r}; name their part too"
        )


def _length(piece: Slice) -> int:
    layers = piece.sources[0].layers
    return layers[1] - layers[0] if layers else 0


class _Planner:
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

    def from_models(self, only: Collection[str] | None = None) -> Iterator[Job]:
        """Jobs for models merged tensor by tensor of the same name, or for some of these names."""
        base = self.recipe.base if self.method.base != "unused" else None
        sources = [source for source in self.recipe.models if source.model != base]
        self._check_count(len(sources), base)
        first = self.models[base or sources[0].model]
        names = dict.fromkeys(first.source.entries())
        for source in sources:
            names.update(dict.fromkeys(self.models[source.model].source.entries()))
        layers = first.layers
        if only is not None:
            names = {name: None for name in names if name in only}
            layers = find_layers(names)
        for name in names:
            depth = layers.depth(name) if layers else None
            job = self._job(name, [(source, name) for source in sources], base, name, depth, None)
            if job is not None:
                yield job

    def from_slices(self) -> Iterator[Job]:
        """Jobs for an output whose layers are spelled out."""
        pieces = self.recipe.slices
        offset = 0
        first_layers = self._layers(pieces[0].sources[0].model)
        before, after = self._outside(pieces[0], early=True), self._outside(pieces[-1], early=False)
        yield from before
        for piece in pieces:
            base = self._base(piece)
            sources = [source for source in piece.sources if source.model != base]
            self._check_count(len(sources), base)
            length = _length(piece)
            for step in range(length):
                yield from self._layer(piece, sources, base, step, length, offset + step, first_layers)
            offset += length
        yield from after

    def _layer(
        self,
        piece: Slice,
        sources: Sequence[RecipeSource],
        base: ModelReference | None,
        step: int,
        length: int,
        target: int,
        output: Layers,
    ) -> Iterator[Job]:
        first = sources[0]
        layers = self._layers(first.model)
        assert first.layers is not None
        depth = layer_depth(step, length)
        ranges = {source.model: source.layers for source in piece.sources}
        for name in self.models[first.model].source.entries():
            if layers.index(name) != first.layers[0] + step:
                continue
            inputs = []
            for source in sources:
                assert source.layers is not None
                own = self._layers(source.model)
                inputs.append((source, own.rename(_swap(name, layers, own), source.layers[0] + step)))
            base_name = name
            if base is not None:
                own = self._layers(base)
                start = (ranges.get(base) or first.layers)[0]
                base_name = own.rename(_swap(name, layers, own), start + step)
            out = output.rename(_swap(name, layers, output), target)
            job = self._job(out, inputs, base, base_name, depth, piece)
            if job is not None:
                yield job

    def _outside(self, piece: Slice, *, early: bool) -> Iterator[Job]:
        """Jobs for the tensors before the first layer, or behind the last."""
        base = self._base(piece)
        sources = [source for source in piece.sources if source.model != base]
        layers = self._layers(sources[0].model)
        for name in self.models[sources[0].model].source.entries():
            if layers.index(name) is None and layers.is_early(name) == early:
                job = self._job(name, [(source, name) for source in sources], base, name, 0.0, piece)
                if job is not None:
                    yield job

    def _base(self, piece: Slice) -> ModelReference | None:
        return (piece.base or self.recipe.base) if self.method.base != "unused" else None

    def _layers(self, model: ModelReference) -> Layers:
        layers = self.models[model].layers
        if layers is None:
            raise RecipeError(
                f"{model}: no numbered layers were found in the names of its tensors, which slices need; "
                "list it under models"
            )
        for piece in self.recipe.slices:
            for source in piece.sources:
                if source.model == model and source.layers and source.layers[1] > layers.count:
                    raise RecipeError(
                        f"{model}: layer_range {list(source.layers)} reaches beyond its {layers.count} layers"
                    )
        return layers

    def _check_count(self, count: int, base: ModelReference | None) -> None:
        low, high = self.method.models
        if self.method.base == "required" and base is None:
            raise RecipeError(f"{self.method.name} needs a base_model; name one")
        if count < low or (high is not None and count > high):
            expected = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
            beside = " beside the base" if base is not None else ""
            raise RecipeError(f"{self.method.name} merges {expected} models{beside}; found {count}")

    def _job(
        self,
        name: str,
        pairs: Sequence[tuple[RecipeSource, str]],
        base: ModelReference | None,
        base_name: str,
        depth: float | None,
        piece: Slice | None,
    ) -> Job | None:
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


def _swap(name: str, old: Layers, new: Layers) -> str:
    return new.prefix + name[len(old.prefix) :]
