"""Merging checkpoints: from a recipe to a folder or file that works."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from metanet.merging.recipe import Recipe, RecipeError, load_recipe, parse_recipe
from metanet.merging.reference import ModelReference
from metanet_zoo.merging.card import Provenance, file_hash, model_card, versions
from metanet_zoo.merging.checks import find_method
from metanet_zoo.merging.companions import (
    OTHER_FILES,
    chat_template,
    config_text,
    copied_files,
    set_chat_template,
)
from metanet_zoo.merging.engine import run_jobs
from metanet_zoo.merging.estimate import Estimate, estimate_merge, fitting_threads
from metanet_zoo.merging.grams import with_grams
from metanet_zoo.merging.job import Missing, Options
from metanet_zoo.merging.lora import add_adapter
from metanet_zoo.merging.model import MergeModel
from metanet_zoo.merging.plan import Plan, make_plan
from metanet_zoo.merging.push import Push, check_push, push_folder
from metanet_zoo.merging.report import MergeReport
from metanet_zoo.merging.shards import Layout, lay_out
from metanet_zoo.merging.sources import open_model
from metanet_zoo.merging.tokens import speak_alike
from metanet_zoo.merging.workspace import Workspace
from metanet_zoo.safetensors_header import read_header

MAX_SHARD_SIZE = 5_000_000_000
METADATA_KEY = "metanet_merge"
"""Under which every file of an output has the recipe and the versions, as JSON."""
Progress = Callable[[str, int, int], None]
"""Called with a tensor's name, the bytes done so far and the bytes in all."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    recipe: Recipe
    models: Mapping[ModelReference, MergeModel]
    plan: Plan
    layout: Layout
    estimate: Estimate
    companions: Mapping[str, str | bytes]
    fingerprint: str
    notes: tuple[str, ...] = field(default=())


def merge_checkpoints(
    recipe: Recipe | str | os.PathLike[str] | Mapping[str, object],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    threads: int | None = None,
    max_memory: int | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    missing: Missing = "refuse",
    allow_nonfinite: bool = False,
    compat: Literal["mergekit"] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    hash_inputs: bool = False,
    card: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    push: Push | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Merge checkpoints, streaming: memory does not grow with the models.

    The output appears whole or not at all. Its bytes depend on the recipe, the inputs and the seed, and
    neither on the number of threads, the size of shards, nor on being interrupted and resumed.

    Args:
        recipe: a recipe, its YAML file, or the mapping that such a file holds.
        out: a folder that is to appear, or a file ending in ``.safetensors``.
        seed: of random masks.
        threads: that read, compute and write; None takes up to four.
        max_memory: bytes of anonymous memory to stay below; fewer threads are taken if need be.
        max_shard_size: bytes of tensors in a file of the output.
        missing: what to do with tensors that some models lack: refuse, drop them, or keep those there are.
        allow_nonfinite: let NaN and infinities pass in inputs and output.
        compat: ``"mergekit"`` rounds inputs and differences to the recipe's dtype as that tool does, instead
            of computing in float32 throughout.
        resume: go on with what an interrupted merge left.
        overwrite: replace an existing output once the new one is complete.
        dry_run: plan, check and estimate; write nothing.
        hash_inputs: put the SHA-256 of every input file on the model card.
        card: write a model card (README.md) and the recipe beside the weights.
        cache_dir: the hub client's cache, if not its default.
        offline: True asks the hub's cache alone.
        push: upload the output once it is complete.
        progress: told of every tensor done.

    Returns:
        what was done.

    Raises:
        ValueError: a recipe or models that do not fit (`RecipeError`, `CheckpointError`).
        OSError: the output cannot be written; what was written stays for ``resume``.
    """
    began = time.monotonic()
    target = Path(out).expanduser()
    if isinstance(recipe, str | os.PathLike):
        recipe = load_recipe(Path(recipe))
    elif isinstance(recipe, Mapping):
        recipe = parse_recipe(recipe, recipe_text(recipe))
    _check_target(target, overwrite)
    if push is not None:
        check_push(push, target, offline=bool(offline))
    if find_method(recipe.method).prepare is not None:
        recipe = with_grams(recipe)
    cache = Path(cache_dir) if cache_dir is not None else None
    models = _open_models(recipe, cache, offline)
    try:
        options = Options(seed, missing, allow_nonfinite, compat)
        spoken = speak_alike(recipe, models)
        models, notes, digest = _align(recipe, dict(spoken.models), seed, dry_run=dry_run)
        prepared = _prepare(
            recipe,
            models,
            target,
            options,
            max_shard_size,
            threads,
            max_memory,
            sample=dry_run,
            notes=(*spoken.notes, *notes),
            alignment=digest,
            tokenizer=spoken.files,
        )
        report = _report(prepared, target, dry=dry_run)
        companions = dict(prepared.companions)
        if card and target.suffix != ".safetensors":
            companions |= _card(prepared, target, hash_inputs and not dry_run)
        if dry_run:
            return report if push is None else _told(report, push, companions)
        resumed, strange = _write(
            prepared, target, companions, options, resume=resume, overwrite=overwrite, progress=progress
        )
    finally:
        for model in models.values():
            model.source.close()
    report = replace(report, seconds=time.monotonic() - began, resumed=resumed, nonfinite=tuple(strange))
    if push is None:
        return report
    commit = push_folder(push, target, f"Merge of {len(report.models)} models by {report.method}")
    return replace(report, pushed=commit)


def _told(report: MergeReport, push: Push, companions: Mapping[str, str | bytes]) -> MergeReport:
    """Add to a dry run's report what would be uploaded."""
    size = sum(report.files.values()) + sum(
        len(content.encode() if isinstance(content, str) else content) for content in companions.values()
    )
    names = sorted([*report.files, *companions])
    note = f"would push {len(names)} files, {size / 1e9:.3g} GB, to {push}: {', '.join(names)}"
    return replace(report, notes=(*report.notes, note))


def recipe_text(recipe: Mapping[str, object]) -> str:
    """Return a recipe's YAML text."""
    import yaml

    text: str = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    return text


def _check_target(target: Path, overwrite: bool) -> None:
    if target.suffix == ".safetensors" and target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder; give another name")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; --overwrite replaces it once the merge is complete")
    if target.is_dir() and any(target.iterdir()) and not _is_merge(target):
        raise FileExistsError(f"{target} is no output of a merge, so it is not replaced; remove it yourself")
    if target.is_file() and target.suffix != ".safetensors":
        raise FileExistsError(f"{target} is a file; give a folder, or a name ending in .safetensors")


def _is_merge(folder: Path) -> bool:
    """Tell whether a folder was written by a merge: replacing removes it with all that it holds."""
    files = list(folder.glob("*.safetensors"))
    return bool(files) and all(METADATA_KEY in read_header(file).metadata for file in files)


def _open_models(
    recipe: Recipe, cache: Path | None, offline: bool | None
) -> dict[ModelReference, MergeModel]:
    models: dict[ModelReference, MergeModel] = {}
    importances = recipe.importances()
    if importances and (recipe.align is not None or recipe.tokenizer is not None):
        raise RecipeError(
            "importances and Gram matrices are not aligned nor translated; do that with the models first"
        )
    for reference in dict.fromkeys((*recipe.references(), *importances)):
        opened = open_model(reference.model.path, reference.model.revision, cache_dir=cache, offline=offline)
        if reference.lora is not None:
            opened = add_adapter(opened, reference.lora, cache_dir=cache, offline=offline)
        models[reference] = MergeModel(opened, opened.source)
    return models


def _align(
    recipe: Recipe, models: dict[ModelReference, MergeModel], seed: int, *, dry_run: bool
) -> tuple[dict[ModelReference, MergeModel], tuple[str, ...], str]:
    """Return the models as the recipe's ``align`` leaves them, what was done, and a digest of it."""
    if recipe.align is None:
        return models, (), ""
    if dry_run:
        return models, ("a dry run does not align; what it costs is not in the estimate",), ""
    # Imported here: matching needs torch and scipy, a merge without it neither.
    from metanet_zoo.matching.models import align_models

    aligned = align_models(recipe, models, seed=seed)
    return dict(aligned.models), aligned.notes, aligned.digest


def _prepare(
    recipe: Recipe,
    models: Mapping[ModelReference, MergeModel],
    target: Path,
    options: Options,
    max_shard_size: int,
    threads: int | None,
    max_memory: int | None,
    *,
    sample: bool,
    notes: tuple[str, ...] = (),
    alignment: str = "",
    tokenizer: Mapping[str, bytes],
) -> _Prepared:
    if max_shard_size < 1:
        raise ValueError(f"found a shard size of {max_shard_size} bytes, expected at least 1")
    plan = make_plan(recipe, models, options)
    entries = {job.name: job.entry for job in plan.jobs}
    count = fitting_threads(plan, threads, max_memory)
    estimate = estimate_merge(plan, count, sample=sample)
    metadata = {"format": "pt", METADATA_KEY: json.dumps({"recipe": recipe.text, **versions()})}
    if target.suffix == ".safetensors":
        max_shard_size = 1 << 62
    layout = lay_out(entries, metadata, max_shard_size)
    companions: dict[str, str | bytes] = {}
    if target.suffix != ".safetensors":
        companions = _companions(recipe, models, plan, layout, tokenizer)
    identity = {
        "models": {
            str(reference): [_identity(file) for file in model.opened.files]
            for reference, model in models.items()
        },
        "headers": {file: hashlib.sha256(header).hexdigest() for file, header in layout.headers.items()},
        "seed": options.seed,
        "missing": options.missing,
        "compat": options.compat,
        "alignment": alignment,
        "recipe": repr(recipe),
        "jobs": [
            [
                job.name,
                [[found.model, found.name] for found in job.inputs],
                repr(job.task and job.task.settings),
            ]
            for job in plan.jobs
        ],
    }
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return _Prepared(recipe, models, plan, layout, estimate, companions, fingerprint, notes)


def _identity(path: Path) -> list[object]:
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def _leading(recipe: Recipe, models: Mapping[ModelReference, MergeModel]) -> MergeModel:
    """The model whose configuration and tokenizer the output takes: the base, or else the first."""
    return models[recipe.base or recipe.references()[0]]


def _companions(
    recipe: Recipe,
    models: Mapping[ModelReference, MergeModel],
    plan: Plan,
    layout: Layout,
    tokenizer: Mapping[str, bytes],
) -> dict[str, str | bytes]:
    leading = _leading(recipe, models)
    files: dict[str, str | bytes] = {}
    if layout.index is not None:
        files["model.safetensors.index.json"] = layout.index
    if leading.folder is None:
        return files
    entries = {job.name: job.entry for job in plan.jobs}
    dtypes = {entry.dtype for entry in entries.values()}
    if leading.config is not None:
        files["config.json"] = config_text(
            leading.config, entries, plan.layers, dtypes.pop() if len(dtypes) == 1 else None, plan.parts
        )
    files |= copied_files(leading.folder, OTHER_FILES)
    written = dict(tokenizer)
    if recipe.chat_template is not None:
        folders = [model.folder for model in models.values() if model.folder is not None]
        found = [text for folder in folders if (text := chat_template(folder)) is not None]
        set_chat_template(written, recipe.chat_template, found)
    files |= written
    return files


def _card(prepared: _Prepared, target: Path, hash_inputs: bool) -> dict[str, str]:
    inputs = [
        Provenance(
            str(reference),
            model.opened.revision,
            {file.name: file_hash(file) for file in model.opened.files} if hash_inputs else {},
        )
        for reference, model in prepared.models.items()
    ]
    method = find_method(prepared.recipe.method)
    text = prepared.recipe.text
    notes = (*prepared.notes, *prepared.plan.notes)
    return {
        "README.md": model_card(target.name, method, text, inputs, notes),
        "merge_recipe.yml": text if text.endswith("\n") else text + "\n",
    }


def _write(
    prepared: _Prepared,
    target: Path,
    companions: Mapping[str, str | bytes],
    options: Options,
    *,
    resume: bool,
    overwrite: bool,
    progress: Progress | None,
) -> tuple[int, list[str]]:
    total = sum(job.entry.size * job.entry.item_size for job in prepared.plan.jobs)
    done = 0

    def tell(name: str, size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(name, done, total)

    with Workspace(target, prepared.fingerprint, resume=resume) as workspace:
        try:
            resumed = len(workspace.done)
            workspace.create(prepared.layout)
            strange = run_jobs(
                prepared.plan.jobs,
                prepared.layout.places,
                workspace,
                threads=prepared.estimate.threads,
                allow_nonfinite=options.allow_nonfinite,
                cast=prepared.recipe.dtype if options.compat == "mergekit" else None,
                progress=tell,
            )
            workspace.publish(companions, overwrite=overwrite)
        except ValueError:
            # Bad input: nothing to go on with.
            workspace.discard()
            raise
        except KeyboardInterrupt:
            workspace.flush()
            raise
    return resumed, strange


def _report(prepared: _Prepared, target: Path, *, dry: bool) -> MergeReport:
    jobs = prepared.plan.jobs
    return MergeReport(
        out=str(target),
        method=prepared.recipe.method,
        models=tuple(str(reference) for reference in prepared.models),
        tensors=len(jobs),
        parameters=sum(job.entry.size for job in jobs),
        files=dict(prepared.layout.sizes),
        dtype=tuple(sorted({job.entry.dtype for job in jobs})),
        seconds=prepared.estimate.seconds,
        memory=prepared.estimate.memory,
        threads=prepared.estimate.threads,
        notes=(
            *(note for model in prepared.models.values() for note in model.opened.notes),
            *prepared.notes,
            *prepared.plan.notes,
        ),
        dry=dry,
    )
