"""What a family of architectures is: a name, a group of the table, and a small network with its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Example: TypeAlias = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A network in evaluation mode, and the positional and keyword inputs it is called with."""


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture family.

    Args:
        name: unique in the table.
        group: heading it stands under, such as ``"text decoder"``.
        build: makes the smallest network that has all parts of the family, randomly initialised, with
            example inputs; equal from call to call.
    """

    name: str
    group: str
    build: Callable[[], Example]


def example(make: Callable[[], nn.Module], *args: Any, **kwargs: Any) -> Callable[[], Example]:
    """Return a builder of a module made under a fixed seed, called with the given inputs."""

    def build() -> Example:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make().eval()
        return model, args, dict(kwargs)

    return build


def families(group: str, builders: Mapping[str, Callable[[], Example]]) -> list[Family]:
    """Return the families of one group of the table."""
    return [Family(name, group, build) for name, build in builders.items()]


def collected(*lists: Iterable[Family]) -> dict[str, Family]:
    """Return families by name.

    Raises:
        ValueError: a name is given twice.
    """
    found: dict[str, Family] = {}
    for family in (family for listed in lists for family in listed):
        if family.name in found:
            raise ValueError(f"two architecture families are called {family.name!r}; give each its own name")
        found[family.name] = family
    return found


def normal(*shape: int) -> Tensor:
    """A deterministic standard normal tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def tokens(batch: int, length: int, vocabulary: int = 61) -> Tensor:
    """Deterministic token ids; none is below 5, where padding and other special tokens lie."""
    return 5 + (torch.arange(batch * length) * 7).reshape(batch, length) % (vocabulary - 5)
