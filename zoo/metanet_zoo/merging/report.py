"""What a merge reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did, or would do.

    Attributes:
        out: the output.
        method: name of the method.
        models: the models' names, the base first.
        tensors: number of tensors.
        parameters: number of values.
        files: name -> bytes.
        dtype: safetensors names of the output's dtypes.
        seconds: time taken; of a dry run, the estimate.
        memory: estimate of the peak of anonymous memory, in bytes.
        threads: number of threads.
        resumed: number of tensors taken over from an interrupted run.
        nonfinite: tensors that hold NaN or infinities.
        notes: what the user should know, one sentence each.
        dry: whether nothing was written.
        pushed: address of the commit on the hub, None if it was not asked for.
    """

    out: str
    method: str
    models: tuple[str, ...]
    tensors: int
    parameters: int
    files: Mapping[str, int]
    dtype: tuple[str, ...]
    seconds: float
    memory: int
    threads: int
    resumed: int = 0
    nonfinite: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    dry: bool = False
    pushed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: _plain(getattr(self, name)) for name in self.__slots__}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
