"""Derived specs, kept in the user's cache folder under a hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch

import metanet
from metanet.spec import WeightSpec
from metanet_zoo.atomic import atomic_path


def cache_folder() -> Path:
    """Return where specs are kept: ``METANET_CACHE``, else ``metanet`` in the platform's cache folder."""
    if given := os.environ.get("METANET_CACHE"):
        return Path(given).expanduser()
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library/Caches/metanet"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData/Local") / "metanet"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "metanet"


def cache_key(facts: Mapping[str, object]) -> str:
    """Return the hash of what a derivation depends on: given facts, torch's version, this library's sources.

    Args:
        facts: whatever JSON can say, such as a configuration and the names and shapes of a checkpoint.
    """
    own = {"facts": facts, "torch": torch.__version__, "metanet": _sources()}
    text = json.dumps(own, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def cached_spec(key: str | None, derive: Callable[[], WeightSpec]) -> tuple[WeightSpec, bool]:
    """Return a spec from the cache, or derive it and keep it.

    A file that is damaged is taken as absent and written anew; a folder that cannot be written is left alone.

    Args:
        key: from `cache_key`; None derives without a cache.
        derive: makes the spec.

    Returns:
        The spec, and whether it came from the cache.
    """
    if key is None:
        return derive(), False
    path = cache_folder() / "specs" / f"{key}.json"
    found = _read(path)
    if found is not None:
        return found, True
    spec = derive()
    text = spec.to_json()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(f"{_digest(text)}\n{text}", encoding="utf-8")
    except OSError:
        pass
    return spec, False


def _read(path: Path) -> WeightSpec | None:
    try:
        digest, _, text = path.read_text(encoding="utf-8").partition("\n")
        return WeightSpec.from_json(text) if digest == _digest(text) else None
    except (OSError, ValueError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _sources() -> str:
    """Return a hash of the sources that derive specs: a rule that is added or changed makes other specs."""
    total = hashlib.sha256()
    folder = Path(metanet.__file__).parent
    for path in sorted([*folder.glob("*.py"), *folder.glob("rules/*.py")]):
        total.update(path.name.encode())
        total.update(path.read_bytes())
    return total.hexdigest()
