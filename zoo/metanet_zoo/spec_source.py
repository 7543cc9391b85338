"""Where the spec of a checkpoint without code comes from: a file beside it, its configuration, its names.

In this order: a spec file, given or beside the weights; a Hugging Face ``config.json``, from which
``transformers`` builds the model without values; the names and shapes of a plain sequential network. Names,
shapes and dtypes are all that is read of the weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metanet.derivation.tracing import DerivationError, ties_of
from metanet.derive import spec_of
from metanet.spec import WeightSpec
from metanet_zoo.checkpoint import Checkpoint, open_checkpoint
from metanet_zoo.errors import CheckpointError
from metanet_zoo.spec_cache import cache_key, cached_spec
from metanet_zoo.spec_files import find_spec_file, read_spec


@dataclass(frozen=True)
class SpecSource:
    """A checkpoint's spec and where it comes from.

    Args:
        spec: under the checkpoint's names.
        origin: where it comes from, one sentence.
        notes: what was assumed or done on the way, one sentence each.
        kind: ``file``, ``huggingface``, ``sequential``, or ``module`` for one at hand.
        model: of a sequential network or a module: a network with these names and shapes.
        inputs: what that network runs on.
        config: of a Hugging Face model: its configuration.
        names: of a Hugging Face model: entry -> its name in the checkpoint, where they are one tensor.
        converted: of a Hugging Face model: whether some entries are converted to make others.
    """

    spec: WeightSpec
    origin: str
    notes: tuple[str, ...]
    kind: str
    model: nn.Module | None = None
    inputs: tuple[Tensor, ...] = ()
    config: Any = None
    names: Mapping[str, str] = field(default_factory=dict)
    converted: bool = False

    @property
    def provenance(self) -> str:
        """Origin and notes as one text."""
        return "; ".join((self.origin, *self.notes))


def spec_of_checkpoint(
    source: str | os.PathLike[str] | Checkpoint,
    *,
    spec_file: Path | None = None,
    activation: str | None = None,
    trust_remote_code: bool = False,
    cache: bool = True,
) -> tuple[WeightSpec, str]:
    """Return the symmetry of a checkpoint's weights, and where it is known from.

    Args:
        source: whatever `metanet_zoo.open_checkpoint` opens; no tensor is read.
        spec_file: take this spec, in the notation or JSON, instead of looking for one.
        activation: of a plain sequential network, e.g. ``relu`` or ``sine:30``; unknown if None.
        trust_remote_code: run the code that a Hugging Face folder brings along.
        cache: keep and use derived specs in the user's cache folder (`metanet_zoo.spec_cache`).

    Returns:
        The spec, under the checkpoint's names and checked against its shapes; the provenance, one text.

    Raises:
        CheckpointError: the source cannot be opened, or nothing tells its symmetry: why, and how to help.
        ValueError: a spec file that cannot be read or does not fit.

    Example:
        >>> import torch
        >>> layers = {"0.weight": torch.ones(8, 2), "0.bias": torch.ones(8), "2.weight": torch.ones(1, 8)}
        >>> spec, provenance = spec_of_checkpoint(open_checkpoint(layers))
        >>> [str(group) for group in spec.groups], provenance.split(":")[0]
        (['layer0: 8'], 'a plain sequential network by its names and shapes')
    """
    found = find_spec(
        source, spec_file=spec_file, activation=activation, trust_remote_code=trust_remote_code, cache=cache
    )
    return found.spec, found.provenance


def find_spec(
    source: str | os.PathLike[str] | Checkpoint,
    *,
    spec_file: Path | None = None,
    activation: str | None = None,
    trust_remote_code: bool = False,
    cache: bool = True,
) -> SpecSource:
    """Return what `spec_of_checkpoint` does, with what a proof needs; the arguments are the same."""
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    shapes = {name: checkpoint.shape(name) for name in checkpoint}
    file = spec_file or find_spec_file(checkpoint.files)
    if file is not None:
        if activation is not None:
            raise ValueError(f"the spec is in {file}; leave out --activation, or remove the file")
        return SpecSource(read_spec(file, shapes), f"read from {file}", checkpoint.notes, "file")
    folder = checkpoint.files[0].parent if checkpoint.files else None
    if folder is not None and activation is None and _has_config(folder):
        found = _from_config(folder, shapes, trust_remote_code, cache)
    else:
        found = _sequential(shapes, activation)
    return replace(found, notes=(*checkpoint.notes, *found.notes))


def _has_config(folder: Path) -> bool:
    """Tell whether a folder has the configuration of a model of ``transformers``."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not JSON ({error}), expected the configuration of the model beside it; fetch the file "
            "again, or put a spec beside the weights"
        ) from None
    return isinstance(raw, dict) and "model_type" in raw


def _from_config(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], trust_remote_code: bool, cache: bool
) -> SpecSource:
    # Imported here: transformers takes seconds to import, and is an optional dependency.
    from metanet_zoo.huggingface_model import build_model, read_config, transformers_version

    config = read_config(folder, trust_remote_code=trust_remote_code)
    built = build_model(config, trust_remote_code=trust_remote_code)
    from metanet_zoo.huggingface_names import StoredModel, map_names, stored_spec

    model = built.model
    kind = type(model).__name__
    mapping = map_names(model, shapes, ties_of(model))
    key = cache_key(
        {
            "config": (folder / "config.json").read_text(encoding="utf-8"),
            "shapes": {name: list(shape) for name, shape in shapes.items()},
            "transformers": transformers_version(),
            "class": f"{type(model).__module__}.{kind}",
            "code": trust_remote_code,
        }
    )

    def derive() -> WeightSpec:
        network = StoredModel(model, mapping, shapes) if mapping.conversions else model
        try:
            return stored_spec(spec_of(network, **built.inputs), mapping, shapes)
        except DerivationError as error:
            raise CheckpointError(
                f"{kind}, built from {folder / 'config.json'}, cannot be traced ({error}). Put a spec beside "
                "the weights, or inspect package.module:factory with --input"
            ) from error

    usable = cache and not trust_remote_code
    spec, known = cached_spec(key if usable else None, derive)
    spec.check(shapes)
    origin = (
        f"derived from {kind} of transformers {transformers_version()}, built from "
        f"{folder / 'config.json'} without weights" + (" (from the cache)" if known else "")
    )
    return SpecSource(
        spec,
        origin,
        (*built.notes, *mapping.notes(kind)),
        "huggingface",
        config=config,
        names=mapping.renamed,
        converted=bool(mapping.conversions),
    )


def _sequential(shapes: Mapping[str, tuple[int, ...]], activation: str | None) -> SpecSource:
    from metanet_zoo.sequential import guess_sequential

    guess = guess_sequential(shapes, activation)
    spec = spec_of(guess.model, *guess.inputs)
    spec.check(shapes)
    origin = f"a plain sequential network by its names and shapes: {guess.description}"
    return SpecSource(spec, origin, guess.assumptions, "sequential", guess.model, guess.inputs)
