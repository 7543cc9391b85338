"""From the names in a Hugging Face checkpoint to those of the model that ``transformers`` builds, and back.

A checkpoint need not have its model's names: the prefix of the base model may be there or not, a tied head is
left out, layers were renamed between releases, experts are stored one by one and stacked on loading. The
conversions are ``transformers``' own. Where one of them makes a tensor out of several, the symmetry is that
of the model *with its conversions* (`StoredModel`), whose state dict is the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metanet.axis import Fixed
from metanet.spec import WeightSpec
from metanet_zoo.errors import CheckpointError


@dataclass(frozen=True)
class Conversion:
    """Entries of a checkpoint of which ``transformers`` makes entries of the model.

    Args:
        target: the first entry that is made.
        converter: of ``transformers``.
        sources: pattern of the converter -> names in the checkpoint, in order.
    """

    target: str
    converter: Any
    sources: Mapping[str, tuple[str, ...]]

    def apply(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's entries made of the checkpoint's."""
        made: Any = {pattern: [tensors[n] for n in names] for pattern, names in self.sources.items()}
        for operation in self.converter.operations:
            made = operation.convert(
                made,
                source_patterns=self.converter.source_patterns,
                target_patterns=self.converter.target_patterns,
                full_layer_name=self.target,
                model=model,
                config=model.config,
                missing_keys=None,
            )
        name = self.target.replace("*.", "0.")
        prefix, _, suffix = next(name.partition(key) for key in made if key in name)
        return {
            prefix + key + suffix: value[0] if isinstance(value, list) else value
            for key, value in made.items()
        }


@dataclass(frozen=True)
class NameMapping:
    """How a checkpoint's entries become a model's.

    Args:
        renamed: entry of the model -> its name in the checkpoint.
        conversions: where several entries become one, or one several.
        missing: entries of the model that the checkpoint lacks, tied ones left out.
        tied: entry of the model that the checkpoint lacks -> the entry it shares its tensor with.
        unexpected: entries of the checkpoint that the model does not know.
    """

    renamed: Mapping[str, str]
    conversions: tuple[Conversion, ...]
    missing: tuple[str, ...]
    tied: Mapping[str, str]
    unexpected: tuple[str, ...]

    def notes(self, kind: str) -> tuple[str, ...]:
        """Return what differs between the names, one sentence each; ``kind`` is the model's class."""
        notes = []
        other = {m: s for m, s in self.renamed.items() if m != s}
        if other:
            prefixes = {m.removesuffix(s) for m, s in other.items() if m.endswith(s)}
            example = min(other)
            if len(prefixes) == 1 and all(m.endswith(s) for m, s in other.items()):
                notes.append(f"{kind} adds the prefix {next(iter(prefixes))!r} to {len(other)} names")
            else:
                notes.append(
                    f"{len(other)} entries have other names in {kind}, e.g. {other[example]} is {example}"
                )
        if self.conversions:
            first = self.conversions[0]
            sources = [name for names in first.sources.values() for name in names]
            notes.append(
                f"{kind} makes {len(self.conversions)} of its tensors out of several entries or parts, e.g. "
                f"{first.target} of {sources[0]}"
                + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")
            )
        notes += [f"{name} is not stored: it is {other}" for name, other in self.tied.items()]
        if self.missing:
            notes.append(f"{kind} has {_some(self.missing)}, which the checkpoint lacks")
        if self.unexpected:
            notes.append(f"the checkpoint has {_some(self.unexpected)}, which {kind} does not read")
        return tuple(notes)


def map_names(
    model: Any, shapes: Mapping[str, tuple[int, ...]], ties: Sequence[Sequence[str]]
) -> NameMapping:
    """Find out which entries of a checkpoint are which of a model of ``transformers``.

    Args:
        model: of ``transformers``.
        shapes: entry name -> shape, of the checkpoint.
        ties: sets of entries of the model that are one tensor.

    Raises:
        CheckpointError: nothing fits, or shapes differ.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = getattr(model, "base_model_prefix", "") or None

    renamed: dict[str, str] = {}
    collected: dict[str, tuple[Any, dict[str, list[str]]]] = {}
    unexpected: list[str] = []
    for name in sorted(shapes, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = name, None
        if target not in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target not in state or (pattern is None and target in renamed):
            unexpected.append(name)
        elif pattern is None:
            renamed[target] = name
        else:
            _, sources = collected.setdefault(target, (by_pattern[pattern], {}))
            sources.setdefault(pattern, []).append(name)
    conversions = tuple(
        Conversion(target, deepcopy(converter), {p: tuple(names) for p, names in sources.items()})
        for target, (converter, sources) in collected.items()
    )
    _check_shapes(model, state, shapes, renamed)
    made = _check_conversions(model, state, shapes, conversions)
    known = {*renamed, *made}
    shared = {name: other for tie in ties for name in tie for other in tie if other in known}
    absent = [name for name in state if name not in known]
    if not known:
        raise CheckpointError(
            f"none of the checkpoint's entries ({_some(list(shapes))}) is one of {type(model).__name__} "
            f"({_some(list(state))}); config.json and weights do not belong together"
        )
    return NameMapping(
        renamed,
        conversions,
        tuple(name for name in absent if name not in shared),
        {name: shared[name] for name in absent if name in shared},
        tuple(unexpected),
    )


def _check_shapes(
    model: nn.Module,
    state: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    renamed: Mapping[str, str],
) -> None:
    wrong = [
        f"{stored}: found {list(shapes[stored])}, expected {list(state[name].shape)}"
        for name, stored in renamed.items()
        if tuple(shapes[stored]) != tuple(state[name].shape)
    ]
    if wrong:
        raise CheckpointError(
            f"the weights do not have the shapes that config.json gives {type(model).__name__}: "
            f"{_some(wrong)}; config.json and weights do not belong together"
        )


def _check_conversions(
    model: nn.Module,
    state: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    conversions: Sequence[Conversion],
) -> set[str]:
    made: set[str] = set()
    for conversion in conversions:
        names = [name for group in conversion.sources.values() for name in group]
        tensors = {name: torch.empty(shapes[name], device="meta") for name in names}
        try:
            results = conversion.apply(model, tensors)
        except Exception as error:
            # Whatever the library's conversion raises on entries that do not fit one another.
            raise CheckpointError(
                f"{_some(names)} cannot be made into {conversion.target} of {type(model).__name__} "
                f"({type(error).__name__}: {error}); config.json and weights do not belong together"
            ) from None
        for name, tensor in results.items():
            if name not in state or tensor.shape != state[name].shape:
                expected = list(state[name].shape) if name in state else "no such entry"
                raise CheckpointError(
                    f"{_some(names)} make {name} of shape {list(tensor.shape)}, {type(model).__name__} "
                    f"expects {expected}; config.json and weights do not belong together"
                )
        made |= set(results)
    return made


class StoredModel(nn.Module):
    """A model of ``transformers`` whose state dict is a checkpoint: the conversions are part of it.

    Args:
        model: of ``transformers``, on the meta device.
        mapping: from `map_names`.
        shapes: entry name -> shape, of the checkpoint.
    """

    def __init__(self, model: nn.Module, mapping: NameMapping, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self._hidden = (model,)
        self._conversions = mapping.conversions
        state = model.state_dict()
        converted = {n for c in mapping.conversions for names in c.sources.values() for n in names}
        self._given = {**mapping.renamed, **{name: name for name in mapping.missing}}
        for name, stored in self._given.items():
            self._register(stored, torch.empty_like(state[name]))
        kind = next(iter(model.parameters()))
        for name in converted:
            self._register(name, torch.empty(shapes[name], dtype=kind.dtype, device=kind.device))

    def _register(self, name: str, tensor: Tensor) -> None:
        parent: nn.Module = self
        *folders, last = name.split(".")
        for folder in folders:
            if folder not in parent._modules:
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        if tensor.is_floating_point():
            parent.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        else:
            parent.register_buffer(last, tensor)

    def forward(self, **inputs: Any) -> Any:
        """Make the model's entries of the checkpoint's, and run the model."""
        [model] = self._hidden
        own = dict([*self.named_parameters(), *self.named_buffers()])
        state = {name: own[stored] for name, stored in self._given.items()}
        for conversion in self._conversions:
            state |= conversion.apply(model, own)
        return functional_call(model, state, kwargs=inputs, tie_weights=True)


def stored_spec(spec: WeightSpec, mapping: NameMapping, shapes: Mapping[str, tuple[int, ...]]) -> WeightSpec:
    """Return a model's spec under the names of its checkpoint.

    Entries that the checkpoint lacks are dropped (a tied one is the other it is tied to); those that the
    model does not read are fixed and listed as unused.

    Args:
        spec: of the model, or of its `StoredModel`.
        mapping: from `map_names`.
        shapes: entry name -> shape, of the checkpoint.
    """
    names = dict(mapping.renamed)
    names |= {name: names[other] for name, other in mapping.tied.items() if other in names}
    names = {name: stored for name, stored in names.items() if name in spec.axes} | {
        name: name for name in spec.axes if name in shapes and name not in names
    }
    kept = spec.select(
        name for name in spec.axes if name in names and (name not in mapping.tied or name in shapes)
    )
    entries = [(names[name], axes) for name, axes in kept.entries]
    entries += [(name, tuple(map(Fixed, shapes[name]))) for name in mapping.unexpected]

    def rename(group: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names.get(name, name) for name in group))

    operations = tuple(
        replace(op, parameters=tuple((role, names.get(name, name)) for role, name in op.parameters))
        for op in kept.operations
    )
    stored = {name for name, _ in entries}
    ties = [tuple(n for n in rename(tie) if n in stored) for tie in kept.ties]
    changed: dict[str, Any] = {
        "entries": tuple(entries),
        "operations": operations,
        "ties": tuple(tie for tie in ties if len(tie) > 1),
        "unused": tuple(n for n in rename(kept.unused) if n in stored) + mapping.unexpected,
        "lost": tuple(
            replace(lost, entries=tuple(n for n in rename(lost.entries) if n in stored)) for lost in kept.lost
        ),
    }
    if actions := getattr(kept, "actions", ()):
        changed["actions"] = tuple(
            replace(a, terms=tuple(replace(t, entry=names.get(t.entry, t.entry)) for t in a.terms))
            for a in actions
        )
    return replace(kept, **changed)


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
