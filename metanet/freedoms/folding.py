r"""Folding: the gains of norms moved into the columns of what reads them, which leaves the function as it is.

    W (g ⊙ n) = (W diag(g)) n

What is left has ones for gains. They are then not parameters any more: a folded model has a buffer of ones
in the place of each, which is not saved with it, so that a spec derived from the folded model is a spec of
its weights alone, and has the orthogonal freedom of a residual stream (`metanet.freedoms.orthogonal`) for
all values of these weights.

References:
    Ashkboos et al. 2024, SliceGPT, https://arxiv.org/abs/2401.15024 (the same step before rotations).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from metanet.axis import Perm
from metanet.freedoms.dataflow import ROWS, Dataflow
from metanet.skeleton import Operation
from metanet.spec import WeightSpec

MOVES = frozenset(("reshape", "transpose", "expand", "repeat", "slice", "select", "cat"))
NORMS = frozenset(("rms_norm", "layer_norm"))


@dataclass(frozen=True, slots=True)
class Fold:
    """One gain and the matrices that take it over.

    Args:
        gain: the entry.
        offset: the norm multiplies by gain + offset (Gemma: 1).
        readers: ``(entry, dimension)`` of the matrices whose columns are multiplied.
        group: the units that the gain belongs to.
    """

    gain: str
    offset: float
    readers: tuple[tuple[str, int], ...]
    group: str


@overload
def fold_gains(model: nn.Module, spec: WeightSpec, *, untie: bool = False) -> nn.Module: ...
@overload
def fold_gains(
    model: Mapping[str, Tensor], spec: WeightSpec, *, untie: bool = False
) -> dict[str, Tensor]: ...
def fold_gains(
    model: nn.Module | Mapping[str, Tensor], spec: WeightSpec, *, untie: bool = False
) -> nn.Module | dict[str, Tensor]:
    """Fold the gains of the norms of residual streams into the matrices that read them.

    Args:
        model: a module, or its state dict; it is not changed.
        spec: derived from the module.
        untie: whether a matrix that is tied to an embedding (a language model's head) may become a parameter
            of its own; its gain cannot be folded otherwise.

    Returns:
        A copy of the module whose gains are buffers that are not saved, one everywhere; of a state dict, one
        whose gains are one, for the unchanged architecture. Function and outputs are the same.

    Raises:
        ValueError: a gain cannot be folded: a norm behind a block (sandwich norms) or behind a sum (post
            norms), a tied head that may not be untied, or no gain at all.

    Example:
        >>> folded = fold_gains(llama, spec_of(llama, tokens), untie=True)          # doctest: +SKIP
        >>> [a.kind for a in spec_of(folded, tokens).actions if a.kind == "orthogonal"]  # doctest: +SKIP
        ['orthogonal']
    """
    module = model if isinstance(model, nn.Module) else None
    folds = [_untied(fold, spec, module) for fold in find_folds(spec)]
    shared = _shared(spec, folds)
    if shared and not untie:
        reader, others = next(iter(shared.items()))
        raise ValueError(
            f"{reader!r} takes over a gain and is one parameter with {', '.join(map(repr, others))}, which "
            "does not; pass untie=True to give it values of its own, or fold a model whose head is not tied"
        )
    if not isinstance(model, nn.Module):
        spec.check({name: tuple(tensor.shape) for name, tensor in model.items()}, leading=None)
        return _folded(model, spec, folds)
    copy = deepcopy(model)
    with torch.no_grad():
        folded = _folded(model.state_dict(), spec, folds)
        for name in dict.fromkeys(reader for fold in folds for reader, _ in fold.readers):
            if name in shared:
                owner, last = _owner(copy, name)
                setattr(owner, last, nn.Parameter(folded[name].clone()))
            else:
                copy.get_parameter(name).copy_(folded[name])
        for fold in folds:
            for name in _names(spec, fold.gain):
                owner, last = _owner(copy, name)
                delattr(owner, last)
                owner.register_buffer(last, folded[name], persistent=False)
    config: Any = getattr(copy, "config", None)
    if shared and hasattr(config, "tie_word_embeddings"):
        config.tie_word_embeddings = False
    return copy


def find_folds(spec: WeightSpec) -> list[Fold]:
    """Return the gains that can be folded.

    Raises:
        ValueError: none can, or only some gains of a stream.
    """
    if not spec.operations:
        raise ValueError(
            "this spec has no skeleton of operations; derive it from the model (spec_of) or read it from JSON"
        )
    flow = Dataflow(spec)
    folds, refused = list[Fold](), dict[str, list[str]]()
    for entry, axes in spec.entries:
        if len(axes) != 1 or not isinstance(axes[0], Perm) or flow.first.get(entry, entry) != entry:
            continue
        found = _fold(flow, entry, axes[0].group)
        if isinstance(found, Fold):
            folds.append(found)
        elif found:
            refused.setdefault(axes[0].group, []).append(f"{entry!r} {found}")
    for fold in folds:
        if fold.group in refused:
            raise ValueError(
                f"the gains of {fold.group!r} cannot all be folded into what reads them: "
                f"{refused[fold.group][0]}. Sandwich norms and post norms keep their gains"
            )
    if not folds:
        reasons = (
            "; ".join(reasons[0] for reasons in refused.values()) or "no norm has a gain per unit of a group"
        )
        raise ValueError(f"there is no gain to fold: {reasons}")
    return folds


def _fold(flow: Dataflow, entry: str, group: str) -> Fold | str:
    """Return how to fold an entry, why it cannot be folded, or nothing if it is no gain of a norm."""
    uses = flow.uses.get(entry, [])
    if not uses:
        return ""
    position, role = uses[0]
    op = flow.operations[position]
    offset = 0.0
    if op.kind in NORMS and role == "weight":
        if op.kind == "layer_norm" or op.parameter("bias") is not None:
            return ""
        product = position
    elif op.kind == "parameter":
        while len(flow.readers[position]) == 1:
            reader = flow.readers[position][0][0]
            step = flow.number(flow.operations[reader])
            if flow.operations[reader].kind != "add" or step is None:
                break
            offset += step
            position = reader
        readers = flow.readers[position]
        product = readers[0][0] if readers else position
        op = flow.operations[product]
        other = [i for i in op.inputs if i != position]
        if op.kind != "mul" or len(op.inputs) != 2 or not other or not _normalised(flow, other[0]):
            return ""
        if len(readers) > 1:
            return "multiplies in several places"
    else:
        return ""
    if len(uses) > 1:
        return "is the gain of several norms"
    found: dict[tuple[str, int], None] = {}
    problem = _readers(flow, product, flow.last(product), found)
    return problem or Fold(entry, offset, tuple(found), group)


def _normalised(flow: Dataflow, position: int) -> bool:
    """Return whether a value is something divided by its root mean square, as far as its shape tells."""
    op = flow.operations[position]
    if op.kind == "rms_norm":
        return True
    if op.kind not in ("mul", "div") or len(op.inputs) != 2:
        return False
    return any(flow.shapes[i] != flow.shapes[position] and flow.shapes[i][-1:] == (1,) for i in op.inputs)


def _readers(flow: Dataflow, position: int, dim: int, found: dict[tuple[str, int], None]) -> str:
    """Collect the matrices whose columns read a dimension of a value; return what else reads it, if any."""
    for reader, slot in flow.readers[position]:
        op = flow.operations[reader]
        if flow.plain_matrix(op) and dim == flow.last(position):
            weight = op.parameter("weight")
            assert weight is not None
            if len(flow.spec.axes[weight]) != 2:
                return f"is read by {op.kind} {weight!r}, which is no matrix"
            found[flow.first.get(weight, weight), 1 - ROWS.get(op.kind, 0)] = None
            continue
        moved = flow.forward(reader, slot, dim) if op.kind in MOVES else None
        if moved is None:
            return f"multiplies what {_called(op)} reads"
        problem = _readers(flow, reader, moved, found)
        if problem:
            return problem
    return ""


def _called(op: Operation) -> str:
    names = ", ".join(repr(entry) for _, entry in op.parameters)
    return f"{op.kind} {names}".strip()


def _names(spec: WeightSpec, entry: str) -> tuple[str, ...]:
    return next((tie for tie in spec.ties if entry in tie), (entry,))


def _untied(fold: Fold, spec: WeightSpec, model: nn.Module | None) -> Fold:
    """Name tied readers as the module does that reads with them, not as the embedding they are tied to."""
    readers = []
    for name, dim in fold.readers:
        names = _names(spec, name)
        others = [n for n in names if model is None or not isinstance(_owner(model, n)[0], nn.Embedding)]
        if len(names) > 1 and len(others) != 1:
            raise ValueError(
                f"{' and '.join(map(repr, names))} are one parameter, and which of them reads the gain "
                f"{fold.gain!r} cannot be told"
                + (": pass the model, not its state dict" if model is None else "")
            )
        readers.append((others[0] if len(names) > 1 else name, dim))
    return replace(fold, readers=tuple(readers))


def _shared(spec: WeightSpec, folds: list[Fold]) -> dict[str, tuple[str, ...]]:
    """Return the readers that are used elsewhere too, with their other names."""
    flow = Dataflow(spec)
    taken = [reader for fold in folds for reader, _ in fold.readers]
    shared = {}
    for reader in dict.fromkeys(taken):
        uses, names = flow.uses[flow.first.get(reader, reader)], _names(spec, reader)
        if taken.count(reader) > 1 or len(uses) > len(names):
            raise ValueError(
                f"{reader!r} reads in {len(uses)} places of the network, so no gain can be folded into it"
            )
        if len(names) > 1:
            shared[reader] = tuple(name for name in names if name != reader)
    return shared


def _folded(state: Mapping[str, Tensor], spec: WeightSpec, folds: list[Fold]) -> dict[str, Tensor]:
    """Return a state dict with gains of one; stacked models ``[*leading, …]`` are folded one by one."""
    result = dict(state)
    for fold in folds:
        work = torch.promote_types(state[fold.gain].dtype, torch.float32)
        gain = state[fold.gain].to(work) + fold.offset
        for reader, dim in fold.readers:
            across = gain.unsqueeze(-2 if dim == 1 else -1)
            result[reader] = (result[reader].to(work) * across).to(state[reader].dtype)
        for name in _names(spec, fold.gain):
            result[name] = torch.full_like(state[name], 1.0 - fold.offset)
    return result


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return model.get_submodule(path), last
