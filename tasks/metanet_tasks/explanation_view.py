"""An explanation of a spec as text: one paragraph a group, then what was lost and what is unused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metanet.explanation import Explanation, GroupExplanation

SHOWN = 6
"""Names that are listed one by one."""


def explanation_lines(explanation: Explanation) -> Iterator[str]:
    """Yield the lines of an explanation.

    Args:
        explanation: from `metanet.explanation.explain`.
    """
    for group in explanation.groups:
        yield from _group_lines(group)
        yield ""
    if not explanation.groups:
        yield "no groups: no change of these weights is known to keep the function"
    for lost, advice in explanation.lost:
        yield f"lost to {lost.operation}: {_some(lost.entries)}"
        yield f"  why: {lost.reason}"
        yield f"  to win it back: {advice}"
    if not explanation.lost:
        yield "lost: nothing; every operation has a rule that covers it"
    if explanation.unused:
        yield f"unused: no output depends on {_some(explanation.unused)}, so any change of them is free"


def _group_lines(group: GroupExplanation) -> Iterator[str]:
    nested = f" for every unit of {group.parent}" if group.parent else ""
    yield f"{group.name}: {group.size} units{nested}"
    if group.writer is None:
        yield "  from: not known, as the spec lists no operations (a spec in JSON does)"
    else:
        entry, kind = group.writer
        yield f"  from: written first by {entry} ({kind})"
    for kind, entries in group.joined().items():
        yield f"  tied by {kind}: {_some(entries)}"
    for number, act in enumerate(_summed(group.acts)):
        yield f"  {'acts:' if not number else '     '} {act}"
    places = [f"{name}[{dim}]" for name, dim in group.occurs]
    yield f"  in {len(places)} {'dimension' if len(places) == 1 else 'dimensions'}: {_some(places)}"


def _summed(acts: Sequence[str]) -> Iterator[str]:
    """Yield what acts, actions that differ in where they act alone counted."""
    places: dict[str, list[str]] = {}
    for act in acts:
        what, _, where = act.partition("; it acts on ")
        places.setdefault(what, []).append(where)
    for what, found in places.items():
        if len(found) > 1:
            yield f"{what}; {len(found)} of these, the first on {found[0]}"
        else:
            yield f"{what}; on {found[0]}" if found[0] else what


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
