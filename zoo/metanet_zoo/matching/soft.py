"""Matching two checkpoints by a soft map: widths may differ, and the function is not kept."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metanet.matching.components import COPIES, VALUE_BYTES
from metanet.matching.method import Problem, find_matcher, match
from metanet.matching.pair import STATISTICS
from metanet.matching.soft_map import SoftMatching
from metanet_zoo.checkpoint import open_checkpoint
from metanet_zoo.errors import CheckpointError
from metanet_zoo.matching.align import MAX_MEMORY
from metanet_zoo.matching.data import DataOptions, prepare_data
from metanet_zoo.matching.soft_map_file import save_soft_map
from metanet_zoo.runnable import float_state
from metanet_zoo.saving import save_checkpoint
from metanet_zoo.spec_source import find_spec


@dataclass(frozen=True)
class SoftReport:
    """What matching two checkpoints softly found and wrote.

    Args:
        reference: the model that stays.
        model: the model that was taken to its shapes.
        origin: where the spec comes from.
        method: of matching.
        measure: what the costs are.
        costs: group -> mean cost of what was paired.
        mixed: group -> share of a unit that does not come from one single unit.
        widths: group -> units of the model and of the reference, where they differ.
        element: whether the map is a group element after all, so that the function is kept.
        seconds: time taken.
        notes: what the user should know, one sentence each.
        maps: where the map was written, if asked for; two where both models are moved.
        outputs: what was written of the models: the moved one; the merged one; or both, with one trunk.
    """

    reference: str
    model: str
    origin: str
    method: str
    measure: str
    costs: Mapping[str, float]
    mixed: Mapping[str, float]
    widths: Mapping[str, tuple[int, int]]
    element: bool
    seconds: float
    notes: tuple[str, ...]
    maps: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}


def match_softly(
    reference: str,
    model: str,
    *,
    method: str = "transport",
    settings: Mapping[str, Any] | None = None,
    data: DataOptions | None = None,
    map_file: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    spec_file: Path | None = None,
    activation: str | None = None,
    fixed: Collection[str] = (),
    max_memory: int = MAX_MEMORY,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> SoftReport:
    """Take a checkpoint to the shapes and order of another one by a method that returns a soft map.

    Args:
        reference: the model that stays: a folder, file or hub repository.
        model: the model that is moved; its widths may differ where the method allows.
        method: of `metanet.matching.method`.
        settings: of the method.
        data: for methods that run the networks.
        map_file: write the soft map there (``.safetensors``); a folder where both models are moved.
        out: write the moved model there (``.safetensors``), which has the reference's shapes; the merged one
            where both become one; a folder where they share a trunk and stay two.
        spec_file: take this spec, of both, instead of finding them.
        activation: of plain sequential networks, e.g. ``relu``.
        fixed: groups that stay.
        max_memory: bytes that both models may take.
        overwrite: replace existing outputs.
        trust_remote_code: run the code that a Hugging Face folder brings along.
        seed: of whatever is drawn.

    Raises:
        CheckpointError: checkpoints that cannot be opened, do not fit together, or have no spec.
        ValueError: a method that finds an element, or outputs of another name.
        OSError: an output exists or cannot be written.
    """
    chosen = find_matcher(method)
    if chosen.returns != "soft map":
        raise ValueError(f"matching by {method} finds a group element; call match_checkpoints")
    for path in (map_file, out):
        if path is not None and Path(path).exists() and not overwrite:
            raise FileExistsError(f"{path} exists; --overwrite replaces it")
    began = time.monotonic()
    found, sample = prepare_data(
        chosen, model, data, activation=activation, spec_file=spec_file, trust_remote_code=trust_remote_code
    )
    other = find_spec(
        reference, spec_file=spec_file, activation=activation, trust_remote_code=trust_remote_code
    )
    size = (found.spec.num_parameters + other.spec.num_parameters) * VALUE_BYTES * COPIES // 2
    if size > max_memory:
        raise ValueError(
            f"matching by {method} has both models in memory, about {size >> 20} MiB; at most "
            f"{max_memory >> 20} MiB are allowed: raise --max-memory"
        )
    problem = Problem(
        found.spec,
        float_state(open_checkpoint(reference)),
        float_state(open_checkpoint(model)),
        spec_a=other.spec,
        model=None if sample is None else sample.model,
        inputs=() if sample is None else sample.inputs,
        fixed=frozenset(fixed),
        seed=seed,
    )
    try:
        matching = match(chosen, problem, **(settings or {}))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    assert isinstance(matching, SoftMatching)
    soft = matching.map
    element = soft.element() is not None
    notes = list(matching.notes)
    if not element:
        notes.append("this is no group element: the moved model computes another function")
        if any(name.endswith(STATISTICS) for name in found.spec):
            notes.append("statistics of batch norms were mixed too; have them computed anew on data")
        if matching.map_a is not None and not matching.merges_all:
            notes.append(f"the two networks share {len(matching.shared)} tensors and keep heads of their own")
    two = matching.map_a is not None
    maps = _paths(map_file, 2 if two else 1, "the map")
    outputs = _paths(out, 2 if two and not matching.merges_all else 1, "the model")
    facts = {"reference": reference, "model": model, "method": method, "costs": dict(matching.costs)}
    for path, one in zip(maps, (soft,) if matching.map_a is None else (matching.map_a, soft), strict=False):
        save_soft_map(path, one, facts)
    if outputs:
        networks = matching.networks(open_checkpoint(reference), open_checkpoint(model))
        written = networks if len(outputs) == 2 else (networks[1],)
        for path, state in zip(outputs, written, strict=True):
            save_checkpoint(path, state, {"metanet": f"{method}: {model} to {reference}"})
    sizes = soft.target.sizes
    return SoftReport(
        reference,
        model,
        found.provenance,
        method,
        matching.measure,
        dict(matching.costs),
        dict(matching.mixed),
        {g.name: (g.size, sizes[g.name]) for g in soft.source.groups if g.size != sizes[g.name]},
        element,
        time.monotonic() - began,
        tuple(notes),
        maps,
        outputs,
    )


def _paths(path: str | os.PathLike[str] | None, count: int, what: str) -> tuple[str, ...]:
    """Return the files to be written: one that is named, or one per model in a folder.

    Raises:
        ValueError: a file is named where a folder is needed, or the other way round.
    """
    if path is None:
        return ()
    named = os.fspath(path).endswith(".safetensors")
    if named != (count == 1):
        wanted = "name a .safetensors file" if count == 1 else "name a folder: there is one file per model"
        raise ValueError(f"{path}: {what} is written as safetensors; {wanted}")
    if count == 1:
        return (os.fspath(path),)
    Path(path).mkdir(parents=True, exist_ok=True)
    return tuple(str(Path(path) / f"{number}.safetensors") for number in range(1, count + 1))
