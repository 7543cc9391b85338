"""Weight matching: the element of a spec's group that takes one network's weights nearest to another's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metanet.group import GroupElement
from metanet.matching.components import Component, components_of
from metanet.matching.gains import gains_of
from metanet.matching.moves import Move
from metanet.matching.pair import STATISTICS, Pair, squared_distance
from metanet.matching.starts import Start, check_starts, start_element
from metanet.matching.step import best_element
from metanet.spec import WeightSpec

TOLERANCE = 1e-8
"""Smallest decrease of ‖a − g·b‖² that counts, relative to ‖a‖² + ‖b‖²: above the rounding of float32."""
EXACT = 1e-10
"""A distance this small, relative to ‖a‖² + ‖b‖², is none: no other start can do better."""
DEFAULT_STARTS: tuple[Start, ...] = ("greedy",)
"""One start, which takes few sweeps and ends lower than others; the identity follows if it ends above it."""


@dataclass(frozen=True)
class Matching:
    """An element g that takes network b to network a, and how it was found.

    Args:
        element: g.
        before: ‖a − b‖² over the entries that were compared.
        after: ‖a − g·b‖² over the same.
        history: ‖a − g·b‖² at the starts that won, and after every step that they took.
        starts: the start that won, for every component (`metanet.matching.components`).
        sweeps: passes over the groups, of all starts together.
        moved: group -> fraction of its units that do not stay where they were.
        measure: what ``before``, ``after`` and the history are where it is not ‖a − b‖²: a distance between
            activations, or a loss.
    """

    element: GroupElement
    before: float
    after: float
    history: tuple[float, ...]
    starts: tuple[str, ...]
    sweeps: int
    moved: Mapping[str, float]
    measure: str = "squared distance"

    @property
    def gain(self) -> float:
        """Fraction of ‖a − b‖², or of whatever else is measured, that matching removes."""
        return 1.0 - self.after / self.before if self.before > 0 else 0.0


def match_weights(
    spec: WeightSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    fixed: Collection[str] = (),
    flips: bool = True,
    starts: Sequence[Start] = DEFAULT_STARTS,
    max_sweeps: int = 100,
    entries: Collection[str] | None = None,
    seed: int = 0,
) -> GroupElement:
    """Return the element g that minimises ‖a − g·b‖²; see `weight_matching`, which says more."""
    return weight_matching(
        spec,
        a,
        b,
        fixed=fixed,
        flips=flips,
        starts=starts,
        max_sweeps=max_sweeps,
        entries=entries,
        seed=seed,
    ).element


def weight_matching(
    spec: WeightSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    fixed: Collection[str] = (),
    flips: bool = True,
    starts: Sequence[Start] = DEFAULT_STARTS,
    max_sweeps: int = 100,
    entries: Collection[str] | None = None,
    seed: int = 0,
    progress: Callable[[Component], None] | None = None,
) -> Matching:
    r"""Align b to a by their weights alone: coordinate descent over the groups of the spec.

        minimise over g in G:  ‖a − g·b‖² = Σ_blocks ‖a_k − (g·b)_k‖² .

    One step solves one group (with the groups nested under it) exactly, all others staying: a linear
    assignment on the inner products of units, summed over every block that carries the group. Signs, even
    flips and phases are chosen with the permutation, signs among the spec's actions too
    (`metanet.matching.action_signs`). Scales are no isometries: bring both networks into canonical form first
    (`metanet.canonicalize`). The distance never rises: a step that does not lower it is not taken.

    Args:
        spec: of both networks.
        a: state dict of the network that stays; a lazy mapping is read one component at a time.
        b: state dict of the network to be moved.
        fixed: groups that stay as they are.
        flips: use signs, even flips and phases where the spec has them.
        starts: where to start (`metanet.matching.starts`); the best result is kept. Where none ends below
            the identity, the identity is a start too.
        max_sweeps: passes over all groups, for each start.
        entries: what is compared; None takes everything but the running statistics of norms.
        seed: of the order of groups and of random starts.
        progress: told of every component that is done.

    Returns:
        The matching; ``matching.element @ b`` is the aligned network.

    Raises:
        ValueError: weights that do not fit the spec or are not finite, unknown groups or starts.

    References:
        Ainsworth, Hayase and Srinivasa 2023, Git Re-Basin, https://arxiv.org/abs/2209.04836, §3.2: the
        descent. Departs from it in the starts, in nested groups and in the freedoms beside permutation.

    Example:
        >>> spec = WeightSpec.parse("groups  h: 3\nw  h 2\nv  1 h")
        >>> b = {"w": torch.tensor([[1.0, 2], [3, 4], [5, 6]]), "v": torch.tensor([[1.0, 2, 3]])}
        >>> g = GroupElement(spec, {"h": torch.tensor([2, 0, 1])}, {})
        >>> weight_matching(spec, g @ b, b).element.allclose(g)
        True
    """
    check_starts(starts)
    if unknown := sorted(set(fixed) - set(spec.group)):
        raise ValueError(f"the spec has no groups {unknown}; its groups are {', '.join(spec.group)}")
    if entries is None:
        entries = [name for name in spec if not name.endswith(STATISTICS)]
    generator = torch.Generator().manual_seed(seed)
    element = GroupElement.identity(spec)
    parts: list[_Part] = []
    for component in components_of(spec, fixed, entries):
        held = [group.name for group in spec.groups if group.name not in component.groups]
        # The pair is handed over and not kept: its tensors are gone before the next component's are read.
        part = _match_pair(
            Pair(spec, a, b, fixed=held, entries=component.entries & set(entries)),
            starts,
            generator,
            flips=flips,
            max_sweeps=max_sweeps,
        )
        element = part.best.element @ element
        parts.append(part)
        if progress is not None:
            progress(component)
    return Matching(
        element=element,
        before=sum(part.before for part in parts),
        after=sum(part.best.history[-1] for part in parts),
        history=_joined(parts),
        starts=tuple(part.start for part in parts),
        sweeps=sum(part.sweeps for part in parts),
        moved=moved_fractions(element),
    )


@dataclass(frozen=True)
class _Part:
    """What matching one component found."""

    before: float
    best: Descent
    start: str
    sweeps: int


def _match_pair(
    pair: Pair, starts: Sequence[Start], generator: torch.Generator, *, flips: bool, max_sweeps: int
) -> _Part:
    before, scale = pair.distance(), pair.scale()
    best = Descent(GroupElement.identity(pair.spec), (before,), 0)
    winner, sweeps = "identity", 0
    # One step solves a single group exactly, wherever it starts.
    exact = len(pair.moves) == 1 and not carried_twice(pair.moves[0])
    todo: list[Start] = ["identity"] if exact else [*starts]
    if "identity" not in todo:
        todo.append("identity")
    for start in todo:
        if start not in starts and not exact and best.history[-1] < before:
            break
        if best.history[-1] <= EXACT * scale:
            break
        pair.restart(start_element(pair, start, generator, flips=flips))
        found = descend(pair, generator, flips=flips, max_sweeps=max_sweeps, least=TOLERANCE * scale)
        sweeps += found.sweeps
        if found.history[-1] < best.history[-1]:
            best, winner = found, start
    return _Part(before, best, winner, sweeps)


def _joined(parts: Sequence[_Part]) -> tuple[float, ...]:
    """Return the distance over all components as one after the other is matched."""
    rest = sum(part.best.history[0] for part in parts)
    history = [rest]
    for part in parts:
        rest -= part.best.history[0]
        history += [rest + value for value in part.best.history[1:]]
        rest += part.best.history[-1]
    return tuple(history)


@dataclass(frozen=True)
class Descent:
    """Where one descent ended: its element, the distances on the way, and the sweeps it took."""

    element: GroupElement
    history: tuple[float, ...]
    sweeps: int


def descend(pair: Pair, generator: torch.Generator, *, flips: bool, max_sweeps: int, least: float) -> Descent:
    """Take steps in random order of the groups until none lowers the distance by more than ``least``."""
    history = [pair.distance()]
    pending = set(range(len(pair.moves)))
    sweep = 0
    while pending and sweep < max_sweeps:
        sweep += 1
        for number in torch.randperm(len(pair.moves), generator=generator).tolist():
            if number not in pending:
                continue
            pending.discard(number)
            move = pair.moves[number]
            gained = take_step(pair, move, flips=flips, least=least)
            if gained > 0:
                history.append(history[-1] - gained)
                pending |= {
                    other
                    for other, neighbour in enumerate(pair.moves)
                    if neighbour.blocks & move.blocks and (other != number or carried_twice(move))
                }
    # The sum of the steps has their rounding errors; the distance itself closes the account.
    return Descent(pair.element, (*history[:-1], pair.distance()), sweep)


def take_step(pair: Pair, move: Move, *, flips: bool, least: float) -> float:
    """Solve one move; take the step if it lowers the distance by more than ``least``.

    A group that a block carries twice (a recurrent weight) has a quadratic gain, and the linear step may
    overshoot: it is then tried again with more weight on staying.

    Returns:
        by how much the distance fell.
    """
    gains = gains_of(pair.spec, move, pair.blocks, pair.a, pair.b)
    before = pair.distance(move.blocks)
    inertia = 0.0
    for _ in range(4 if carried_twice(move) else 1):
        element = best_element(pair.spec, move, gains, flips=flips, inertia=inertia)
        moved = pair.moved(element, move.blocks)
        after = sum(squared_distance(pair.a[number], tensor) for number, tensor in moved.items())
        if before - after > least:
            pair.advance(element, moved)
            return before - after
        plain = next(iter(gains.values())).plain
        assert plain is not None
        inertia = max(inertia * 3, float(plain.std()))
    return 0.0


def matching_of(
    element: GroupElement, a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, how: str = "given"
) -> Matching:
    """Return what an element does to two state dicts, as matching reports it; statistics are not compared.

    Args:
        element: takes b to a.
        a: state dict of the network that stays.
        b: state dict of the network to be moved.
        how: it was found.
    """
    moved = element @ b
    names = [name for name in element.spec if not name.endswith(STATISTICS) and a[name].is_floating_point()]
    before, after = (sum(squared_distance(a[name], state[name]) for name in names) for state in (b, moved))
    return Matching(element, before, after, (before, after), (how,), 0, moved_fractions(element))


def moved_fractions(element: GroupElement) -> dict[str, float]:
    """Return for every group the fraction of its units that an element moves."""
    return {
        name: float((permutation != torch.arange(permutation.shape[-1])).float().mean())
        for name, permutation in element.permutations.items()
    }


def carried_twice(move: Move) -> bool:
    """Tell whether some block carries the units of a move more than once."""
    return len(move.blocks) < len(move.places)
