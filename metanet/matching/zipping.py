"""Zipping: units of two networks that answer alike become one, within a network as well as across."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from metanet.axis import Perm, atoms
from metanet.matching.activations import activations_of, layer_axes
from metanet.matching.soft_map import SoftMap, SoftMatching, mixed_shares, nested_groups
from metanet.matching.transport import Sides
from metanet.spec import WeightSpec

State = Mapping[str, Tensor]
Similarities = npt.NDArray[np.float64]


def zip_matching(
    spec: WeightSpec,
    a: State,
    b: State,
    model: nn.Module | None = None,
    *args: Any,
    stop_after: str = "",
    again: float = 0.3,
    within: float = 0.125,
    fixed: Collection[str] = (),
    seed: int = 0,
    **kwargs: Any,
) -> SoftMatching:
    r"""Merge the units of two networks that are most alike, wherever they come from.

    Of the 2n units that both networks have of a group, pairs are merged, the most similar first, until n are
    left. With M the mean over each cluster of merged units and U its copy back to them,

        row  W = M_a W_a + M_b W_b ,   reader  V = ½ (V_a U_a + V_b U_b) ;

    the maps carry 2M, so that the merged network is the mean of both networks moved. Similar is what
    correlates on data; without data, units whose weights point the same way, group by group from the inputs.

    With ``stop_after`` only the groups up to a layer are merged (a *partial* zip): each network keeps its own
    layers behind it, which read the merged units through U, and two heads on one trunk come out.

    Args:
        spec: of both networks; derived, so that it says who writes and who reads.
        a: state dict of one network.
        b: state dict of the other.
        model: a network with these names, to be run on data; None compares weights.
        *args: one batch of data, the arguments of the network.
        stop_after: layer, or entry, behind which the networks stay apart; empty merges everything.
        again: what the similarity of a merged unit is multiplied by, so that clusters stay small (the paper's
            α); 0 merges no unit twice.
        within: largest share of merges that may be of two units of one network (the paper's β).
        fixed: groups that stay apart; nested ones must.
        seed: of the samples that are kept.
        **kwargs: further arguments of the network.

    Returns:
        Two maps, the mean similarity of what was merged, and which entries both networks share.

    Raises:
        ValueError: an unknown layer, settings out of range, nested groups that are not fixed, or a merged
            unit that reads one that is not.

    References:
        Stoica et al. 2024, ZipIt! Merging Models from Different Tasks without Training,
        https://arxiv.org/abs/2305.03053. Departs from it in comparing weights where there is no data, in
        matching groups that several layers write (residual streams) by all of these, and in its graph, which
        is the spec.
    """
    if not (0 <= again <= 1 and 0 <= within <= 1):
        raise ValueError(f"found again={again}, within={within}; expected fractions from 0 to 1")
    a, b = ({n: x.detach() for n, x in state.items()} for state in (a, b))
    sides = Sides(spec, a), Sides(spec, b)
    chosen = _chosen(spec, sides[0], stop_after, set(fixed))
    seen = None if model is None else _seen(spec, model, (a, b), args, kwargs, seed)
    merges: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    unmerges: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    likeness: dict[str, float] = {}
    waiting = list(chosen)
    while waiting:
        name = sides[0].next(waiting)
        if seen is not None:
            if name not in seen:
                raise ValueError(
                    f"no layer whose outputs can be seen writes the group {name!r}: leave it fixed, or "
                    "compare weights"
                )
            rows = torch.cat(seen[name])
        else:
            rows = torch.cat(
                [side.rows(name, waiting, m, u) for side, m, u in zip(sides, merges, unmerges, strict=True)]
            )
        rows = nn.functional.normalize(rows.double(), dim=1)
        zipped = zip_units((rows @ rows.T).numpy(), again=again, within=within)
        likeness[name] = zipped.similarity
        n = spec.sizes[name]
        clusters = torch.from_numpy(zipped.clusters)
        copy = nn.functional.one_hot(clusters, n).double()
        mean = copy.T / copy.sum(0)[:, None]
        for i in range(2):
            merges[i][name] = 2 * mean[:, i * n : (i + 1) * n].contiguous()
            unmerges[i][name] = copy[i * n : (i + 1) * n].contiguous()
        waiting.remove(name)
    first, second = (SoftMap(spec, spec, m, u) for m, u in zip(merges, unmerges, strict=True))
    whole = not stop_after and len(chosen) == len(spec.groups)
    return SoftMatching(
        second,
        likeness,
        mixed_shares(merges[1]),
        "similarity of merged units",
        map_a=first,
        shared=frozenset(spec) if whole else _shared(spec, sides[0], set(chosen)),
    )


@dataclass(frozen=True)
class ZippedUnits:
    """Clusters of units.

    Args:
        clusters: ``[2n]`` number of every unit's cluster, in 0…n-1; those of the first network's come in its
            order.
        similarity: mean similarity of pairs that were merged.
        within: number of merges of two units of one network.
    """

    clusters: npt.NDArray[np.int64]
    similarity: float
    within: int


def zip_units(similarities: Similarities, *, again: float = 0.3, within: float = 0.125) -> ZippedUnits:
    """Merge the most similar of 2n units, n of each of two networks, until n clusters are left.

    A cluster is as similar to another unit as its least similar member is, times ``again`` for every merge.

    Args:
        similarities: ``[2n, 2n]``, symmetric.
        again: factor for merged units.
        within: largest share of merges of two units of one network, of each network's half.
    """
    total = len(similarities)
    half = total // 2
    table = np.array(similarities, dtype=np.float64)
    np.fill_diagonal(table, -np.inf)
    origin = np.repeat([0, 1], half)
    budget = [int(half * within / 2 + 1e-9)] * 2
    for network in (0, 1):
        if budget[network] == 0:
            own = origin == network
            table[np.ix_(own, own)] = -np.inf
    members = [[i] for i in range(total)]
    alive, merged, inner = np.ones(total, dtype=bool), list[float](), 0
    for _ in range(half):
        i, j = divmod(int(table.argmax()), total)
        if table[i, j] == -np.inf:
            # Nothing is left that may be merged, yet n must be left: the most similar clusters go together.
            left = np.flatnonzero(alive)
            rest = np.array(similarities[np.ix_(left, left)])
            np.fill_diagonal(rest, -np.inf)
            i, j = (int(left[k]) for k in divmod(int(rest.argmax()), len(left)))
        i, j = min(i, j), max(i, j)
        merged.append(float(similarities[members[i][0], members[j][0]]))
        members[i] += members[j]
        alive[j] = False
        row = np.minimum(table[i], table[j])
        row = np.where(row > 0, row * again, row) if again > 0 else np.full(total, -np.inf)
        row[i] = -np.inf
        table[i], table[:, i] = row, row
        table[j], table[:, j] = -np.inf, -np.inf
        if origin[i] == origin[j]:
            inner += 1
            budget[origin[i]] -= 1
            if budget[origin[i]] <= 0:
                own = origin == origin[i]
                table[np.ix_(own, own)] = -np.inf
    clusters = np.empty(total, dtype=np.int64)
    # The smallest unit of a cluster gives its place; the first network's units are the smaller ones.
    for number, k in enumerate(sorted(np.flatnonzero(alive), key=lambda k: min(members[k]))):
        clusters[members[k]] = number
    return ZippedUnits(clusters, float(np.mean(merged)), inner)


def _chosen(spec: WeightSpec, side: Sides, stop_after: str, fixed: set[str]) -> list[str]:
    """Return the groups that are merged: those written up to a layer, and whatever their rows read."""
    if stop_after:
        first: dict[str, int] = {}
        last = -1
        for position, op in enumerate(spec.operations):
            for _, entry in op.parameters:
                if entry == stop_after or entry.startswith(f"{stop_after}."):
                    last = max(last, position)
                for dim, axis in enumerate(spec.axes[entry]):
                    for atom in atoms(axis):
                        if isinstance(atom, Perm) and (entry, dim) not in side.readers:
                            first.setdefault(atom.group, position)
        if last < 0:
            layers = sorted({entry.rpartition(".")[0] for entry in spec})
            raise ValueError(f"there is no layer {stop_after!r}; the layers are {', '.join(layers[:12])}")
        chosen = {name for name, position in first.items() if position <= last}
    else:
        chosen = {group.name for group in spec.groups}
    chosen -= fixed
    while True:
        more = {
            name
            for group in chosen
            for piece in side.written(group)
            for name in piece.block.groups
            if name not in chosen
        }
        if refused := sorted(more & fixed):
            raise ValueError(f"merged units read {refused[0]!r}, which is fixed; leave fewer groups fixed")
        if not more:
            break
        chosen |= more
    if nested := sorted(nested_groups(spec) & chosen):
        raise ValueError(
            f"the groups {', '.join(nested[:6])} are nested, or carry nested ones (heads and their widths): "
            "they cannot be zipped; stop before them (stop_after)"
        )
    return [group.name for group in spec.groups if group.name in chosen]


def _shared(spec: WeightSpec, side: Sides, chosen: set[str]) -> frozenset[str]:
    """Return the entries that write merged units and nothing else."""
    found = set()
    for name, axes in spec.entries:
        written = [
            atom.group
            for dim, axis in enumerate(axes)
            for atom in atoms(axis)
            if isinstance(atom, Perm) and (name, dim) not in side.readers
        ]
        if written and set(written) <= chosen:
            found.add(name)
    return frozenset(found)


def _seen(
    spec: WeightSpec,
    model: nn.Module,
    states: tuple[State, State],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seed: int,
) -> dict[str, list[Tensor]]:
    """Return for every group what its units of each network answer, ``[n, samples of all layers]``."""
    axes = {name: axis for name, axis in layer_axes(spec, model).items() if isinstance(axis, Perm)}
    found = activations_of(model, states, axes, args, kwargs, seed=seed)
    groups: dict[str, list[Tensor]] = {}
    for group in dict.fromkeys(axis.group for axis in axes.values() if isinstance(axis, Perm)):
        layers = [name for name, axis in axes.items() if isinstance(axis, Perm) and axis.group == group]
        groups[group] = [torch.cat([one[name] for name in layers], 1) for one in found]
    return groups
