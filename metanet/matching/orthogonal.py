"""Orthogonal matching: the residual stream of an RMSNorm transformer is turned, and all else permuted."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from metanet.axis import Fixed, Perm, atoms
from metanet.group import GroupElement
from metanet.matching.weights import Matching, moved_fractions, weight_matching
from metanet.spec import WeightSpec

State = Mapping[str, Tensor]
LEAST = 1e-7
"""Relative decrease of the distance below which the search ends."""


def orthogonal_matching(
    spec: WeightSpec,
    a: State,
    b: State,
    *,
    fixed: Collection[str] = (),
    max_rounds: int = 20,
    seed: int = 0,
) -> Matching:
    r"""Align b to a by orthogonal maps of residual streams and permutations of everything else, in turn.

        minimise over O in O(d) and P:  ‖a − (O, P)·b‖² .

    With P fixed the best O is that of Procrustes' problem, U Vᵀ for the inner products A Bᵀ = U S Vᵀ summed
    over every tensor that carries the stream; with O fixed the rest is weight matching. It begins with the
    tensors that the stream alone moves: embedding and output head. The distance never rises.

    Args:
        spec: of both networks, with an orthogonal action: fold the gains of the norms first
            (`metanet.freedoms.folding.fold_gains`) and derive the spec of the result.
        a: state dict of the network that stays, gains folded.
        b: state dict of the network to be moved, gains folded.
        fixed: groups that stay as they are, streams among them.
        max_rounds: turns at most.
        seed: of weight matching.

    Returns:
        The matching, over all floating-point entries.

    Raises:
        ValueError: the spec has no orthogonal action.

    References:
        Schönemann 1966, A Generalized Solution of the Orthogonal Procrustes Problem,
        https://doi.org/10.1007/BF02289451. Theus et al. 2025, Generalized Linear Mode Connectivity for
        Transformers, https://arxiv.org/abs/2506.22712, for transformers.
    """
    numbers = [i for i, action in enumerate(spec.actions) if action.kind == "orthogonal"]
    if not numbers:
        raise ValueError(
            "this spec has no orthogonal freedom: fold the gains of the RMSNorms first (fold_gains) and "
            "derive the spec of what it returns"
        )
    streams = {number: _stream(spec, number) for number in numbers}
    held = {*streams.values(), *fixed}
    streams = {number: name for number, name in streams.items() if name not in fixed}
    element, moved = GroupElement.identity(spec), dict(b)
    before = now = _distance(a, moved)
    history = [now]
    sweeps = 0
    for turn in range(max_rounds):
        steps = {n: _turn(spec, n, name, a, moved, alone=turn == 0) for n, name in streams.items()}
        rotation = GroupElement(spec, {}, {}, {n: o for n, o in steps.items() if o is not None})
        turned = rotation @ moved
        rest = weight_matching(
            spec, a, turned, fixed=held, starts=["greedy" if turn == 0 else "identity"], seed=seed
        )
        sweeps += rest.sweeps
        candidate = rest.element @ turned
        distance = _distance(a, candidate)
        if distance > now * (1 - LEAST):
            break
        element, moved, now = rest.element @ (rotation @ element), candidate, distance
        history.append(now)
    return Matching(element, before, now, tuple(history), ("procrustes",), sweeps, moved_fractions(element))


def _stream(spec: WeightSpec, number: int) -> str:
    action = spec.actions[number]
    axis = action.axes[0]
    if len(action.axes) != 1 or not isinstance(axis, Perm):
        raise ValueError(f"action '{action}': expected an orthogonal map of one group's units")
    return axis.group


def _turn(spec: WeightSpec, number: int, group: str, a: State, b: State, *, alone: bool) -> Tensor | None:
    """Return the orthogonal map that takes b nearest to a, or None where no tensor tells.

    Args:
        spec: the spec.
        number: of the action.
        group: its stream.
        a: state dict.
        b: state dict as moved so far.
        alone: look only at tensors whose other axes are fixed.
    """
    size = spec.sizes[group]
    total = torch.zeros(size, size, dtype=torch.float64)
    found = False
    for term in spec.actions[number].terms:
        axes = spec.axes[term.entry]
        dims = [d for d, axis in enumerate(axes) if isinstance(axis, Perm) and axis.group == group]
        others = [atom for d, axis in enumerate(axes) if d not in dims for atom in atoms(axis)]
        if len(dims) != 1 or (alone and not all(isinstance(atom, Fixed) for atom in others)):
            continue
        left, right = (x[term.entry].movedim(dims[0], 0).reshape(size, -1) for x in (a, b))
        total += (left.float() @ right.float().T).double()
        found = True
    if not found:
        return None
    u, _, vh = torch.linalg.svd(total)
    best: Tensor = u @ vh
    return best


def _distance(a: State, b: State) -> float:
    return sum(
        float((tensor.double() - b[name].double()).square().sum())
        for name, tensor in a.items()
        if tensor.is_floating_point()
    )
