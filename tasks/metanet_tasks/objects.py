"""Networks named on a command line: ``package.module:factory`` and inputs such as ``f32[1,3,32,32]``."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

DTYPES: dict[str, torch.dtype] = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
    "c64": torch.complex64,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "bool": torch.bool,
}

_OBJECT = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")
_INPUT = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<shape>\s*(?:\d+\s*(?:,\s*\d+\s*)*)?)\](?::(?P<limit>\d+))?")


def is_object(source: str) -> bool:
    """Tell whether a source is written as ``package.module:factory``; an existing path never is."""
    return _OBJECT.fullmatch(source) is not None and not Path(source).exists()


def load_object(source: str) -> nn.Module:
    """Import ``package.module:factory`` and return its network, in evaluation mode.

    The current folder is searched first, then whatever is installed. The name is a module, or something
    that returns one when called without arguments (a class or a function).

    Raises:
        ValueError: no such module or name, or no network came out of it.
    """
    match = _OBJECT.fullmatch(source)
    if match is None:
        raise ValueError(f"{source!r} is no object; expected package.module:factory")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: object = importlib.import_module(match["module"])
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{source}: no module {error.name!r} here ({folder}) or among what is installed"
        ) from None
    for part in match["name"].split("."):
        if not hasattr(found, part):
            names = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
            raise ValueError(
                f"{source}: {match['module']} has no {match['name']!r}; "
                f"it has {', '.join(names[:12]) or 'nothing to call'}"
            )
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise ValueError(
                f"{source} is a {type(found).__name__}; expected a module or something that returns one"
            )
        try:
            found = found()
        except TypeError as error:
            raise ValueError(
                f"{source} could not be called without arguments ({error}); name a function that needs none"
            ) from None
    if not isinstance(found, nn.Module):
        raise ValueError(f"{source} returned a {type(found).__name__}; expected a torch.nn.Module")
    return found.eval()


def network_of(source: str | None) -> nn.Module | None:
    """Import the network that ``--network`` names, if it names one.

    Raises:
        ValueError: it names no network.
    """
    if source is None:
        return None
    if not is_object(source):
        raise ValueError(f"{source}: expected a network in Python, as package.module:factory")
    return load_object(source)


def parse_input(text: str, generator: torch.Generator) -> Tensor:
    """Draw an input tensor from its description: a dtype, a shape and, for integers, an upper limit.

    Floating-point values are standard normal; integers are uniform in ``[0, limit)``, limit 2 unless given
    (``i64[1,16]:1000`` for token ids), so that they index any embedding.

    Args:
        text: ``f32[1,3,32,32]``, ``i64[1,16]``, ``i64[1,16]:1000``, ``f32[]`` for a scalar.
        generator: source of the values.

    Raises:
        ValueError: the text is not such a description.

    Example:
        >>> parse_input("f32[1,3,8,8]", torch.Generator()).shape
        torch.Size([1, 3, 8, 8])
    """
    match = _INPUT.fullmatch(text.strip())
    if match is None or match["dtype"] not in DTYPES:
        raise ValueError(
            f"unreadable input {text!r}; expected a dtype and a shape such as f32[1,3,32,32] or i64[1,16], "
            f"the dtype one of {', '.join(DTYPES)}"
        )
    dtype = DTYPES[match["dtype"]]
    shape = [int(size) for size in match["shape"].split(",") if size.strip()]
    if dtype.is_floating_point or dtype.is_complex:
        if match["limit"]:
            raise ValueError(f"{text!r}: an upper limit is for integers; leave out ':{match['limit']}'")
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    limit = int(match["limit"] or 2)
    if limit < 1 or (dtype != torch.bool and limit - 1 > torch.iinfo(dtype).max):
        raise ValueError(f"{text!r}: the upper limit must be at least 1 and fit {match['dtype']}")
    return torch.randint(limit, shape, generator=generator).to(dtype)
