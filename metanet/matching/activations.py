"""Activation matching: units are paired by how their activations correlate on data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metanet.axis import Axis, Fixed, Perm, atoms
from metanet.group import GroupElement
from metanet.matching.weights import Matching, weight_matching
from metanet.spec import WeightSpec

MAX_SAMPLES = 4096
"""Samples per unit that are kept: of images, every position is one."""
LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Embedding),
)


def activation_matching(
    spec: WeightSpec,
    model: nn.Module,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *args: Any,
    fixed: Collection[str] = (),
    seed: int = 0,
    **kwargs: Any,
) -> Matching:
    r"""Align b to a by correlations of activations on data.

        maximise over g:  Σ_layers ⟨Z_a, g·Z_b⟩,   Z: [units, samples], every unit standardised.

    Every layer whose rows carry a group gives one term, so that a group written by several layers (a residual
    stream) is matched by all of them, and nested groups as weight matching does it: correlations are matched
    as if they were weights, of a spec whose entries are activations. Groups that no layer of a known kind
    writes (recurrent states, heads inside a fused attention) stay as they are.

    Args:
        spec: of both networks.
        model: a network with these names; its weights and mode are left as they were.
        a: state dict of the network that stays.
        b: state dict of the network to be moved.
        *args: one batch of data, the arguments of the network.
        fixed: groups that stay as they are.
        seed: of the samples that are kept, and of the order of groups.
        **kwargs: further arguments of the network.

    Returns:
        The matching; its distances are those between standardised activations.

    Raises:
        ValueError: no layer has units of a group.

    References:
        Li et al. 2016, Convergent Learning, https://arxiv.org/abs/1511.07543. Ainsworth et al. 2023, Git
        Re-Basin, https://arxiv.org/abs/2209.04836, §3.1.
    """
    axes = layer_axes(spec, model)
    if not axes:
        raise ValueError("no layer of this network has units that a group permutes; match weights instead")
    found = activations_of(model, (a, b), axes, args, kwargs, seed=seed)
    samples = {name: tensor.shape[1] for name, tensor in found[0].items()}
    groups = {atom.group for name in samples for atom in atoms(axes[name]) if isinstance(atom, Perm)}
    groups |= {above for name in groups for above in spec.ancestors(name)}
    seen = WeightSpec(
        tuple(group for group in spec.groups if group.name in groups),
        tuple((name, (axes[name], Fixed(count))) for name, count in samples.items()),
    )
    held = [name for name in fixed if name in seen.group]
    matching = weight_matching(seen, found[0], found[1], fixed=held, flips=False, seed=seed)
    element = GroupElement(spec, matching.element.permutations, {})
    return Matching(
        element,
        matching.before,
        matching.after,
        matching.history,
        matching.starts,
        matching.sweeps,
        matching.moved,
        "squared distance of activations",
    )


def activations_of(
    model: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    axes: Mapping[str, Axis],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    seed: int = 0,
) -> list[dict[str, Tensor]]:
    """Run a network with several weights and return what its layers answer; it is left as it was.

    Args:
        model: the network.
        states: its weights, one after the other.
        axes: layer -> axis of its outputs (`layer_axes`).
        args: of the network.
        kwargs: of the network.
        seed: of the samples that are kept, the same ones for all weights.

    Returns:
        For every state dict, ``[units, samples]`` standardised outputs by layer.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        return [_activations(model, state, axes, args, kwargs, seed) for state in states]
    finally:
        model.load_state_dict(before)
        for module, mode in modes:
            module.training = mode


def layer_axes(spec: WeightSpec, model: nn.Module) -> dict[str, Axis]:
    """Return the axis of the outputs of every layer whose units a group permutes, by the layer's name."""
    found: dict[str, Axis] = {}
    for name, layer in model.named_modules():
        entry = f"{name}.weight" if name else "weight"
        if not isinstance(layer, LAYERS) or entry not in spec.axes:
            continue
        axis = spec.axes[entry][-1 if isinstance(layer, nn.Embedding) else 0]
        if any(isinstance(atom, Perm) for atom in atoms(axis)):
            found[name] = axis
    return found


def _activations(
    model: nn.Module,
    state: Mapping[str, Tensor],
    axes: Mapping[str, Axis],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    seed: int,
) -> dict[str, Tensor]:
    """Run a network and return ``[units, samples]`` standardised outputs by layer."""
    load_state(model, state)
    found: dict[str, Tensor] = {}
    handles = []
    for name in axes:

        def hook(layer: nn.Module, _: Any, output: Tensor, name: str = name) -> None:
            last = isinstance(layer, (nn.Linear, nn.LayerNorm, nn.Embedding))
            units = output.movedim(-1 if last else 1, 0).flatten(1).float()
            if units.shape[1] > MAX_SAMPLES:
                # The same positions for both networks: correlations pair sample with sample.
                generator = torch.Generator().manual_seed(seed)
                kept = torch.randperm(units.shape[1], generator=generator)[:MAX_SAMPLES]
                units = units[:, kept]
            centred = units - units.mean(1, keepdim=True)
            found[name] = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-6)

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights into a network; what is one tensor with another entry may be left out.

    Raises:
        ValueError: entries of the network that are missing, or unknown to it.
    """
    own = model.state_dict(keep_vars=True)
    given = {id(own[name]) for name in state if name in own}
    missing = [name for name, tensor in own.items() if name not in state and id(tensor) not in given]
    unknown = [name for name in state if name not in own]
    if missing or unknown:
        raise ValueError(
            f"these weights are not the network's: missing {missing[:3]}, unknown {unknown[:3]}; run them "
            "with the network that wrote them"
        )
    model.load_state_dict(dict(state), strict=False)
