"""Which files make up a checkpoint: in a folder or a repository, and in a sharded index."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from metanet_zoo.errors import CheckpointError

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".th", ".ckpt", ".tar")
INDEX_SUFFIX = ".index.json"
GRAMS = "gram.safetensors"
"""File of Gram matrices in a model's folder; beside a single file its name goes before."""
TRAINING_STATE = re.compile(r"(training_args|optimizer|scheduler|rng_state|scaler)", re.IGNORECASE)
"""Files that a trainer leaves beside the weights and that hold none."""

_SHARD = re.compile(r"-\d+-of-\d+\.")


def choose_file(names: Collection[str], origin: str) -> str:
    """Choose the file that stands for a folder's checkpoint.

    In this order: `model.safetensors`, an index of safetensors shards, the only other safetensors file,
    `pytorch_model.bin`, an index of `.bin` shards, the only other file of `torch.save`.

    Args:
        names: names of the files that lie directly in the folder.
        origin: the folder or repository, for messages.

    Returns:
        one of the names.

    Raises:
        CheckpointError: none is there, or several are and none has a standard name.
    """
    for suffixes, standard in (
        ((".safetensors",), "model.safetensors"),
        (TORCH_SUFFIXES, "pytorch_model.bin"),
    ):
        if standard in names:
            return standard
        indices = sorted(
            name for suffix in suffixes for name in names if name.endswith(suffix + INDEX_SUFFIX)
        )
        files = sorted(name for name in names if name.endswith(suffixes) and not _holds_no_weights(name))
        for candidates in (indices, files):
            if len(candidates) == 1:
                return candidates[0]
            if candidates:
                raise CheckpointError(_ambiguous(origin, candidates))
    raise CheckpointError(
        f"{origin}: found no checkpoint among {len(names)} files, expected model.safetensors, "
        "model.safetensors.index.json, pytorch_model.bin or one file of safetensors or torch.save"
    )


def _holds_no_weights(name: str) -> bool:
    return TRAINING_STATE.match(name) is not None or name == GRAMS or name.endswith("." + GRAMS)


def read_index(path: Path) -> tuple[dict[str, str], dict[str, object]]:
    """Read a sharded checkpoint's index, `{"weight_map": {tensor: file}, "metadata": {…}}`.

    Args:
        path: the index; its shards must lie in or below its folder.

    Returns:
        file name by tensor name, in the index's order, and the metadata.

    Raises:
        CheckpointError: not such an index, or a file outside the folder.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}), expected an index with a weight_map") from None
    weight_map = raw.get("weight_map") if isinstance(raw, Mapping) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(
            f"{path}: no weight_map of tensor names to file names, which a sharded index must have; "
            "if this is another kind of JSON file, pass the checkpoint itself"
        )
    for name, file in weight_map.items():
        if not lies_inside(file):
            raise CheckpointError(
                f"{path}: tensor {name!r} is said to be in {file!r}, outside the index's folder; nothing was "
                "opened. Expected the plain name of a file beside the index"
            )
    metadata = raw.get("metadata")
    return weight_map, metadata if isinstance(metadata, dict) else {}


def require_shards(index: Path, files: Collection[str]) -> None:
    """Raise a CheckpointError that names the shards which do not lie where their index says."""
    missing = sorted(file for file in set(files) if not (index.parent / file).is_file())
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of {len(set(files))} files that the index names are missing: "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}; fetch them into {index.parent}"
        )


def lies_inside(file: str) -> bool:
    """Tell whether a relative name stays in its folder, by its letters alone.

    Links are not followed: a hub cache's snapshots are links into a folder of blobs, and rightly so.

    Example:
        >>> [lies_inside(file) for file in ("a.safetensors", "../a", "/a", "b/../../a", "c:\\\\a", "")]
        [True, False, False, False, False, False]
    """
    if not file or "\0" in file:
        return False
    for pure in (PurePosixPath(file), PureWindowsPath(file)):
        if pure.is_absolute() or pure.drive or pure.root or ".." in pure.parts or not pure.name:
            return False
    return True


def _ambiguous(origin: str, candidates: list[str]) -> str:
    listed = ", ".join(candidates[:6]) + (", …" if len(candidates) > 6 else "")
    if all(_SHARD.search(name) for name in candidates):
        return f"{origin}: shards without an index ({listed}); fetch their *{INDEX_SUFFIX} file too"
    return f"{origin}: {len(candidates)} checkpoints, none with a standard name ({listed}); pass one file"
