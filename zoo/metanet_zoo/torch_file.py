"""Files of `torch.save`, read without running any code that they name."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from metanet_zoo.errors import CheckpointError

ZIP_MAGIC = b"PK\x03\x04"

INERT_GLOBALS = (argparse.Namespace,)
"""Classes allowed beside torch's own list: a bag of attributes, met in many training scripts' checkpoints."""


def load_torch_file(path: Path) -> object:
    """Load what `torch.save` wrote, tensors and plain containers only, memory-mapped if zipped.

    Args:
        path: a zip archive (torch 1.6 and later) or a legacy pickle.

    Returns:
        the saved object; tensors on the CPU. Those of a zip archive are mapped: reading one touches its
        bytes only, and writing to one changes this process's copy and never the file.

    Raises:
        CheckpointError: the pickle names code beyond plain containers (nothing of it has run), or is
            damaged.
    """
    with path.open("rb") as file:
        zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    try:
        with torch.serialization.safe_globals(list(INERT_GLOBALS)):
            loaded: object = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except MemoryError:
        raise
    except Exception as error:
        raise _explained(path, error) from None
    return loaded


def _explained(path: Path, error: Exception) -> CheckpointError:
    message = str(error)
    if "TorchScript" in message:
        return CheckpointError(
            f"{path}: a TorchScript program, expected a saved state dict; if you trust its author, run "
            "safetensors.torch.save_file(torch.jit.load(path).state_dict(), 'model.safetensors'), open that"
        )
    wanted = _unsafe_globals(path, message)
    if wanted:
        return CheckpointError(
            f"{path}: this pickle needs code ({', '.join(wanted)}), expected tensors in plain containers; "
            "nothing of it was run. If you trust its author, load it in a sandbox that has this code, with "
            "torch.load(path, weights_only=False), save the state dict alone with "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors'), and open that file"
        )
    # torch puts advice about weights_only=False before the reason and a link after it.
    lines = [line for line in message.splitlines() if line.strip() and "Check the documentation" not in line]
    reason = lines[-1].strip().removeprefix("WeightsUnpickler error: ") if lines else "no reason given"
    return CheckpointError(
        f"{path}: damaged, or not written by torch.save ({type(error).__name__}: {reason[:300]}); "
        "fetch the file again or save it as safetensors"
    )


def _unsafe_globals(path: Path, message: str) -> Sequence[str]:
    named = re.findall(r"GLOBAL (\S+)", message)
    if not named:
        return ()
    try:
        # Lists the names in the pickle's stream without importing any; knows zip archives only.
        with torch.serialization.safe_globals(list(INERT_GLOBALS)):
            listed = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        listed = []
    return listed or named
