"""Reading a zoo: many networks of one architecture as stacked tensors and one row of metadata each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from metanet_zoo.architectures import build_architecture
from metanet_zoo.errors import CheckpointError
from metanet_zoo.manifest import MANIFEST, UNFINISHED, Manifest, Shard, ZooError
from metanet_zoo.safetensors_file import SafetensorsFile
from metanet_zoo.writer import SPEC


class ZooBatch(NamedTuple):
    """Some models of a zoo: `weights` name -> `[models, …]`, `columns` name -> values, their `indices`."""

    weights: dict[str, Tensor]
    columns: dict[str, Any]
    indices: Tensor


@dataclass(frozen=True, slots=True)
class ZooReport:
    """Result of `Zoo.verify`: sizes, non-finite values per entry, and every problem found."""

    models: int
    bytes: int
    non_finite: Mapping[str, int]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every file is what the manifest says; non-finite weights are counted, not a problem."""
        return not self.problems


class Zoo:
    """A folder of models of one architecture; tensors are memory-mapped and read where asked for.

    Args:
        path: the folder.
        manifest: as `Manifest.read` gives it; use `Zoo.open`.

    References:
        Schürholt et al. (2022), Model Zoos: A Dataset of Diverse Populations of Neural Network Models,
        https://arxiv.org/abs/2209.14764, for the notion; there, a zoo is a folder per model.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._starts = manifest.starts
        self._files: dict[int, SafetensorsFile] = {}

    @staticmethod
    def open(path: str | Path) -> Zoo:
        """Open a finished zoo; only its manifest is read.

        Raises:
            ZooError: the folder does not exist, holds no zoo or an unfinished one, or its manifest is broken.
        """
        folder = Path(path)
        if (folder / MANIFEST).is_file():
            return Zoo(folder, Manifest.read(folder / MANIFEST))
        if (folder / UNFINISHED).is_file():
            done = len(Manifest.read(folder / UNFINISHED))
            raise ZooError(
                f"{folder} holds an unfinished zoo ({done} models are whole); run the command that began it "
                "again to finish it"
            )
        raise ZooError(f"{folder} holds no zoo: there is no {MANIFEST} in it")

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        name = self.architecture.get("name", "unknown architecture")
        return f"Zoo({str(self.path)!r}: {len(self)} models, {name}, {self.num_parameters} parameters each)"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["manifest"])  # type: ignore[misc]

    @property
    def architecture(self) -> Mapping[str, Any]:
        """Settings for `build_architecture`; empty if the networks' code is not known."""
        return self.manifest.architecture

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """State-dict name -> shape in one model."""
        return {name: entry.shape for name, entry in self.manifest.entries.items()}

    @property
    def num_parameters(self) -> int:
        """Values per model."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the labels mean; empty if they are only numbers."""
        return self.manifest.label_names

    @property
    def settings(self) -> Mapping[str, Any]:
        """How the networks were made."""
        return self.manifest.settings

    @property
    def spec_json(self) -> str | None:
        """The networks' symmetry as JSON text, if it is stored."""
        file = self.path / SPEC
        return file.read_text(encoding="utf-8") if file.is_file() else None

    @cached_property
    def metadata(self) -> pa.Table:
        """One row per model, in the order of the models.

        Raises:
            ZooError: a file of metadata is missing, broken, or has another number of rows than its shard.
        """
        return pa.concat_tables([self._rows(shard) for shard in self.manifest.shards])

    def column(self, name: str) -> Tensor | list[Any]:
        """One column of the metadata: a tensor if it is numeric without gaps, otherwise a list.

        Raises:
            KeyError: there is no such column.
        """
        if name not in self.manifest.columns:
            raise KeyError(f"{self.path} has no column {name!r}; it has {', '.join(self.manifest.columns)}")
        values = self.metadata.column(name)
        kind = values.type
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if numeric and values.null_count == 0:
            return torch.from_numpy(values.to_numpy().copy())
        return list(values.to_pylist())

    @property
    def labels(self) -> Tensor:
        """The column `label`, `[models]` int64.

        Raises:
            ZooError: the models have no labels.
        """
        labels = self.column("label") if "label" in self.manifest.columns else None
        if not isinstance(labels, Tensor):
            raise ZooError(
                f"{self.path} has no column of labels; its columns are {list(self.manifest.columns)}"
            )
        return labels.long()

    def build_module(self) -> nn.Module:
        """A freshly initialised network of the zoo's architecture.

        Raises:
            ZooError: the architecture is not known, or its state dict is not what the zoo holds.
        """
        if not self.architecture:
            raise ZooError(
                f"{self.path} does not say how its networks are built; load their state dicts instead"
            )
        module = build_architecture(self.architecture)
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        if shapes != self.shapes:
            raise ZooError(
                f"{self.path}: the architecture {dict(self.architecture)} has entries {shapes}, "
                f"the zoo {self.shapes}"
            )
        return module

    def read(self, indices: slice | Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Stacked state-dict entries of some models.

        Args:
            indices: a slice, or the numbers of the models in any order; negative ones count from the end.

        Returns:
            name -> `[models, …]`, in the order of `indices`, in memory of their own.

        Raises:
            IndexError: there is no such model.
            ZooError: a shard is missing or broken.
        """
        chosen = self._indices(indices)
        order = torch.argsort(chosen)
        ordered = chosen[order]
        bounds = torch.searchsorted(ordered, torch.tensor(self._starts)).tolist()
        out = {
            name: torch.empty((len(chosen), *entry.shape), dtype=getattr(torch, entry.dtype))
            for name, entry in self.manifest.entries.items()
        }
        for shard, (start, stop) in enumerate(pairwise(bounds)):
            if start == stop:
                continue
            rows, places = ordered[start:stop] - self._starts[shard], order[start:stop]
            contiguous = bool((rows == torch.arange(int(rows[0]), int(rows[0]) + len(rows))).all())
            for name, tensor in out.items():
                stored = self._stored(shard, name)
                part = stored[int(rows[0]) : int(rows[-1]) + 1] if contiguous else stored[rows]
                tensor[places] = part
        return out

    def load(self) -> dict[str, Tensor]:
        """All models as stacked tensors in memory."""
        return self.read(slice(None))

    def state_dict(self, index: int) -> dict[str, Tensor]:
        """State dict of one model."""
        return {name: tensor[0] for name, tensor in self.read([index]).items()}

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: int | None = None,
        indices: Tensor | None = None,
        columns: Sequence[str] = (),
        drop_last: bool = False,
    ) -> Iterator[ZooBatch]:
        """Stream models in batches.

        Args:
            batch_size: models per batch.
            shuffle: seed of the order; None keeps the order of `indices`.
            indices: which models, e.g. one part of `split`; all if None.
            columns: metadata to come along.
            drop_last: leave out a last, smaller batch.

        Yields:
            `ZooBatch`es.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}")
        chosen = torch.arange(len(self)) if indices is None else self._indices(indices)
        if shuffle is not None:
            chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(shuffle))]
        values = {name: self.column(name) for name in columns}
        for part in chosen.split(batch_size):
            if drop_last and len(part) < batch_size:
                return
            picked = {
                name: column[part] if isinstance(column, Tensor) else [column[i] for i in part.tolist()]
                for name, column in values.items()
            }
            yield ZooBatch(self.read(part), picked, part)

    def split(
        self, fractions: Mapping[str, float], seed: int = 0, *, group_by: str | None = "image"
    ) -> dict[str, Tensor]:
        """Divide the models at random.

        Args:
            fractions: name of the part -> its share; the shares add up to one.
            seed: of the division.
            group_by: models with the same value in this column (the views of one image) stay together;
                ignored where the zoo has no such column.

        Returns:
            name -> numbers of its models, ascending; every model is in exactly one part.

        Raises:
            ValueError: a share is negative or they do not add up to one.
        """
        if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
            raise ValueError(f"the shares must be at least 0 and add up to 1, found {dict(fractions)}")
        generator = torch.Generator().manual_seed(seed)
        if group_by is not None and group_by in self.manifest.columns:
            members = self._group_numbers(group_by)
        else:
            members = torch.arange(len(self))
        groups = int(members.max()) + 1
        order = torch.empty(groups, dtype=torch.long)
        order[torch.randperm(groups, generator=generator)] = torch.arange(groups)
        place = (order[members] + 0.5) / groups
        parts, start = {}, 0.0
        for position, (name, share) in enumerate(fractions.items()):
            stop = start + share if position < len(fractions) - 1 else 1.0
            parts[name] = torch.nonzero((place >= start) & (place < stop)).flatten()
            start = stop
        return parts

    def split_by(self, column: str = "split") -> dict[str, Tensor]:
        """Divide the models by the values of a column of the metadata."""
        values = self.column(column)
        listed = [str(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]
        return {
            name: torch.tensor([i for i, value in enumerate(listed) if value == name])
            for name in sorted(set(listed))
        }

    def verify(self) -> ZooReport:
        """Read every byte and hold it against the manifest.

        Returns:
            a report of hashes, sizes, shapes, rows and files that do not belong; it does not raise.
        """
        problems: list[str] = []
        non_finite = dict.fromkeys(self.manifest.entries, 0)
        size = 0
        known = {MANIFEST, SPEC}
        for index, shard in enumerate(self.manifest.shards):
            known |= {shard.weights, shard.models}
            size += shard.weights_bytes
            for name, expected in (
                (shard.weights, shard.weights_sha256),
                (shard.models, shard.models_sha256),
            ):
                file = self.path / name
                if not file.is_file():
                    problems.append(f"{name} is missing")
                elif hashlib.sha256(file.read_bytes()).hexdigest() != expected:
                    problems.append(f"{name} has changed since it was written (its sha256 differs)")
            try:
                self._rows(shard)
                for name in non_finite:
                    stored = self._stored(index, name)
                    if stored.is_floating_point():
                        non_finite[name] += int((~stored.isfinite()).sum())
            except ZooError as error:
                problems.append(str(error))
        stray = sorted(file.name for file in self.path.iterdir() if file.name not in known)
        problems += [f"{name} does not belong to the zoo" for name in stray]
        return ZooReport(len(self), size, non_finite, tuple(problems))

    def _group_numbers(self, column: str) -> Tensor:
        """`[models]`, equal for models with equal values in `column` (and in `source`, in a merged zoo)."""
        keys = [column, *(["source"] if "source" in self.manifest.columns else [])]
        values = list(zip(*(self.metadata.column(key).to_pylist() for key in keys), strict=True))
        numbers: dict[Any, int] = {}
        return torch.tensor([numbers.setdefault(value, len(numbers)) for value in values])

    def _indices(self, indices: slice | Sequence[int] | Tensor) -> Tensor:
        if isinstance(indices, slice):
            return (
                torch.arange(len(self))[indices]
                if (indices.step or 1) > 0
                else torch.tensor(range(len(self))[indices])
            )
        chosen = torch.as_tensor(indices, dtype=torch.long).flatten()
        chosen = torch.where(chosen < 0, chosen + len(self), chosen)
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(outside):
            raise IndexError(f"no model {int(outside[0])} in a zoo of {len(self)}")
        return chosen

    def _rows(self, shard: Shard) -> pa.Table:
        try:
            table = pq.read_table(self.path / shard.models)
        except (OSError, pa.ArrowException) as error:
            raise ZooError(
                f"{self.path / shard.models} cannot be read ({error}); restore it or fit again"
            ) from None
        if len(table) != shard.count:
            raise ZooError(f"{shard.models} has {len(table)} rows, expected {shard.count}")
        return table

    def _stored(self, shard: int, name: str) -> Tensor:
        record = self.manifest.shards[shard]
        try:
            file = self._files.get(shard)
            if file is None:
                file = self._files[shard] = SafetensorsFile(self.path / record.weights)
            stored = file.read(name)
        except (OSError, KeyError, CheckpointError) as error:
            raise ZooError(
                f"{self.path}: shard {record.weights} cannot be read ({error}); restore it or fit again"
            ) from None
        expected = (record.count, *self.manifest.entries[name].shape)
        if tuple(stored.shape) != expected:
            raise ZooError(
                f"{record.weights}: {name!r} has shape {list(stored.shape)}, expected {list(expected)}"
            )
        return stored
