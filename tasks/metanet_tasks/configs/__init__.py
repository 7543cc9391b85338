"""Configurations that ship with the package, found by their names."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def shipped_configs() -> list[str]:
    """Return the names of the configurations that ship with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def find_config(name: str) -> Path:
    """Return the file of a configuration: an existing path, or the name of a shipped one.

    Raises:
        ValueError: neither; the message lists the shipped ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.parent == FOLDER and shipped.is_file():
        return shipped
    raise ValueError(f"no configuration {name!r}: no such file, and none of {', '.join(shipped_configs())}")
