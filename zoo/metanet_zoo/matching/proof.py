"""Proof that an aligned model computes what it did before: both are run, whole or layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from metanet.group import GroupElement
from metanet.merging.layers import Layers, find_layers
from metanet.precision import double, float64
from metanet_zoo.matching.memory import release_memory
from metanet_zoo.matching.source_tensors import SourceTensors, aligned_source
from metanet_zoo.merging.sources import TensorSource
from metanet_zoo.safetensors_file import DTYPES
from metanet_zoo.spec_source import SpecSource

TOLERANCE = 1e-8
"""Largest relative difference of outputs in float64 that passes."""
LAYER_TOLERANCE = 1e-3
"""The same for single layers, which are run in float32."""
MAX_VALUES = 50_000_000
"""Models of more values are run layer by layer."""
ROWS = 64
"""Rows of vocabularies that single layers are run with."""


@dataclass(frozen=True)
class Proof:
    """Whether an aligned model computes the same function.

    Args:
        proven: True or False where it was run, None where it was not.
        error: largest difference of an output over that output's root mean square.
        tolerance: what passes.
        how: how it was run, or why it was not.
    """

    proven: bool | None
    error: float | None
    tolerance: float
    how: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"proven": self.proven, "error": self.error, "tolerance": self.tolerance, "how": self.how}

    def __str__(self) -> str:
        if self.proven is None:
            return f"not proven: {self.how}"
        word = "proven" if self.proven else "REFUTED"
        return f"{word}: relative error {self.error:.2g} ({self.how})"


def prove(
    found: SpecSource, source: TensorSource, element: GroupElement, *, wanted: bool = True, seed: int = 0
) -> Proof:
    """Run a model before and after an element moves it, on random inputs.

    Small models are run whole in float64. Of a large one every layer is run alone between the embedding and
    the output head, both cut to a few rows, in float32.

    Args:
        found: the spec and what it was found with.
        source: the model's tensors.
        element: the element.
        wanted: False only says that it was not asked for.
        seed: of the inputs.
    """
    if not wanted:
        return _unproven("it was not asked for")
    if found.kind == "file":
        return _unproven("the spec comes from a file, which does not say how to run the model")
    after = aligned_source(source, element)
    if found.kind in ("sequential", "module"):
        assert found.model is not None
        error = _difference(
            deepcopy(found.model),
            (found.inputs, {}),
            _whole(source, {}),
            _whole(after, {}),
            seed=seed,
            wide=True,
        )
        what = "sequential network" if found.kind == "sequential" else type(found.model).__name__
        return _judged(error, TOLERANCE, f"the {what} in float64 on random inputs")
    if found.config is None:
        return _unproven("there is no configuration to build the model from")
    from metanet_zoo.huggingface_model import build_model

    names = {stored: name for name, stored in found.names.items()}
    values = sum(entry.size for entry in source.entries().values())
    if values > MAX_VALUES:
        return _layer_by_layer(found.config, source, after, names, seed)
    built = build_model(found.config, device="cpu")
    kind = type(built.model).__name__
    problem = _mismatch(built.model, source, names)
    if problem is not None:
        return _unproven(f"{kind} cannot be loaded tensor by tensor: {problem}")
    error = _difference(
        built.model,
        ((), dict(built.inputs)),
        _whole(source, names),
        _whole(after, names),
        seed=seed,
        wide=True,
    )
    return _judged(error, TOLERANCE, f"{kind} in float64 on random inputs")


def _layer_by_layer(
    config: Any, source: TensorSource, after: TensorSource, names: Mapping[str, str], seed: int
) -> Proof:
    from metanet_zoo.huggingface_model import build_model

    stated = getattr(config, "num_hidden_layers", None)
    layers = find_layers(source.entries(), stated) if isinstance(stated, int) else None
    if layers is None:
        return _unproven("the model is large, and its layers cannot be told from its configuration and names")
    worst = 0.0
    for number in range(layers.count):
        small = _one_layer(config, number)
        built = build_model(small, device="cpu")
        chosen = _chosen(layers, source, number, names)
        problem = _mismatch(built.model, source, chosen, rows=ROWS)
        if problem is not None:
            return _unproven(f"layer {number} cannot be run alone: {problem}")
        generator = torch.Generator().manual_seed(seed + number)
        ids = torch.randint(ROWS, (2, 16), generator=generator)
        inputs = {"input_ids": ids} if "input_ids" in built.inputs else dict(built.inputs)
        before, moved = (_cut(which, chosen, built.model) for which in (source, after))
        release_memory()
        worst = max(worst, _difference(built.model, ((), inputs), before, moved, seed=seed, wide=False))
    what = f"{layers.count} layers one by one, in float32, embedding and head cut to {ROWS} rows"
    return _judged(worst, LAYER_TOLERANCE, what)


def _one_layer(config: Any, number: int) -> Any:
    """Return the configuration of one layer of a model, with a small vocabulary."""
    data = config.to_dict()
    count = config.num_hidden_layers
    for key, value in data.items():
        if isinstance(value, list) and len(value) == count and key != "architectures":
            data[key] = [value[number]]
    small = type(config).from_dict(data)
    small.num_hidden_layers = 1
    small.architectures = getattr(config, "architectures", None)
    small.vocab_size = ROWS
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(getattr(small, key, None), int):
            setattr(small, key, None)
    return small


def _chosen(layers: Layers, source: TensorSource, number: int, names: Mapping[str, str]) -> dict[str, str]:
    """Return stored name -> name in a model of one layer, for this layer and what is outside of all."""
    chosen: dict[str, str] = {}
    for stored in source.entries():
        index = layers.index(stored)
        if index is None:
            chosen[stored] = names.get(stored, stored)
        elif index == number:
            first = layers.rename(stored, 0)
            chosen[stored] = names.get(first, first)
    return chosen


Loader = Callable[[nn.Module], None]


def _whole(source: TensorSource, names: Mapping[str, str]) -> Loader:
    def load(network: nn.Module) -> None:
        tensors = SourceTensors(source)
        state = network.state_dict(keep_vars=True)
        with torch.no_grad():
            for stored in tensors:
                state[names.get(stored, stored)].copy_(tensors[stored])

    return load


def _cut(source: TensorSource, chosen: Mapping[str, str], model: nn.Module) -> Loader:
    """Load some tensors, of a vocabulary the first rows only."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}

    def load(network: nn.Module) -> None:
        state = network.state_dict(keep_vars=True)
        with torch.no_grad():
            for stored, name in chosen.items():
                entry = source.entries()[stored]
                raw = np.empty(shapes[name].numel() * entry.item_size, np.uint8)
                source.read(stored, 0, shapes[name].numel(), raw)
                state[name].copy_(torch.from_numpy(raw).view(DTYPES[entry.dtype]).reshape(shapes[name]))

    return load


def _mismatch(
    model: nn.Module, source: TensorSource, names: Mapping[str, str], *, rows: int | None = None
) -> str | None:
    """Return why stored tensors do not fit a model, None if they do."""
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wanted = list(names) if rows is not None else list(source.entries())
    for stored in wanted:
        name, shape = names.get(stored, stored), source.entries()[stored].shape
        if name not in state:
            return f"it has no tensor {name!r}"
        cut = rows is not None and shape[1:] == state[name][1:] and state[name][0] == rows
        if state[name] != shape and not cut:
            return f"{stored!r} has shape {list(shape)}, expected {list(state[name])}"
    return None


def _difference(
    model: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    before: Loader,
    after: Loader,
    *,
    seed: int,
    wide: bool,
) -> float:
    """Return the largest difference of an output between two loads, over that output's root mean square.

    The model's weights and precision are left changed.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if wide else torch.float32
    args, kwargs = tree_map_only(
        Tensor,
        lambda t: torch.randn(t.shape, generator=generator, dtype=dtype) if t.is_floating_point() else t,
        inputs,
    )
    network = (double(model) if wide else model.float()).eval().requires_grad_(False)
    outputs = []
    for load in (before, after):
        load(network)
        precision: AbstractContextManager[None] = float64() if wide else nullcontext()
        with torch.no_grad(), precision:
            outputs.append(_floats(network(*args, **kwargs)))
    error = 0.0
    for one, other in zip(*outputs, strict=True):
        scale = float(one.square().mean().sqrt()) or 1.0
        worst = float((one - other).abs().max()) / scale
        error = max(error, worst if worst == worst else float("inf"))
    return error


def _floats(returned: Any) -> list[Tensor]:
    plain = dict(returned) if isinstance(returned, Mapping) else returned
    leaves = [leaf for leaf in tree_leaves(plain) if isinstance(leaf, Tensor)]
    return [leaf.double() for leaf in leaves if leaf.is_floating_point()]


def _unproven(why: str) -> Proof:
    return Proof(None, None, TOLERANCE, why)


def _judged(error: float, tolerance: float, how: str) -> Proof:
    return Proof(error <= tolerance, error, tolerance, how)
