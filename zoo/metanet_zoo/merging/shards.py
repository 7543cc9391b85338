"""The output's files, laid out before anything is computed: which tensor in which shard at which byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from metanet_zoo.merging.sources import Entry

ALIGNMENT = 8
"""The header's length is a multiple of it, so that tensors of any dtype lie aligned in a mapped file."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of the output is written: in which file, from which byte of it on."""

    file: str
    offset: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Layout:
    """The output's files.

    Args:
        headers: file -> the bytes it begins with, length prefix included.
        sizes: file -> its size.
        places: tensor -> where it goes.
        index: text of the index, None for a single file.
    """

    headers: Mapping[str, bytes]
    sizes: Mapping[str, int]
    places: Mapping[str, Place]
    index: str | None

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())


def lay_out(
    entries: Mapping[str, Entry], metadata: Mapping[str, str], max_shard_size: int, stem: str = "model"
) -> Layout:
    """Distribute tensors over safetensors files.

    Args:
        entries: the tensors, in the order in which they are written.
        metadata: text for every file's header.
        max_shard_size: largest sum of the tensors' bytes in a file; a larger tensor gets one of its own.
        stem: beginning of the files' names.

    Returns:
        the layout; within a file wider dtypes come first, so that all tensors are aligned.
    """
    groups: list[dict[str, Entry]] = [{}]
    filled = 0
    for name, entry in entries.items():
        size = entry.size * entry.item_size
        if groups[-1] and filled + size > max_shard_size:
            groups.append({})
            filled = 0
        groups[-1][name] = entry
        filled += size
    headers: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    places: dict[str, Place] = {}
    for number, group in enumerate(groups, 1):
        file = f"{stem}.safetensors"
        if len(groups) > 1:
            file = f"{stem}-{number:05}-of-{len(groups):05}.safetensors"
        ordered = sorted(group.items(), key=lambda item: -item[1].item_size)
        header, starts, buffer = _header(dict(ordered), metadata)
        headers[file] = header
        sizes[file] = len(header) + buffer
        for name, entry in group.items():
            places[name] = Place(file, len(header) + starts[name], entry)
    index = None
    if len(groups) > 1:
        bytes_of_tensors = sum(entry.size * entry.item_size for entry in entries.values())
        weight_map = {name: places[name].file for name in sorted(places)}
        index = json.dumps({"metadata": {"total_size": bytes_of_tensors}, "weight_map": weight_map}, indent=2)
    return Layout(headers, sizes, places, index)


def _header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
    described: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    starts: dict[str, int] = {}
    position = 0
    for name, entry in entries.items():
        starts[name] = position
        stop = position + entry.size * entry.item_size
        described[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [position, stop],
        }
        position = stop
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, starts, position
