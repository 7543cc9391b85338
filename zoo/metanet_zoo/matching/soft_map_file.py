"""Soft maps in files: a kind of their own, since they do not keep the function."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from metanet.matching.soft_map import SoftMap
from metanet.spec import WeightSpec
from metanet_zoo.checkpoint import open_checkpoint
from metanet_zoo.errors import CheckpointError
from metanet_zoo.saving import save_checkpoint

FORMAT = "metanet.soft_map"
VERSION = 1


def save_soft_map(
    path: str | os.PathLike[str], soft: SoftMap, facts: Mapping[str, Any] | None = None
) -> None:
    """Write a soft map to a safetensors file, whole or not at all.

    The file holds ``merge/GROUP`` and ``unmerge/GROUP``; its metadata holds both specs, and says that it does
    not keep the function, so that nothing takes it for a group element.

    Args:
        path: the file, its name ending in ``.safetensors``.
        soft: the map.
        facts: what else is to be known of it (how it was found), as JSON values.

    Raises:
        CheckpointError: another file name, or a map that mixes no group.
        OSError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {f"merge/{name}": matrix for name, matrix in soft.merge.items()}
    tensors |= {f"unmerge/{name}": matrix for name, matrix in soft.unmerge.items()}
    if not tensors:
        raise CheckpointError(f"{path}: this map mixes no group; there is nothing to be written")
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "keeps_function": "no",
        "source": soft.source.to_json(),
        # Who writes and who reads is told by the source; the target adds widths.
        "target": replace(soft.target, operations=()).to_json(),
        "facts": json.dumps(dict(facts or {}), ensure_ascii=False),
    }
    save_checkpoint(path, tensors, metadata)


def load_soft_map(path: str | os.PathLike[str]) -> tuple[SoftMap, dict[str, Any]]:
    """Read what `save_soft_map` wrote.

    Returns:
        The map and the facts stored with it.

    Raises:
        CheckpointError: no such file, a damaged one, or one that holds something else.
    """
    checkpoint = open_checkpoint(path)
    metadata = checkpoint.metadata
    if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"{path}: found format {metadata.get('format')!r}, version {metadata.get('version')!r}; expected "
            f"a soft map ({FORMAT}, version {VERSION}), as metanet match --method transport writes it"
        )
    matrices: dict[str, dict[str, Tensor]] = {"merge": {}, "unmerge": {}}
    try:
        for key in checkpoint:
            kind, _, group = key.partition("/")
            matrices[kind][group] = checkpoint[key].clone()
        source, target = (WeightSpec.from_json(str(metadata[key])) for key in ("source", "target"))
        facts = json.loads(str(metadata["facts"]))
        return SoftMap(source, target, matrices["merge"], matrices["unmerge"]), facts
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: a damaged soft map: {error}") from None
