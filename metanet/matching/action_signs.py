"""Signs among a spec's actions that matching may use: changes of sign are isometries, as permutations are.

Weights that are matched in L2 are permuted, flipped where a group has signs, even units or phases, and, by
what is found here, flipped where an *action* (`metanet.action`) changes the sign of some places of a group
and leaves others: the values and readers of a gated unit but not its gate, the cell of an LSTM but not its
gates, a residual stream but not the gains of its norms. Of the other actions, rotations and orthogonal maps
have a method of their own (`metanet.matching.orthogonal`), scales are brought into canonical form before
matching, and matching leaves all of them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metanet.action import Action
from metanet.axis import Axis, Concat, Fixed, Perm, Product, axis_blocks
from metanet.blocks import Block
from metanet.freedoms.dataflow import Dataflow
from metanet.freedoms.roles import MATRICES
from metanet.spec import WeightSpec


def sign_actions(spec: WeightSpec) -> dict[str, int]:
    """Return the action that flips the units of a group, for every group that has one.

    A group with flips of its own, or nested, has none. Of a scale the sign is used where it multiplies
    nothing but matrices: where the gain of a norm is multiplied too, the mean of two networks that differ in
    sign would lose the gain.

    Args:
        spec: the spec.

    Returns:
        group -> number of the action; the one that acts in most places, true signs first.
    """
    candidates: dict[str, list[int]] = {}
    for number, action in enumerate(spec.actions):
        if action.kind not in ("sign", "scale") or len(action.axes) != 1:
            continue
        axis = action.axes[0]
        if not isinstance(axis, Perm) or spec.group[axis.group].parent is not None:
            continue
        if spec.group[axis.group].freedoms or not any(term.power % 2 for term in action.terms):
            continue
        candidates.setdefault(axis.group, []).append(number)
    if not candidates:
        return {}
    uses = Dataflow(spec).uses
    kinds = {
        entry: {spec.operations[position].kind for position, _ in found} for entry, found in uses.items()
    }

    def allowed(action: Action) -> bool:
        return action.kind == "sign" or all(
            bool(kinds.get(term.entry)) and kinds[term.entry] <= MATRICES for term in action.terms
        )

    found = {}
    for group, numbers in candidates.items():
        usable = [number for number in numbers if allowed(spec.actions[number])]
        if usable:
            found[group] = max(
                usable, key=lambda n: (spec.actions[n].kind == "sign", len(spec.actions[n].terms))
            )
    return found


def sign_places(spec: WeightSpec, block: Block, chosen: Mapping[str, int]) -> dict[int, int]:
    """Return the atoms of a block that actions flip.

    Args:
        spec: the spec.
        block: one of its blocks.
        chosen: group -> number of its action (`sign_actions`).

    Returns:
        position of the atom -> number of the action.
    """
    terms = [(number, term) for number, term in spec.terms.get(block.entry, ()) if number in chosen.values()]
    if not terms:
        return {}
    numbers = _leaf_numbers(spec.axes[block.entry])[block.path]
    flipped = {term.leaves[0]: number for number, term in terms if term.power % 2}
    return {at: flipped[leaf] for at, leaf in enumerate(numbers) if leaf in flipped}


def _leaf_numbers(axes: Sequence[Axis]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return, for every block of an entry by its path, which leaf of the entry each of its atoms is."""
    count = 0

    def label(axis: Axis) -> Axis:
        nonlocal count
        if isinstance(axis, (Product, Concat)):
            return type(axis)(tuple(label(part) for part in axis.axes))
        count += 1
        return Fixed(count - 1)

    labelled = [label(axis) for axis in axes]
    return {
        path: tuple(atom.size for atom in atoms if isinstance(atom, Fixed))
        for path, atoms, _ in axis_blocks(labelled)
    }
