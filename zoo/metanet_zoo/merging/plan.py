"""From a recipe and its models to one job per output tensor; everything that can be wrong is found here."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from metanet.merging.layers import Layers, find_layers, layer_depth
from metanet.merging.method import Method
from metanet.merging.recipe import Recipe, RecipeError, Slice, nearest
from metanet.merging.recipe import Source as RecipeSource
from metanet.merging.reference import ModelReference
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.checks import check_parameters, find_method
from metanet_zoo.merging.job import Job, JobMaker, Options
from metanet_zoo.merging.model import MergeModel
from metanet_zoo.merging.modules import module_prefixes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a merge will do.

    Args:
        jobs: one per output tensor, in the order of writing.
        layers: number of layers of the output, None if slices did not change it.
        notes: what the user should know, one sentence each.
        parts: the same number for parts of a multi-part model whose layers are spelled out.
    """

    jobs: tuple[Job, ...]
    layers: int | None
    notes: tuple[str, ...]
    parts: Mapping[str, int] = field(default_factory=dict)


def make_plan(recipe: Recipe, models: Mapping[ModelReference, MergeModel], options: Options) -> Plan:
    """Plan a merge.

    Args:
        recipe: the recipe.
        models: every model it names, opened.
        options: the rest.

    Raises:
        RecipeError: the recipe does not fit its method or models.
        CheckpointError: tensors are missing or differ in shape.
    """
    method = find_method(recipe.method)
    check_parameters(method, recipe)
    notes: list[str] = []
    parts: dict[str, int] = {}
    if recipe.modules:
        jobs = tuple(_module_jobs(recipe, method, models, options, notes))
        parts = {name: _count(part) for name, part in recipe.modules.items() if part.slices}
    else:
        jobs = tuple(_Planner(JobMaker(recipe, method, models, options, notes)).jobs())
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
    return Plan(jobs, _count(recipe) or None, tuple(notes), parts)


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
        check_parameters(method, part)
        own = {name for name in names if name.startswith(module_prefixes(module))}
        if not own:
            tops = {".".join(name.split(".")[:depth]) for name in names for depth in (1, 2)}
            raise RecipeError(f"modules: no tensor belongs to {module!r}; {nearest(module, tops)}")
        left -= own
        inner = dataclasses.replace(part, dtype=recipe.dtype, out_dtype=recipe.out_dtype)
        yield from _Planner(JobMaker(inner, method, models, options, notes), own).jobs()
    if left:
        raise RecipeError(
            f"modules: {len(left)} tensors belong to none of {', '.join(recipe.modules)}, such as "
            f"{min(left)!r}; name their part too"
        )


def _length(piece: Slice) -> int:
    layers = piece.sources[0].layers
    return layers[1] - layers[0] if layers else 0


def _count(recipe: Recipe) -> int:
    return sum(_length(piece) for piece in recipe.slices)


class _Planner:
    """Says which tensors of the models make which tensor of the output.

    Args:
        maker: makes the jobs.
        only: names of the tensors of one part of a multi-part model; None for all.
    """

    def __init__(self, maker: JobMaker, only: Collection[str] | None = None) -> None:
        self.maker, self.only = maker, only
        self.recipe, self.method, self.models = maker.recipe, maker.method, maker.models

    def jobs(self) -> Iterator[Job]:
        """Jobs for the recipe's models or slices."""
        return self.from_slices() if self.recipe.slices else self.from_models()

    def from_models(self) -> Iterator[Job]:
        """Jobs for models merged tensor by tensor of the same name."""
        base = self.recipe.base if self.method.base != "unused" else None
        sources = [source for source in self.recipe.models if source.model != base]
        self._check_count(len(sources), base)
        first = base or sources[0].model
        names = dict.fromkeys(self._names(first))
        for source in sources:
            names.update(dict.fromkeys(self._names(source.model)))
        layers = self.models[first].layers if self.only is None else find_layers(names)
        for name in names:
            depth = layers.depth(name) if layers else None
            job = self.maker.job(name, [(source, name) for source in sources], base, name, depth, None)
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

    def _names(self, model: ModelReference) -> Iterable[str]:
        """Names of a model's tensors, of the part's alone if there is one."""
        names = self.models[model].source.entries()
        return names if self.only is None else [name for name in names if name in self.only]

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
        for name in self._names(first.model):
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
            job = self.maker.job(out, inputs, base, base_name, depth, piece)
            if job is not None:
                yield job

    def _outside(self, piece: Slice, *, early: bool) -> Iterator[Job]:
        """Jobs for the tensors before the first layer, or behind the last."""
        base = self._base(piece)
        sources = [source for source in piece.sources if source.model != base]
        layers = self._layers(sources[0].model)
        for name in self._names(sources[0].model):
            if layers.index(name) is None and layers.is_early(name) == early:
                job = self.maker.job(name, [(source, name) for source in sources], base, name, 0.0, piece)
                if job is not None:
                    yield job

    def _base(self, piece: Slice) -> ModelReference | None:
        return (piece.base or self.recipe.base) if self.method.base != "unused" else None

    def _layers(self, model: ModelReference) -> Layers:
        layers = self.models[model].layers if self.only is None else find_layers(self._names(model))
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


def _swap(name: str, old: Layers, new: Layers) -> str:
    return new.prefix + name[len(old.prefix) :]
