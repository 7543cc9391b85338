"""Spec files: the symmetry of a checkpoint, shipped beside it as notation or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from metanet.spec import WeightSpec
from metanet_zoo.atomic import atomic_path


def find_spec_file(files: Sequence[Path]) -> Path | None:
    """Return the spec file that belongs to a checkpoint's files, or None.

    Beside ``model.safetensors`` (or its index of shards) that is, in this order, ``model.spec.json``,
    ``model.spec``, ``spec.json``.

    Args:
        files: the files that hold the checkpoint, an index first.
    """
    if not files:
        return None
    first = files[0]
    stem = first.name.removesuffix(".index.json").rpartition(".")[0] or first.name
    for name in (f"{stem}.spec.json", f"{stem}.spec", "spec.json"):
        if (first.parent / name).is_file():
            return first.parent / name
    return None


def read_spec(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> WeightSpec:
    """Read a spec in notation or JSON, and check it against a checkpoint's names and shapes.

    Args:
        path: the spec file.
        shapes: entry name -> shape of the weights it is for.

    Raises:
        ValueError: unreadable, or it does not fit; the message names the file.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no spec file {path}; write one with metanet inspect … --save-spec FILE")
    try:
        text = path.read_text(encoding="utf-8")
        spec = WeightSpec.from_json(text) if text.lstrip().startswith("{") else WeightSpec.parse(text)
        if shapes is not None:
            spec.check(shapes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return spec


def write_spec(path: Path, spec: WeightSpec) -> None:
    """Write a spec, whole or not at all: as JSON, skeleton included, if named so; else in the notation."""
    text = spec.to_json() if path.suffix == ".json" else str(spec)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
