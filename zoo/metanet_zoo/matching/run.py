"""Matching two checkpoints in files: the element, the aligned checkpoint, the proof, the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from metanet.group import GroupElement
from metanet.matching.method import find_matcher
from metanet_zoo.errors import CheckpointError
from metanet_zoo.matching.align import MAX_MEMORY, MIN_GAIN, Alignment, Progress, align_sources
from metanet_zoo.matching.data import DataOptions, prepare_data
from metanet_zoo.matching.element_file import save_element
from metanet_zoo.matching.folded import folding_of
from metanet_zoo.matching.proof import Proof, prove
from metanet_zoo.merging.run import merge_checkpoints
from metanet_zoo.merging.sources import open_model


@dataclass(frozen=True)
class MatchReport:
    """What matching two checkpoints found and wrote.

    Args:
        reference: the model that stays.
        model: the model that was aligned to it.
        origin: where the spec comes from.
        alignment: the element and its figures.
        proof: whether the aligned model computes the same function.
        element_file: where the element was written, if asked for.
        out: where the aligned model was written, if asked for.
        out_reference: where the reference was written with its gains folded, if asked for.
    """

    reference: str
    model: str
    origin: str
    alignment: Alignment
    proof: Proof
    element_file: str | None = None
    out: str | None = None
    out_reference: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "reference": self.reference,
            "model": self.model,
            "origin": self.origin,
            **self.alignment.to_dict(),
            "proof": self.proof.to_dict(),
            "element_file": self.element_file,
            "out": self.out,
            "out_reference": self.out_reference,
        }


def match_checkpoints(
    reference: str,
    model: str,
    *,
    method: str = "weights",
    settings: Mapping[str, Any] | None = None,
    data: DataOptions | None = None,
    element_file: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    out_reference: str | os.PathLike[str] | None = None,
    spec_file: Path | None = None,
    activation: str | None = None,
    fixed: Collection[str] = (),
    free: Collection[str] = (),
    min_gain: float = MIN_GAIN,
    max_memory: int = MAX_MEMORY,
    max_shard_size: int = 5 * 10**9,
    prove_it: bool = True,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    written: Callable[[str, int, int], None] | None = None,
) -> MatchReport:
    """Align a checkpoint to another one, by default by weight matching, in bounded memory.

    The proof comes before anything is written: nothing that is known not to keep the function is.

    Args:
        reference: the model that stays: a folder, file or hub repository.
        model: the model that is aligned to it.
        method: of `metanet.matching.method`.
        settings: of the method.
        data: for methods that run the networks.
        element_file: write the group element there (``.safetensors``).
        out: write the aligned model there, a folder or a ``.safetensors`` file.
        out_reference: write the reference there, its gains folded as those of the aligned model are, for
            methods that fold them (`orthogonal`): the two are then alike.
        spec_file: take this spec instead of finding one.
        activation: of a plain sequential network, e.g. ``relu``.
        fixed: groups that stay.
        free: groups that must not be held to save memory.
        min_gain: keep the identity unless the squared distance, or what else the method measures, falls by
            more than this fraction.
        max_memory: bytes for the tensors that are matched together.
        max_shard_size: bytes of tensors in a file of the output.
        prove_it: prove that the aligned model computes the same function, where it can be run.
        overwrite: replace existing outputs.
        trust_remote_code: run the code that a Hugging Face folder brings along.
        seed: of the order of groups, of random starts and of the proof's inputs.
        progress: told how many values are compared, of how many.
        written: told of every tensor written, the bytes done and all bytes.

    Returns:
        the report.

    Raises:
        CheckpointError: checkpoints that cannot be opened or differ in architecture, no spec, or a proof that
            failed.
        OSError: an output exists or cannot be written.
    """
    chosen = find_matcher(method)
    if out_reference is not None and not chosen.folds:
        raise ValueError(f"matching by {method} leaves {reference} as it is: there is nothing to write of it")
    for path in (element_file, out, out_reference):
        if path is not None and Path(path).exists() and not overwrite:
            raise FileExistsError(f"{path} exists; --overwrite replaces it")
    if element_file is not None and not os.fspath(element_file).endswith(".safetensors"):
        raise ValueError(f"{element_file}: a group element is written as .safetensors; name it so")
    with ExitStack() as stack:
        found, sample = prepare_data(
            chosen,
            reference,
            data,
            activation=activation,
            spec_file=spec_file,
            trust_remote_code=trust_remote_code,
        )
        places = [reference, model]
        opened = [open_model(place) for place in places]
        facts: dict[str, Any] = {"reference": reference, "model": model}
        dtype = None
        if chosen.folds:
            folding = folding_of(found)
            found, facts["folded"] = folding.found, list(folding.gains)
            temporary = Path(stack.enter_context(TemporaryDirectory()))
            places = [str(temporary / name) for name in ("reference", "model")]
            for one, place in zip(opened, places, strict=True):
                dtype = folding.write(one, Path(place))
                one.source.close()
            opened = [open_model(place) for place in places]
        for one in opened:
            stack.callback(one.source.close)
        alignment = align_sources(
            found.spec,
            opened[0].source,
            opened[1].source,
            method=method,
            settings=settings,
            data=sample,
            fixed=fixed,
            free=free,
            min_gain=min_gain,
            max_memory=max_memory,
            seed=seed,
            progress=progress,
        )
        proof = prove(found, opened[1].source, alignment.element, wanted=prove_it, seed=seed)
        if proof.proven is False:
            raise CheckpointError(
                f"the aligned model does not compute what {model} does (relative error {proof.error:.2g}, "
                f"tolerated {proof.tolerance:.2g}): nothing is written. The spec is wrong ({found.origin}); "
                "metanet inspect --verify says where"
            )
        if element_file is not None:
            save_element(element_file, alignment.element, {**facts, **alignment.to_dict()})
        outputs = ((out, alignment.element), (out_reference, GroupElement.identity(found.spec)))
        for place, (target, element) in zip(reversed(places), outputs, strict=True):
            if target is not None:
                write_aligned(
                    place,
                    element,
                    target,
                    dtype=dtype,
                    max_shard_size=max_shard_size,
                    overwrite=overwrite,
                    written=written,
                )
    return MatchReport(
        reference,
        model,
        found.provenance,
        alignment,
        proof,
        None if element_file is None else os.fspath(element_file),
        None if out is None else os.fspath(out),
        None if out_reference is None else os.fspath(out_reference),
    )


def write_aligned(
    model: str,
    element: GroupElement,
    out: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_size: int = 5 * 10**9,
    overwrite: bool = False,
    written: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write a model as an element leaves it, streaming, with its configuration and tokenizer beside it.

    Args:
        model: folder, file or hub repository.
        element: of the model's architecture.
        out: a folder that is to appear, or a file ending in ``.safetensors``.
        dtype: of the output; None keeps the model's.
        max_shard_size: bytes of tensors in a file of the output.
        overwrite: replace an older output once the new one is complete.
        written: told of every tensor written, the bytes done and all bytes.

    Raises:
        CheckpointError: the element belongs to another architecture.
        OSError: the output cannot be written.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "element.safetensors"
        save_element(file, element)
        recipe: dict[str, Any] = {
            "models": [{"model": model}],
            "merge_method": "passthrough",
            "align": {"elements": {model: os.fspath(file)}},
        }
        if dtype is not None:
            recipe["dtype"] = dtype
        merge_checkpoints(
            recipe, out, max_shard_size=max_shard_size, overwrite=overwrite, card=False, progress=written
        )
