"""The output's model card: what was merged, how, from exactly which files, by which versions."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metanet.merging.method import Method
from metanet_zoo.hub import parse_repo_id

HASH_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Provenance:
    """One model that went into a merge.

    Args:
        label: as the recipe names it.
        revision: commit of a hub repository.
        files: file name -> SHA-256; empty if no hashes were asked for.
    """

    label: str
    revision: str | None
    files: dict[str, str]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file; in a hub cache that is the name of the blob behind its link."""
    if path.is_symlink():
        blob = path.resolve().name
        if len(blob) == 64 and set(blob) <= set("0123456789abcdef"):
            return blob
    digest = hashlib.sha256()
    buffer = bytearray(HASH_CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    import numpy

    from metanet import __version__

    return {"metanet": __version__, "numpy": numpy.__version__, "python": platform.python_version()}


def model_card(
    name: str, method: Method, recipe: str, inputs: Sequence[Provenance], notes: Sequence[str]
) -> str:
    """Return the text of the output's README.md.

    Args:
        name: of the output.
        method: the method.
        recipe: the recipe's text.
        inputs: the models.
        notes: what the merge did beyond its recipe.
    """
    hubs = [item.label for item in inputs if parse_repo_id(item.label) and not Path(item.label).exists()]
    lines = ["---"]
    if hubs:
        lines += ["base_model:", *(f"- {label}" for label in hubs)]
    lines += ["tags:", "- merge", "- metanet", "---", f"# {name}", ""]
    lines += [f"A merge of {len(inputs)} models by `{method.name}`: {method.summary}", ""]
    lines += [f"Method: {method.reference}", "", "## Models", ""]
    for item in inputs:
        lines.append(f"- `{item.label}`" + (f" at commit `{item.revision}`" if item.revision else ""))
        lines += [f"  - `{file}` sha256 `{digest}`" for file, digest in item.files.items()]
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    lines += ["", "## Recipe", "", "```yaml", recipe.strip(), "```", "", "## Versions", ""]
    lines += [f"- {package} {version}" for package, version in versions().items()]
    return "\n".join(lines) + "\n"
