"""How recipes name a model: ``path@revision+lora@revision``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Location:
    """A folder, a file or a hub repository, at a revision if one is given."""

    path: str
    revision: str | None = None

    @classmethod
    def parse(cls, value: object) -> Location:
        """Read ``path`` or ``path@revision``, or a mapping of these two.

        Raises:
            ValueError: neither.
        """
        if isinstance(value, Mapping) and "path" in value and value.keys() <= {"path", "revision"}:
            return cls(str(value["path"]), None if value.get("revision") is None else str(value["revision"]))
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"found {value!r}, expected a path or repository, perhaps @revision")
        path, at, revision = value.rpartition("@")
        # An @ within a path's folder is part of the name.
        if at and path and "/" not in revision and revision:
            return cls(path, revision)
        return cls(value)

    def __str__(self) -> str:
        return self.path if self.revision is None else f"{self.path}@{self.revision}"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model, and the adapter to be added to it.

    Example:
        >>> reference = ModelReference.parse("org/model@v1+adapter")
        >>> reference.model.revision, reference.lora.path, str(reference)
        ('v1', 'adapter', 'org/model@v1+adapter')
    """

    model: Location
    lora: Location | None = None

    @classmethod
    def parse(cls, value: object) -> ModelReference:
        """Read the text form, or a mapping ``{model: …, lora: …}``.

        Raises:
            ValueError: neither.
        """
        if isinstance(value, Mapping):
            inner = value.get("model")
            if inner is None or not value.keys() <= {"model", "lora", "override_architecture"}:
                raise ValueError(f"found {dict(value)!r}, expected model and perhaps lora")
            if value.get("override_architecture") is not None:
                raise ValueError(
                    "'override_architecture' is a key of mergekit's that is not supported: tensors are "
                    "merged by name, whatever the architecture; change architectures in config.json instead"
                )
            lora = value.get("lora")
            return cls(Location.parse(inner), None if lora is None else Location.parse(lora))
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"found {value!r}, expected path[@revision][+adapter[@revision]]")
        model, plus, lora_text = value.partition("+")
        if plus and model and lora_text:
            return cls(Location.parse(model), Location.parse(lora_text))
        return cls(Location.parse(value))

    def __str__(self) -> str:
        return str(self.model) if self.lora is None else f"{self.model}+{self.lora}"
