"""Proof of a model that is too large to run: of the same architecture at a reduced size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from metanet.axis import Axis, Fixed, Perm
from metanet.derivation.tracing import DerivationError, ties_of
from metanet.derive import spec_of
from metanet.spec import WeightSpec
from metanet.verification import Verification, verify
from metanet_zoo.errors import CheckpointError
from metanet_zoo.spec_source import SpecSource


def prove_reduced(
    found: SpecSource, *, trust_remote_code: bool = False
) -> tuple[Verification | None, tuple[str, ...], str | None]:
    """Prove a Hugging Face model's symmetry on a model of the same configuration with smaller numbers.

    The small model is derived anew; its spec must say of every entry what the full one's says, sizes aside.

    Args:
        found: from `metanet_zoo.find_spec`, of kind ``huggingface``.
        trust_remote_code: run the code that its folder brings along.

    Returns:
        The proof; notes on what was reduced and what it does not cover; why there is none, if there is none.
    """
    from metanet_zoo.huggingface_model import build_model
    from metanet_zoo.huggingface_reduced import reduced_config

    try:
        config, reduced = reduced_config(found.config)
        built = build_model(config, trust_remote_code=trust_remote_code, device="cpu")
        model, names = _stored(built.model) if found.converted else (built.model, found.names)
        small = spec_of(model, **built.inputs)
        proof = verify(small, model, **built.inputs)
    except (CheckpointError, DerivationError, ValueError) as error:
        return None, (), f"no model of this configuration at a reduced size could be proven: {error}"
    kind = type(built.model).__name__
    notes = [
        f"the proof is of {kind} at a reduced size, from the same configuration: {reduced or 'nothing less'}"
    ]
    other = differing(found.spec, small, names)
    if other:
        shown = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
        notes.append(
            f"at that size the spec is not of the same form for {shown}: the proof does not cover them"
        )
    return proof, tuple(notes), None


def _stored(model: Any) -> tuple[nn.Module, dict[str, str]]:
    """Return a model with its conversions from the names and parts that a checkpoint has, and these names."""
    from transformers.core_model_loading import revert_weight_conversion

    from metanet_zoo.huggingface_names import StoredModel, map_names

    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    kept = dict(state)
    for tie in ties_of(model):
        for name in tie[1:]:
            del kept[name]
    shapes = {name: tuple(t.shape) for name, t in revert_weight_conversion(model, kept).items()}
    network = StoredModel(model, map_names(model, shapes, ties_of(model)), shapes)
    return network, {name: name for name in network.state_dict()}


def differing(full: WeightSpec, small: WeightSpec, names: Mapping[str, str]) -> list[str]:
    """Return the entries of the full spec whose form is not that of the small one, sizes aside.

    The form is the axes, with the freedoms and parents of their groups, and the actions on the entry.

    Args:
        full: of the checkpoint.
        small: of the model at a reduced size, under the model's own names.
        names: the model's name -> the checkpoint's.
    """
    stored_once = {name for tie in small.ties if not set(tie).isdisjoint(names) for name in tie} - set(names)
    small = small.select(set(small) - stored_once)
    shared = {name: names[name] for name in small if names.get(name) in full.axes}
    mine, theirs = _actions(full, set(shared.values()), {}), _actions(small, set(shared), shared)
    return [
        stored
        for name, stored in shared.items()
        if _form(full, stored) != _form(small, name) or mine.get(stored) != theirs.get(stored)
    ]


def _form(spec: WeightSpec, name: str) -> tuple[Any, ...]:
    def form(axis: Axis) -> tuple[Any, ...]:
        if isinstance(axis, Fixed):
            return ("fixed",)
        if isinstance(axis, Perm):
            group = spec.group[axis.group]
            return (group.name, axis.role, tuple(f.kind for f in group.freedoms), group.parent)
        return (type(axis).__name__, *map(form, axis.axes))

    return tuple(map(form, spec.axes[name]))


def _actions(spec: WeightSpec, kept: set[str], names: Mapping[str, str]) -> dict[str, list[tuple[Any, ...]]]:
    """Return, for every kept entry, how the actions that stay within these entries act on it."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for action in spec.actions:
        if all(term.entry in kept for term in action.terms):
            for term in action.terms:
                entry = names.get(term.entry, term.entry)
                found.setdefault(entry, []).append((action.kind, term.leaves, term.power))
    return {entry: sorted(terms, key=str) for entry, terms in found.items()}
