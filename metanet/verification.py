"""Numerical proof of a spec: elements of its group keep the outputs, in float64 and on generic values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from metanet.action import Action
from metanet.axis import Perm, atoms
from metanet.derivation.tracing import evaluation_mode
from metanet.elements.acting import act_terms, draw_value
from metanet.group import GroupElement
from metanet.precision import WIDE, double, float64
from metanet.spec import KINDS, Group, Kind, WeightSpec

TOLERANCE = 1e-9
"""Largest relative error of outputs in float64 that passes; rounding alone stays far below."""
CHANGED = 1e-6
"""Smallest relative change of outputs that a negative control must cause."""
ATTEMPTS = 3
"""How often a group that seems dead gets new values."""
MOVED = "permutation"
NESTED = "permutation of nested units in every other copy"
TOGETHER = "all together"


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Args:
        errors: for permutations, those of nested units that differ from copy to copy, every kind of freedom,
            and all together: the worst relative error.
        controls: how much the outputs change when a group is permuted with one tensor left out, or an action
            acts with one term left out; what occurs in one place alone has no control.
        dead: groups and actions that no such control could tell from the identity.
        unused: entries that no output depends on.
        draws: elements drawn for each kind.
        kept: why the example inputs were kept: how the model failed on random ones (floats that hold
            indices); empty if floating-point inputs were drawn anew.
    """

    errors: Mapping[str, float]
    controls: Mapping[str, float]
    dead: tuple[str, ...]
    unused: tuple[str, ...]
    draws: int
    kept: str = ""

    @property
    def max_error(self) -> float:
        """Worst relative error: largest difference of an output over that output's root mean square."""
        return max(self.errors.values(), default=0.0)

    @property
    def ok(self) -> bool:
        """Whether every element kept the function. Dead groups are a warning, not a failure."""
        return self.max_error <= TOLERANCE

    def __str__(self) -> str:
        verdict = "the function is kept" if self.ok else "THE FUNCTION IS NOT KEPT: the spec is wrong"
        lines = [f"{verdict}: worst relative error {self.max_error:.2g} over {self.draws} draws of each kind"]
        lines += [f"  {kind}: {error:.2g}" for kind, error in self.errors.items()]
        if self.controls:
            weakest = min(self.controls, key=lambda name: self.controls[name])
            lines.append(
                f"negative controls: leaving one tensor out changes the outputs by "
                f"{self.controls[weakest]:.2g} or more ({len(self.controls)} controls; least for {weakest})"
            )
        if self.kept:
            lines.append(f"the inputs were kept as they were given: with random ones, {self.kept}")
        if self.dead:
            lines.append(f"what the outputs do not tell apart: {', '.join(self.dead)}")
        if self.unused:
            more = f" and {len(self.unused) - 5} more" if len(self.unused) > 5 else ""
            lines.append(f"entries that no output depends on: {', '.join(self.unused[:5])}{more}")
        return "\n".join(lines)


def verify(
    spec: WeightSpec,
    model: nn.Module,
    *args: Any,
    draws: int = 3,
    seed: int = 0,
    kinds: Iterable[Kind] | Literal["all"] = "all",
    **kwargs: Any,
) -> Verification:
    """Prove a spec numerically: compare the outputs of a model before and after random elements.

    The model is copied to float64 in evaluation mode and every parameter and buffer gets a generic value
    first: at its initial values, a spec that forgets the statistics of a BatchNorm would pass. Whatever the
    module casts to a lower precision stays in float64. Floating-point inputs are drawn anew, others kept;
    if the model fails on those, all inputs are kept, and the result says so.

    Args:
        spec: derived, or written by hand.
        model: the network; it is not changed. One on the meta device is given memory.
        *args: example inputs.
        draws: number of elements of each kind.
        seed: of values, inputs and elements.
        kinds: freedoms and actions to draw beside permutations.
        **kwargs: further example inputs.

    Returns:
        Errors by kind, negative controls, dead groups and unused entries.

    Raises:
        ValueError: no draws, a spec that does not fit, or outputs that are not finite floating-point tensors.
    """
    state = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    spec.check({name: tuple(tensor.shape) for name, tensor in state.items()})
    if draws < 1:
        raise ValueError(f"a proof takes at least one draw, found draws={draws}")
    chosen = set(KINDS if kinds == "all" else kinds)
    if unknown := chosen - set(KINDS):
        raise ValueError(f"unknown freedoms {sorted(unknown)}; the known ones are {', '.join(KINDS)}")
    generator = torch.Generator().manual_seed(seed)
    network = _Network(model, spec, generator, args, kwargs)
    errors: dict[str, float] = {}

    def draw(label: str, kinds: Sequence[Kind], *, permute: bool) -> None:
        for _ in range(draws):
            element = GroupElement.random(spec, generator, kinds=kinds, permute=permute)
            errors[label] = max(errors.get(label, 0.0), network.error(element @ network.values))

    has: set[Kind] = {freedom.kind for group in spec.groups for freedom in group.freedoms}
    has |= {action.kind for action in spec.actions}
    present = [kind for kind in KINDS if kind in chosen & has]
    draw(MOVED, [], permute=True)
    if nested := {group.name: _shift(spec, group) for group in spec.groups if group.parent is not None}:
        errors[NESTED] = network.error(GroupElement(spec, nested, {}) @ network.values)
    for kind in present:
        draw(kind, [kind], permute=False)
    if present:
        draw(TOGETHER, present, permute=True)
    controls, dead = _controls(spec, network)
    return Verification(errors, controls, dead, network.unused(), draws, network.kept)


def _controls(spec: WeightSpec, network: _Network) -> tuple[dict[str, float], tuple[str, ...]]:
    """Permute one group at a time with one tensor left out, the largest first, until the outputs change.

    Actions likewise, with a term left out. What happens to be off on these values (ReLU) gets new ones.
    """
    first = {name: tie[0] for tie in spec.ties for name in tie}
    controls: dict[str, float] = {}
    left = list(spec.groups)
    acting = {f"{action} of {action.terms[0].entry}": action for action in spec.actions}
    for _ in range(ATTEMPTS):
        for group in left:
            carriers = {
                first.get(name, name)
                for name, axes in spec.entries
                if any(isinstance(a, Perm) and a.group == group.name for axis in axes for a in atoms(axis))
            }
            if len(carriers) > 1:
                largest_first = sorted(carriers, key=lambda name: (-network.values[name].numel(), name))
                controls[group.name] = _control(spec, network, group, largest_first, first)
        for label, action in acting.items():
            places = dict.fromkeys((first.get(t.entry, t.entry), t.leaves) for t in action.terms)
            if len(places) > 1:
                controls[label] = _action_control(spec, network, action, list(places), first)
        left = [group for group in left if controls.get(group.name, inf) <= CHANGED]
        acting = {label: a for label, a in acting.items() if controls.get(label, inf) <= CHANGED}
        if not left and not acting:
            break
        network.redraw()
    return controls, (*(group.name for group in left), *acting)


def _shift(spec: WeightSpec, group: Group) -> Tensor:
    """Return a cyclic shift of a group's units; of nested ones in every other copy, as no shared one does."""
    units = torch.arange(group.size)
    if group.parent is None:
        return units.roll(1)
    rows = units.repeat(spec.copies(group.name), 1)
    rows[::2] = units.roll(1)
    return rows


def _action_control(
    spec: WeightSpec,
    network: _Network,
    action: Action,
    places: Sequence[tuple[str, tuple[int, ...]]],
    first: Mapping[str, str],
) -> float:
    """Return the change of the outputs when an action acts everywhere but in one of its places."""
    value = draw_value(action, spec.sizes, network.generator)
    change = 0.0
    for place in places:
        state = dict(network.values)
        for term in action.terms:
            if (first.get(term.entry, term.entry), term.leaves) != place:
                state[term.entry] = act_terms(
                    state[term.entry], spec.axes[term.entry], spec.sizes, [(action, term, value)]
                )
        change = max(change, network.error(state))
        if change > CHANGED:
            break
    return change


def _control(
    spec: WeightSpec, network: _Network, group: Group, carriers: Sequence[str], first: Mapping[str, str]
) -> float:
    """Return the change of the outputs when a group is permuted with one of its tensors left out."""
    moved = GroupElement(spec, {group.name: _shift(spec, group)}, {}) @ network.values
    change = 0.0
    for carrier in carriers:
        partly = {
            name: network.values[name] if first.get(name, name) == carrier else tensor
            for name, tensor in moved.items()
        }
        change = max(change, network.error(partly))
        if change > CHANGED:
            break
    return change


class _Network:
    """A float64 copy of a model with generic values, whose state is replaced at will."""

    def __init__(
        self,
        model: nn.Module,
        spec: WeightSpec,
        generator: torch.Generator,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.model = double(_materialised(deepcopy(model)).cpu()).requires_grad_(False)
        self.model.train()  # where modules forget what they computed from parameters that now change
        given = (args, dict(kwargs))
        self.arguments = tree_map_only(Tensor, lambda tensor: _generic_input(tensor, generator), given)
        self.spec = spec
        self.generator = generator
        self.values: dict[str, Tensor] = {}
        self.expected: list[Tensor] = []
        self.kept = ""
        try:
            self.redraw()
        except (IndexError, RuntimeError, ValueError) as error:
            self.kept = " ".join(f"{type(error).__name__}: {error}".split())
            self.arguments = tree_map_only(Tensor, _given_input, given)
            self.redraw()
        if not self.expected:
            raise ValueError("the model returns no floating-point tensor, so there is nothing to compare")
        if not all(bool(output.isfinite().all()) for output in self.expected):
            raise ValueError(
                "the model's outputs are not finite on generic values of its parameters and normal inputs, "
                "so nothing can be compared; pass integer inputs where it expects indices"
            )

    def redraw(self) -> None:
        """Draw new values for every entry; tied ones share theirs."""
        roles = {entry: role for op in self.spec.operations for role, entry in op.parameters}
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        same = {name: tie[0] for tie in self.spec.ties for name in tie}
        values: dict[str, Tensor] = {}
        for name, tensor in self.tensors().items():
            shared = values.get(same.get(name, name))
            values[name] = (
                _generic(name, tensor, roles.get(name), name in parameters, self.generator)
                if shared is None
                else shared
            )
        self.values = values
        self.expected = self.outputs(values)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state dict themselves."""
        return {k: t for k, t in self.model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}

    def outputs(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the floating-point outputs for a state."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluation_mode(self.model):
            for name, tensor in self.tensors().items():
                tensor.copy_(state[name])
            torch.manual_seed(0)
            args, kwargs = tree_map_only(Tensor, Tensor.clone, self.arguments)
            with float64():
                returned = self.model(*args, **kwargs)
        leaves = [leaf for leaf in tree_leaves(_plain(returned)) if isinstance(leaf, Tensor)]
        return [leaf.clone() for leaf in leaves if leaf.is_floating_point() or leaf.is_complex()]

    def error(self, state: Mapping[str, Tensor]) -> float:
        """Return the largest difference of the outputs for a state, relative to each output's rms."""
        worst = 0.0
        for output, expected in zip(self.outputs(state), self.expected, strict=True):
            if output.shape != expected.shape:
                return inf
            if output.numel():
                scale = float(expected.abs().square().mean().sqrt())
                error = float((output - expected).abs().max()) / (scale if scale > 0 else 1.0)
                worst = max(worst, error if error == error else inf)
        return worst

    def unused(self) -> tuple[str, ...]:
        """Return the entries that may be changed without changing an output.

        With a skeleton only those that no operation reads are tried, one run of the network each.
        """
        candidates = self.spec.unused if self.spec.operations else tuple(self.values)
        return tuple(name for name in candidates if self.idle(name))

    def idle(self, name: str) -> bool:
        value = self.values[name]
        if not value.numel():
            return True
        whole = not (value.is_floating_point() or value.is_complex())
        changed = value + 1 if whole else value * 1.25 + 0.25
        state = {key: changed if tensor is value else tensor for key, tensor in self.values.items()}
        return self.error(state) == 0.0


def _materialised(model: nn.Module) -> nn.Module:
    """Give tensors on the meta device memory, non-persistent buffers a generic value."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = nn.Parameter(torch.zeros(parameter.shape), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                values = torch.linspace(0.5, 2.0, max(buffer.numel(), 1))[: buffer.numel()]
                module._buffers[name] = values.reshape(buffer.shape).to(buffer.dtype)
    return model


def _generic_input(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.dtype in WIDE or tensor.dtype in WIDE.values():
        return torch.randn(tensor.shape, generator=generator, dtype=WIDE.get(tensor.dtype, tensor.dtype))
    return _given_input(tensor)


def _given_input(tensor: Tensor) -> Tensor:
    tensor = tensor.to(WIDE.get(tensor.dtype, tensor.dtype))
    return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.detach().cpu()


def _generic(
    name: str, tensor: Tensor, role: str | None, parameter: bool, generator: torch.Generator
) -> Tensor:
    """Return a generic value of an entry: nothing zero, one, or twice the same, activations of order one."""
    if tensor.is_complex():
        parts = [_generic(name, tensor.real, role, parameter, generator) for _ in range(2)]
        value: Tensor = torch.complex(*parts) * 0.5**0.5
        return value
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    uniform = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    positive = role == "running_var" or name.endswith("running_var")
    if positive or (not parameter and tensor.numel() > 0 and bool((tensor > 0).all())):
        return uniform * 0.8 + 0.6
    if tensor.ndim >= 2:
        fan_in = max(tensor[:1].numel(), 1)
        return (uniform * 2 - 1) * float((6 / fan_in) ** 0.5)
    negative = torch.randint(2, tensor.shape, generator=generator).bool()
    added = role in ("bias", "running_mean") or name.endswith(("bias", "running_mean"))
    size = uniform * 0.3 + 0.05 if added else uniform * 0.8 + 0.7  # gains that keep a deep signal alive
    return torch.where(negative, -1.0, 1.0) * size


def _plain(value: Any) -> Any:
    """Return what a model returned as mappings and sequences: some return objects of their own."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
