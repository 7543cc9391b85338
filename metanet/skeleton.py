"""The skeleton of a network: its operations, what they read and how they are configured, without tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from metanet.axis import Axis, parse_axes

Attribute: TypeAlias = bool | int | float | str | tuple["Attribute", ...] | None


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a network.

    Args:
        kind: the field's name of it: ``input``, ``constant``, ``linear``, ``conv2d``, ``batch_norm``,
            ``add``, ``relu``, ``sdpa``, ``lstm``, ``output``, …; without a rule its ATen name. The whole
            vocabulary stands in `metanet.rules`.
        inputs: positions, in the skeleton, of the operations whose results it reads.
        parameters: ``(role, state-dict entry)``, e.g. ``("weight", "fc.weight")``.
        attributes: ``(name, value)`` of what configures it: stride, padding, groups, eps, omega, heads, …
        axes: one axis per dimension of its result (the first one's, when it has several). Rows sorted into
            blocks of experts have the group of experts as theirs (`metanet.nesting.expert_rows`).
    """

    kind: str
    inputs: tuple[int, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    attributes: tuple[tuple[str, Attribute], ...] = ()
    axes: tuple[Axis, ...] = ()

    def attribute(self, name: str, default: Attribute = None) -> Attribute:
        """Return an attribute by name."""
        return next((value for key, value in self.attributes if key == name), default)

    def parameter(self, role: str) -> str | None:
        """Return the state-dict entry that plays a role, or None."""
        return next((entry for key, entry in self.parameters if key == role), None)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "kind": self.kind,
            "inputs": list(self.inputs),
            "parameters": [list(pair) for pair in self.parameters],
            "attributes": [list(pair) for pair in self.attributes],
            "axes": " ".join(map(str, self.axes)),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Operation:
        """Read what `to_dict` returned."""
        return cls(
            kind=str(data["kind"]),
            inputs=tuple(int(i) for i in data["inputs"]),
            parameters=tuple((str(role), str(entry)) for role, entry in data["parameters"]),
            attributes=tuple((str(name), _freeze(value)) for name, value in data["attributes"]),
            axes=parse_axes(data["axes"]),
        )


def _freeze(value: Any) -> Attribute:
    if isinstance(value, list):
        return tuple(_freeze(item) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"an attribute is a number, a text or a list of them, found {type(value).__name__}")
