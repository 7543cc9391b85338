"""Checkpoints whose gains are folded, so that their residual streams may be turned."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metanet.axis import Fixed
from metanet.derive import spec_of
from metanet.freedoms.folding import find_folds, fold_gains
from metanet.spec import WeightSpec
from metanet_zoo.errors import CheckpointError
from metanet_zoo.matching.proof import MAX_VALUES
from metanet_zoo.matching.source_tensors import SourceTensors
from metanet_zoo.merging.companions import DTYPE_NAMES, OTHER_FILES, TOKENIZER_FILES
from metanet_zoo.merging.sources import Model, TensorSource
from metanet_zoo.saving import save_checkpoint
from metanet_zoo.spec_source import SpecSource


@dataclass(frozen=True)
class Folding:
    """How the models of an architecture are folded.

    Args:
        found: the spec of folded models, gains being fixed, and where it comes from.
        plain: the spec of models as they are.
        gains: entries that become one.
    """

    found: SpecSource
    plain: WeightSpec
    gains: tuple[str, ...]

    def write(self, model: Model, folder: Path) -> str:
        """Write a model with its gains folded into what reads them; it computes the same.

        Args:
            model: of the architecture.
            folder: that is to appear.

        Returns:
            Name of the dtype that the model had.
        """
        assert model.folder is not None
        entries = model.source.entries()
        values = sum(entry.size for entry in entries.values())
        # In float64, what is compared before and after a rotation differs by no rounding of its own.
        wide = torch.float64 if values <= MAX_VALUES else torch.float32
        tensors = SourceTensors(model.source)
        state = {name: t.to(wide) if (t := tensors[name]).is_floating_point() else t for name in tensors}
        try:
            folded = fold_gains(state, self.plain)
        except ValueError as error:
            raise CheckpointError(f"{model.label}: {error}") from None
        folder.mkdir(parents=True)
        for name in ("config.json", *TOKENIZER_FILES, *OTHER_FILES):
            if (model.folder / name).is_file():
                shutil.copy(model.folder / name, folder / name)
        save_checkpoint(folder / "model.safetensors", folded, {"format": "pt"})
        kinds = {entry.dtype for entry in entries.values() if entry.dtype in DTYPE_NAMES}
        return DTYPE_NAMES[next(iter(kinds))] if len(kinds) == 1 else "float32"


def folding_of(found: SpecSource) -> Folding:
    """Find out how to fold the models that a configuration describes.

    Args:
        found: of a Hugging Face model.

    Raises:
        ValueError: no such model, or gains that cannot be folded.
    """
    if found.kind != "huggingface":
        raise ValueError(
            "turning a residual stream takes a transformer with a configuration beside it, so that its gains "
            "can be folded first; in Python, metanet.matching.orthogonal_matching takes any model"
        )
    from metanet_zoo.huggingface_model import build_model

    # With values: that the gains are one is what gives the stream its freedom.
    built = build_model(found.config, device="cpu")
    kind = type(built.model).__name__
    if found.converted or any(name != stored for name, stored in found.names.items()):
        raise ValueError(
            f"the checkpoint has other names than {kind}: save it with save_pretrained of that class first"
        )
    try:
        folds = find_folds(found.spec)
        folded = spec_of(fold_gains(built.model, found.spec), **built.inputs)
    except ValueError as error:
        raise ValueError(f"the gains of {kind} cannot be folded: {error}") from None
    gains = tuple(dict.fromkeys(fold.gain for fold in folds))
    missing = [name for name in found.spec if name not in folded.axes and name not in gains]
    if missing:
        raise ValueError(f"{kind}: folding loses {', '.join(missing[:5])}; it cannot be folded")
    shapes = found.spec.shapes
    entries = tuple(
        (name, folded.axes[name] if name in folded.axes else tuple(map(Fixed, shapes[name])))
        for name in found.spec
    )
    return Folding(
        replace(
            found,
            spec=replace(folded, entries=entries),
            origin=f"{found.origin}, its gains folded into what reads them",
        ),
        found.spec,
        gains,
    )


def check_folded(facts: Mapping[str, Any], source: TensorSource, label: str) -> None:
    """Raise unless the gains that an element expects to be one are one in a model.

    Args:
        facts: of the element's file; ``folded`` lists the gains.
        source: the model's tensors.
        label: of the model.

    Raises:
        CheckpointError: naming a gain that is not one.
    """
    names: Sequence[str] = facts.get("folded", ())
    tensors = SourceTensors(source)
    for name in names:
        if name in tensors and not bool((tensors[name] == 1).all()):
            raise CheckpointError(
                f"{label}: the gain {name!r} is not one, and the group element turns the stream behind it: "
                "it is for models with folded gains, as metanet match --method orthogonal --out writes them"
            )
