"""From what training scripts save to named tensors: the dict that holds them, the names without wrappers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metanet_zoo.errors import CheckpointError

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "module", "params", "weights", "ema")
"""Keys under which training scripts keep the weights, in order of preference; averaged weights come last."""

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What `DataParallel`, `DistributedDataParallel` and `torch.compile` put before every name."""

MAX_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """Named tensors, plain values met on the way to them (epoch, accuracy, …), and what was done."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, object]
    notes: tuple[str, ...]


def unwrap(saved: object, origin: str, key: str | None = None) -> Unwrapped:
    """Find the named tensors in a saved object.

    From the outermost dict, follow at most three times: the key asked for (first step only), else the
    first of `WRAPPER_KEYS` that leads to tensors, else the dict itself if it holds tensors, else the
    only dict in it that does.

    Args:
        saved: what was loaded: a state dict, or dicts around one.
        origin: the file's name, for messages.
        key: the key of the dict to take (`"ema"`), of nested ones joined by `/` (`"models/generator"`).

    Returns:
        the tensors, detached; plain values as metadata; notes on each step taken and on everything left
        out.

    Raises:
        CheckpointError: no tensors, or several dicts of them and no way to tell which is meant.
    """
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{origin}: found a {type(saved).__name__}, expected a dict of named tensors")
    level: Mapping[object, object] = saved
    path: list[str] = []
    notes: list[str] = []
    metadata: dict[str, object] = {}
    asked = [] if key is None else [key] if key in level else key.split("/")
    for depth in range(len(asked) + MAX_DEPTH):
        step = asked[depth] if depth < len(asked) else _next_key(level, origin)
        if step is None:
            break
        inner = level.get(step)
        if not isinstance(inner, Mapping):
            raise CheckpointError(
                f"{origin}: no dict under {step!r}, as key={key!r} asks; "
                f"dicts with tensors: {_choices(level)}"
            )
        notes.append(f"took the dict under {step!r}")
        _leave_out({name: value for name, value in level.items() if name != step}, path, notes, metadata)
        path.append(step)
        level = inner
    tensors = _named_tensors(level)
    if not tensors:
        raise CheckpointError(
            f"{origin}: no tensors within {MAX_DEPTH} levels, found {_outline(level)}; expected a dict of "
            f"named tensors, alone or under one of {', '.join(WRAPPER_KEYS)}, or name its key (key=…)"
        )
    _leave_out({name: value for name, value in level.items() if name not in tensors}, path, notes, metadata)
    detached = {name: tensor.detach() for name, tensor in tensors.items()}
    return Unwrapped(detached, metadata, tuple(notes))


def common_prefix(names: Iterable[str]) -> str:
    """Longest run of `WRAPPER_PREFIXES` that every name carries.

    A prefix is taken only if all names have it, so names that differ with it differ without it.

    Args:
        names: names of tensors.

    Returns:
        what to remove from the front of every name, `""` if there is nothing.

    Example:
        >>> common_prefix(["module._orig_mod.fc.weight", "module._orig_mod.fc.bias"])
        'module._orig_mod.'
        >>> common_prefix(["module.fc.weight", "n_averaged"])
        ''
    """
    names = list(names)
    prefix = ""
    while True:
        longer = next(
            (
                prefix + part
                for part in WRAPPER_PREFIXES
                if names and all(name.startswith(prefix + part) and name != prefix + part for name in names)
            ),
            None,
        )
        if longer is None:
            return prefix
        prefix = longer


def _named_tensors(value: object) -> dict[str, Tensor]:
    if not isinstance(value, Mapping):
        return {}
    return {
        name: inner
        for name, inner in value.items()
        if isinstance(name, str) and isinstance(inner, torch.Tensor)
    }


def _leads_to_tensors(value: object, depth: int = MAX_DEPTH) -> bool:
    if not isinstance(value, Mapping) or depth == 0:
        return False
    return bool(_named_tensors(value)) or any(
        _leads_to_tensors(value.get(key), depth - 1) for key in WRAPPER_KEYS
    )


def _next_key(level: Mapping[object, object], origin: str) -> str | None:
    for key in WRAPPER_KEYS:
        if _leads_to_tensors(level.get(key)):
            return key
    if _named_tensors(level):
        return None
    holders = [name for name, value in level.items() if isinstance(name, str) and _leads_to_tensors(value)]
    if len(holders) > 1:
        raise CheckpointError(
            f"{origin}: several dicts of tensors ({_choices(level)}) and none under a usual name "
            f"({', '.join(WRAPPER_KEYS)}); say which to take with key=…"
        )
    return holders[0] if holders else None


def _leave_out(
    rest: Mapping[object, object], path: Sequence[str], notes: list[str], metadata: dict[str, object]
) -> None:
    """Keep plain values as metadata, and note everything else that does not become a tensor."""
    plain: list[str] = []
    dicts: list[str] = []
    other: list[str] = []
    for name, value in rest.items():
        if isinstance(value, str | int | float | None):
            metadata.setdefault(str(name), value)
            plain.append(str(name))
        elif _leads_to_tensors(value):
            dicts.append(str(name))
        else:
            other.append(f"{name} ({type(value).__name__})")
    if dicts:
        first = "/".join([*path, dicts[0]])
        notes.append(f"left out other dicts of tensors: {_listed(dicts)} (key={first!r} takes that one)")
    if plain:
        notes.append(f"kept as metadata, not as tensors: {_listed(plain)}")
    if other:
        notes.append(f"left out: {_listed(other)}")


def _choices(level: Mapping[object, object]) -> str:
    names = [repr(name) for name, value in level.items() if _leads_to_tensors(value)]
    return ", ".join(names) or "none"


def _outline(level: Mapping[object, object]) -> str:
    if not level:
        return "an empty dict"
    return _listed([f"{name} ({type(value).__name__})" for name, value in level.items()])


def _listed(names: Sequence[str], limit: int = 6) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
