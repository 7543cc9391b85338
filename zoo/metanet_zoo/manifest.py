"""The manifest of a zoo: what is stored, in which shards, made with which settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from metanet_zoo.atomic import write_json_atomic

FORMAT = "metanet-zoo"
VERSION = 1
MANIFEST = "zoo.json"
UNFINISHED = "zoo.unfinished.json"
"""The manifest of a zoo that is still being written; the last act of writing replaces it by `zoo.json`."""


class ZooError(ValueError):
    """A zoo that is not what it claims to be, or a request it cannot serve: found, expected, what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One state-dict entry, the same in every model: its shape and the name of its torch dtype."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Shard:
    """Two files, stacked weights and one row of metadata per model, with what is needed to check them."""

    weights: str
    models: str
    count: int
    weights_bytes: int
    weights_sha256: str
    models_sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about a zoo but its tensors and rows.

    Args:
        architecture: settings for `build_architecture`, or an empty dict if the networks' code is not known.
        entries: state-dict name -> shape and dtype; a shard stacks them along a new first axis.
        shards: in the order of the models.
        columns: metadata column -> its Arrow type.
        label_names: what the integers of the column `label` mean; empty if they mean nothing more.
        settings: how the networks were made, plain JSON.
    """

    architecture: Mapping[str, Any]
    entries: Mapping[str, Entry] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(shard.count for shard in self.shards)

    @property
    def starts(self) -> list[int]:
        """Index of the first model of every shard, and after them the number of models."""
        return [0, *accumulate(shard.count for shard in self.shards)]

    def write(self, path: Path) -> None:
        """Write to a file, whole or not at all."""
        write_json_atomic(path, {"format": FORMAT, "version": VERSION, **asdict(self)})

    @staticmethod
    def read(path: Path) -> Manifest:
        """Read a manifest and check its form.

        Args:
            path: the file.

        Raises:
            ZooError: it is no JSON, no manifest, of another version, or a part of it has the wrong form.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ZooError(
                f"{path} is no JSON ({error}); restore it from a copy or fit the zoo again"
            ) from None
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ZooError(f'{path} is no manifest of a zoo: expected "format": {FORMAT!r}')
        if value.get("version") != VERSION:
            raise ZooError(
                f"{path} has format version {value.get('version')!r}, this release reads {VERSION}; "
                "install the release that wrote it or convert the zoo"
            )
        try:
            manifest = Manifest(
                architecture=dict(value["architecture"]),
                entries={
                    str(name): Entry(tuple(int(n) for n in entry["shape"]), str(entry["dtype"]))
                    for name, entry in value["entries"].items()
                },
                shards=tuple(Shard(**shard) for shard in value["shards"]),
                columns={str(name): str(kind) for name, kind in value["columns"].items()},
                label_names=tuple(str(name) for name in value["label_names"]),
                settings=dict(value["settings"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ZooError(
                f"{path}: a manifest with a broken part ({type(error).__name__}: {error})"
            ) from None
        for shard in manifest.shards:
            for name in (shard.weights, shard.models):
                if not isinstance(name, str) or Path(name).name != name:
                    raise ZooError(f"{path} names the shard {name!r}; shards lie beside the manifest")
            if not (isinstance(shard.count, int) and shard.count > 0):
                raise ZooError(f"{path}: shard {shard.weights} has count {shard.count!r}, expected 1 or more")
        return manifest
