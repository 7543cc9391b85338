"""Matching three or more checkpoints in files: every one is taken to a common order of units."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metanet_zoo.matching.element_file import save_element
from metanet_zoo.matching.run import write_aligned
from metanet_zoo.matching.universe import MAX_MEMORY, common_order
from metanet_zoo.matching.universe import Method as Method
from metanet_zoo.merging.sources import open_model
from metanet_zoo.spec_source import find_spec


@dataclass(frozen=True)
class ManyReport:
    """What matching many checkpoints found and wrote.

    Args:
        models: the checkpoints.
        method: how they were matched.
        origin: where the spec comes from.
        before: sum of squared distances to the mean as they are.
        after: the same in the universe.
        elements: files of the elements, one per model, if asked for.
        outputs: the models in the universe, if asked for.
        held: groups that stay, since what they couple does not fit into memory.
    """

    models: tuple[str, ...]
    method: str
    origin: str
    before: float
    after: float
    elements: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    held: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}


def match_many_checkpoints(
    models: Sequence[str],
    *,
    method: Method = "cycle-consistent",
    elements: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    spec_file: Path | None = None,
    activation: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    max_memory: int = MAX_MEMORY,
    seed: int = 0,
) -> ManyReport:
    """Take checkpoints to a common order of units; any two then compare unit by unit.

    Args:
        models: two or more: folders, files or hub repositories.
        method: Frank–Wolfe over all groups and networks jointly, or MergeMany.
        elements: write the elements into this folder, as ``1.safetensors``, ``2.safetensors``, ….
        out: write the models, in the universe, into this folder, as ``1``, ``2``, ….
        spec_file: take this spec instead of finding one.
        activation: of a plain sequential network.
        overwrite: write into folders that exist.
        trust_remote_code: run the code that a Hugging Face folder brings along.
        max_memory: bytes for the tensors that are matched together; groups that couple more stay as they are.
        seed: of the order of networks and groups.

    Raises:
        CheckpointError: models that differ in architecture, or too large for Frank–Wolfe.
        FileExistsError: a folder exists.
    """
    folders = [Path(folder) for folder in (elements, out) if folder is not None]
    for folder in folders:
        if folder.exists() and not overwrite:
            raise FileExistsError(f"{folder} exists; --overwrite writes into it")
    found = find_spec(
        models[0], spec_file=spec_file, activation=activation, trust_remote_code=trust_remote_code
    )
    opened = [open_model(model) for model in models]
    try:
        sources = {f"{number}: {one.label}": one.source for number, one in enumerate(opened, 1)}
        universe = common_order(found.spec, sources, method=method, max_memory=max_memory, seed=seed)
    finally:
        for one in opened:
            one.source.close()
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    files, outputs = [], []
    for number, (model, element) in enumerate(zip(models, universe.elements, strict=True), 1):
        if elements is not None:
            files.append(str(Path(elements) / f"{number}.safetensors"))
            save_element(files[-1], element, {"model": model, "method": method, "models": list(models)})
        if out is not None:
            outputs.append(
                str(Path(out) / (str(number) if Path(model).is_dir() else f"{number}.safetensors"))
            )
            write_aligned(model, element, outputs[-1], overwrite=overwrite)
    return ManyReport(
        tuple(models),
        method,
        found.provenance,
        universe.before,
        universe.after,
        tuple(files),
        tuple(outputs),
        universe.held,
    )
