"""Group elements in files: found once, applied to any checkpoint of the architecture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metanet.group import GroupElement
from metanet.spec import FreedomKind, WeightSpec
from metanet_zoo.checkpoint import open_checkpoint
from metanet_zoo.errors import CheckpointError
from metanet_zoo.saving import save_checkpoint

FORMAT = "metanet.element"
VERSION = 1


def save_element(
    path: str | os.PathLike[str], element: GroupElement, facts: Mapping[str, Any] | None = None
) -> None:
    """Write a group element to a safetensors file, whole or not at all.

    The file holds ``permutation/GROUP`` (indices), ``freedom/KIND/GROUP`` and ``action/NUMBER``; its metadata
    holds the spec, so that it can be applied without anything else.

    Args:
        path: the file, its name ending in ``.safetensors``.
        element: any element.
        facts: what else is to be known of it (how it was found), as JSON values.

    Raises:
        CheckpointError: another file name.
        OSError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {f"permutation/{name}": p for name, p in element.permutations.items()}
    tensors |= {f"freedom/{kind}/{name}": values for (name, kind), values in element.freedoms.items()}
    tensors |= {f"action/{number}": value for number, value in element.actions.items()}
    # The skeleton takes most of a spec's text and says nothing about how an element acts.
    spec = replace(element.spec, operations=())
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "spec": spec.to_json(),
        "facts": json.dumps(dict(facts or {}), ensure_ascii=False),
    }
    if not tensors:
        tensors = {"identity": torch.ones(1)}
    save_checkpoint(path, tensors, metadata)


def load_element(path: str | os.PathLike[str]) -> tuple[GroupElement, dict[str, Any]]:
    """Read what `save_element` wrote.

    Returns:
        The element and the facts stored with it.

    Raises:
        CheckpointError: no such file, a damaged one, or one that holds something else.
    """
    checkpoint = open_checkpoint(path)
    metadata = checkpoint.metadata
    if metadata.get("format") == "metanet.soft_map":
        raise CheckpointError(
            f"{path}: a soft map, which does not keep the function; expected a group element. What the map "
            "makes is written by metanet match --method transport --out, and merged as it is"
        )
    if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"{path}: found format {metadata.get('format')!r}, version {metadata.get('version')!r}; expected "
            f"a group element ({FORMAT}, version {VERSION}), as metanet match --out-element writes it"
        )
    permutations: dict[str, Tensor] = {}
    freedoms: dict[tuple[str, FreedomKind], Tensor] = {}
    actions: dict[int, Tensor] = {}
    try:
        spec = WeightSpec.from_json(str(metadata["spec"]))
        facts = json.loads(str(metadata["facts"]))
        for key in checkpoint:
            kind, _, rest = key.partition("/")
            value = checkpoint[key].clone()
            if kind == "permutation":
                permutations[rest] = value
            elif kind == "freedom":
                freedom, _, name = rest.partition("/")
                freedoms[name, freedom] = value  # type: ignore[index]
            elif kind == "action":
                actions[int(rest)] = value
        return GroupElement(spec, permutations, freedoms, actions), facts
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: a damaged group element: {error}") from None
