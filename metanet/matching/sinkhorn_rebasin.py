"""Sinkhorn re-basin: permutations relaxed to doubly stochastic matrices, learned by gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import log
from typing import Literal

import torch
from torch import Tensor

from metanet.axis import Perm
from metanet.blocks import entry_blocks, join, split
from metanet.elements.membership import unit_shape
from metanet.group import GroupElement
from metanet.matching.assignment import assign
from metanet.matching.doubly_stochastic import sinkhorn
from metanet.matching.mixing import mix_block
from metanet.matching.pair import STATISTICS
from metanet.matching.weights import EXACT, Matching, moved_fractions, weight_matching
from metanet.spec import WeightSpec

State = Mapping[str, Tensor]
Objective = Literal["distance", "midpoint", "random"]
Begin = Literal["barycentre", "weights"]
CONFIDENCE = 0.5
"""Weight of the unit that a relaxed permutation prefers where it begins at an element."""


def sinkhorn_matching(
    spec: WeightSpec,
    a: State,
    b: State,
    loss: Callable[[dict[str, Tensor]], Tensor] | None = None,
    *,
    objective: Objective | None = None,
    begin: Begin | None = None,
    fixed: Collection[str] = (),
    steps: int = 100,
    learning_rate: float = 0.3,
    temperature: float = 1.0,
    seed: int = 0,
) -> Matching:
    r"""Learn an element by gradient descent over doubly stochastic matrices.

        minimise over x:  L((1 − t)·a + t·P(x)·b),   P_g = sinkhorn(x_g / τ) for every group g,

    t being ½ (``midpoint``), or drawn anew in every step (``random``); or ‖a − P(x)·b‖² (``distance``), which
    needs no loss. A nested group has a matrix for every combination of its ancestors' units, and moves after
    them, as in the wreath product. The gradient goes through Sinkhorn's limit implicitly
    (`metanet.matching.doubly_stochastic`). In every step each matrix is rounded to the nearest permutation;
    the best element met is returned, so that the result is never worse than the beginning, where the loss is
    the same function in every call.

    Args:
        spec: of both networks; permutations are learned, other freedoms come from where it begins.
        a: state dict of the network that stays.
        b: state dict of the network to be moved.
        loss: of a state dict, differentiable in its tensors; it may take another batch in every call.
        objective: what to minimise; None takes the midpoint's loss if there is a loss, else the distance.
        begin: at the barycentre, where all units are mixed alike, or at weight matching; None takes the
            barycentre for the distance and weight matching for a loss.
        fixed: groups that stay as they are.
        steps: of Adam.
        learning_rate: of Adam.
        temperature: τ.
        seed: of weight matching, and of the points on the path.

    Returns:
        The matching; what it measures is the distance, or the loss at the midpoint.

    Raises:
        ValueError: a loss that is missing or not used, or settings out of range.

    References:
        Peña et al. 2023, Re-basin via implicit Sinkhorn differentiation, CVPR,
        https://arxiv.org/abs/2212.12042. Departs from it in rounding along the way, in nested groups, and in
        where it begins.
    """
    objective = objective or ("distance" if loss is None else "midpoint")
    if (loss is None) != (objective == "distance"):
        raise ValueError(
            f"the objective {objective!r} and {'no ' if loss is None else 'a '}loss do not go together: the "
            "distance takes none, midpoint and random take one"
        )
    if steps < 1 or not learning_rate > 0 or not temperature > 0:
        raise ValueError(
            f"found steps={steps}, learning_rate={learning_rate}, temperature={temperature}; expected more "
            "than nothing of each"
        )
    first = GroupElement.identity(spec)
    begin = begin or ("barycentre" if objective == "distance" else "weights")
    if begin == "weights":
        first = weight_matching(spec, a, b, fixed=fixed, seed=seed).element
    relaxed = _Relaxed(spec, first @ b, fixed, begin)
    evaluate = _Objective(spec, a, objective, loss)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(relaxed.scores.values(), learning_rate)
    best = first
    lowest = start = evaluate.hard(first @ b)
    before = evaluate.hard(b) if begin == "weights" else start
    history, rounded = [lowest], GroupElement.identity(spec)
    for _ in range(steps):
        soft = relaxed.act(temperature)
        t = float(torch.rand((), generator=generator)) if objective == "random" else 0.5
        optimizer.zero_grad()
        evaluate.soft(soft, t).backward()
        optimizer.step()
        found = relaxed.rounded()
        if found.allclose(rounded):
            continue
        rounded = found
        value = evaluate.hard(found @ (first @ b))
        history.append(value)
        if value < lowest:
            lowest, best = value, found @ first
        if loss is None and lowest <= EXACT * evaluate.scale:
            break
    return Matching(
        best,
        before,
        lowest,
        tuple(history),
        (begin,),
        steps,
        moved_fractions(best),
        "squared distance" if objective == "distance" else "loss at the midpoint",
    )


class _Relaxed:
    """A network whose units are mixed by doubly stochastic matrices that are to be learned."""

    def __init__(self, spec: WeightSpec, state: State, fixed: Collection[str], begin: Begin) -> None:
        self.spec, self.state = spec, {name: x.detach() for name, x in state.items()}
        dtype = next((x.dtype for x in state.values() if x.is_floating_point()), torch.float32)
        self.scores: dict[str, Tensor] = {}
        for group in spec.groups:
            if group.name in fixed:
                continue
            n, shape = group.size, unit_shape(spec, group)
            # exp(x) puts this much on the unit itself, and shares the rest among the others.
            own = log(CONFIDENCE / (1 - CONFIDENCE) * (n - 1)) if begin == "weights" and n > 1 else 0.0
            scores = (own * torch.eye(n, dtype=dtype)).expand(*shape[:-1], n, n)
            self.scores[group.name] = scores.clone().requires_grad_()

    def act(self, temperature: float) -> dict[str, Tensor]:
        """Return the mixed network, differentiable in the scores."""
        matrices = {name: sinkhorn(scores / temperature) for name, scores in self.scores.items()}
        result = dict(self.state)
        for name, axes in self.spec.entries:
            blocks = list(entry_blocks(name, axes))
            if not any(set(block.groups) & set(matrices) for block in blocks):
                continue
            if not result[name].is_floating_point():
                raise ValueError(f"{name}: integers per unit cannot be mixed; hold its groups with fixed")
            parts = split(self.state[name], axes, self.spec.sizes)
            mixed = [
                mix_block(part, block.atoms, block.parents(self.spec), lambda _, atom: _of(matrices, atom))
                for block, part in zip(blocks, parts, strict=True)
            ]
            result[name] = join(mixed, axes, self.spec.sizes)
        return result

    def rounded(self) -> GroupElement:
        """Return the nearest permutations."""
        found = {}
        for name, scores in self.scores.items():
            table = scores.detach().double().numpy().reshape(-1, *scores.shape[-2:])
            columns = torch.stack([torch.from_numpy(assign(matrix)) for matrix in table])
            found[name] = columns.reshape(scores.shape[:-1])
        return GroupElement(self.spec, found, {})


def _of(matrices: Mapping[str, Tensor], atom: Perm) -> Tensor | None:
    return matrices.get(atom.group)


class _Objective:
    """What is minimised, of a network beside a."""

    def __init__(
        self,
        spec: WeightSpec,
        a: State,
        objective: Objective,
        loss: Callable[[dict[str, Tensor]], Tensor] | None,
    ) -> None:
        self.a, self.objective, self.loss = a, objective, loss
        self.floats = [name for name in spec if a[name].is_floating_point()]
        self.compared = [name for name in self.floats if not name.endswith(STATISTICS)]
        self.scale = sum(float(a[name].double().square().sum()) for name in self.compared) or 1.0

    def soft(self, moved: State, t: float) -> Tensor:
        """Return a differentiable value."""
        if self.loss is None:
            total = torch.stack([(self.a[name] - moved[name]).square().sum() for name in self.compared])
            return total.sum() / self.scale
        floats = {name: torch.lerp(self.a[name], moved[name].to(self.a[name]), t) for name in self.floats}
        return self.loss({name: floats.get(name, tensor) for name, tensor in self.a.items()})

    def hard(self, moved: State) -> float:
        """Return the value of an element, at the midpoint."""
        with torch.no_grad():
            if self.loss is not None:
                return float(self.soft(moved, 0.5))
            return sum(float((self.a[n] - moved[n]).double().square().sum()) for n in self.compared)
