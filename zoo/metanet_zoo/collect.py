"""Zoos made of what is already there: other zoos, or single checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metanet_zoo.checkpoint import open_checkpoint
from metanet_zoo.manifest import ZooError
from metanet_zoo.store import Zoo
from metanet_zoo.writer import Columns, ZooWriter

CHUNK = 1024
"""Models held in memory at a time."""


def merge_zoos(paths: Sequence[str | Path], out: str | Path, *, shard_size: int = 512) -> Zoo:
    """Copy several zoos of one architecture into a new one, one after the other.

    The new zoo's metadata has a column `source` with the name of the folder each model came from, so that
    equal image numbers of two zoos stay apart in `Zoo.split`. Columns that only some zoos have are left out.

    Args:
        paths: folders of zoos with different names.
        out: folder of the new zoo, new or empty.
        shard_size: models per shard.

    Returns:
        the new zoo.

    Raises:
        ZooError: the zoos differ in architecture, entries, label names or the type of a column, or two
            folders have the same name.
    """
    zoos = [Zoo.open(path) for path in paths]
    names = [zoo.path.resolve().name for zoo in zoos]
    if not zoos or len(set(names)) != len(names):
        raise ZooError(f"expected one or more zoos in folders of different names, found {names}")
    first = zoos[0]
    common = [name for name in first.manifest.columns if all(name in zoo.manifest.columns for zoo in zoos)]
    for zoo in zoos[1:]:
        for what, found, expected in (
            ("architecture", zoo.architecture, first.architecture),
            ("label names", zoo.label_names, first.label_names),
        ):
            if found != expected:
                raise ZooError(
                    f"cannot merge {zoo.path}: its {what} are {found}, those of {first.path} {expected}"
                )
    if "source" in common:
        common.remove("source")
    settings = {"merged": [dict(zoo.settings) for zoo in zoos]}
    with ZooWriter(
        out,
        architecture=first.architecture,
        label_names=first.label_names,
        settings=settings,
        shard_size=shard_size,
        spec=first.spec_json,
    ) as writer:
        for zoo, name in zip(zoos, names, strict=True):
            rows = zoo.metadata.select(common)
            for start in range(0, len(zoo), CHUNK):
                part = rows.slice(start, CHUNK)
                columns: dict[str, Any] = {column: part.column(column).combine_chunks() for column in common}
                columns["source"] = [name] * len(part)
                writer.append(zoo.read(slice(start, start + CHUNK)), columns)
    return Zoo.open(out)


def zoo_from_checkpoints(
    files: Sequence[str | Path],
    out: str | Path,
    metadata: Columns | None = None,
    *,
    architecture: Mapping[str, Any] | None = None,
    label_names: Sequence[str] = (),
    spec: str | None = None,
    shard_size: int = 512,
) -> Zoo:
    """Stack single checkpoints of one architecture into a zoo.

    Args:
        files: anything `open_checkpoint` opens, with the same entries of the same shapes and dtypes.
        out: folder of the zoo, new or empty.
        metadata: column -> one value per file; a column `file` is added unless there is one.
        architecture: settings for `build_architecture`, if the networks' code is known.
        label_names: what the integers of the column `label` mean.
        spec: the networks' symmetry as JSON text.
        shard_size: models per shard.

    Returns:
        the zoo, in the order of `files`.

    Raises:
        CheckpointError: a file cannot be read.
        ZooError: a file's entries differ from the first one's, naming the file; or the metadata does not fit.
    """
    columns: dict[str, Sequence[Any] | Tensor] = dict(metadata or {})
    columns.setdefault("file", [str(file) for file in files])
    for name, values in columns.items():
        if len(values) != len(files):
            raise ZooError(f"column {name!r} has {len(values)} values for {len(files)} checkpoints")
    if not files:
        raise ZooError("no checkpoints; a zoo needs at least one")
    with ZooWriter(
        out,
        architecture=architecture or {},
        label_names=label_names,
        settings={"imported": len(files)},
        shard_size=shard_size,
        spec=spec,
    ) as writer:
        first: dict[str, Tensor] | None = None
        for start in range(0, len(files), CHUNK):
            states = []
            for file in files[start : start + CHUNK]:
                state = {name: tensor.clone() for name, tensor in open_checkpoint(file).state_dict().items()}
                first = first or state
                _require_like(state, first, str(file), str(files[0]))
                states.append(state)
            stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
            writer.append(stacked, {name: values[start : start + CHUNK] for name, values in columns.items()})
    return Zoo.open(out)


def _require_like(
    state: Mapping[str, Tensor], first: Mapping[str, Tensor], file: str, first_file: str
) -> None:
    for name in [*first, *state]:
        found, expected = (
            f"{list(tensors[name].shape)} {tensors[name].dtype}" if name in tensors else "absent"
            for tensors in (state, first)
        )
        if found != expected:
            raise ZooError(
                f"{file}: entry {name!r} is {found}, in {first_file} it is {expected}; a zoo holds one "
                "architecture"
            )
