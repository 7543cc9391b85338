"""The notation of a spec: what `str(spec)` prints and `WeightSpec.parse` reads back.

The table of groups, one line per entry, and after a line ``actions`` one header per action with a line for
every term. The leaves that a term acts along are marked ``^``, the last one with its power::

    groups           head: 4   query: 2   v: 16   embed: 64
    v_proj.weight    (head v) embed
    o_proj.weight    embed (head query v)
    actions
    linear head v
    - v_proj.weight   (head^ v^) embed
    - o_proj.weight   embed (head^ query v^-1)

Marked leaves go with the axes of the header in order, each with the first one left that fits; where that is
not what is meant, ``^`` is followed by the number of the axis and a colon (``h1^1:-1 h1^0:``). A variance
that is read as v + eps has the mark ``^2~1e-05``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from metanet.action import ACTION_KINDS, Action, Layout, Term
from metanet.axis import GROUP_NAME, Atom, Axis, Concat, Fixed, Perm, parse_axes
from metanet.leaf import leaves_of
from metanet.units import Freedom, Group

Entries = tuple[tuple[str, tuple[Axis, ...]], ...]


def format_spec(groups: Sequence[Group], entries: Entries, actions: Sequence[Action]) -> str:
    """Return a spec in notation."""
    rows = [(_quote(name), " ".join(map(str, axes))) for name, axes in entries]
    width = max([len("groups"), *(len(name) for name, _ in rows)])
    header = "   ".join(map(str, groups))
    lines = [f"{name:<{width}}   {text}".rstrip() for name, text in [("groups", header), *rows]]
    if actions:
        lines.append("actions")
    axes = dict(entries)
    for action in actions:
        lines.append(str(action))
        names = [_quote(term.entry) for term in action.terms]
        width = max(map(len, names))
        for name, term in zip(names, action.terms, strict=True):
            text = _format_term(action, term, axes[term.entry])
            lines.append(f"- {name:<{width}}   {text}".rstrip())
    return "\n".join(lines)


def parse_spec(text: str) -> tuple[tuple[Group, ...], Entries, tuple[Action, ...]]:
    """Read a spec in notation; blank lines and ``#`` comments are skipped.

    Returns:
        Groups, entries and actions.

    Raises:
        ValueError: naming the line that cannot be read.
    """
    groups: tuple[Group, ...] | None = None
    entries: list[tuple[str, tuple[Axis, ...]]] = []
    actions: list[Action] | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if groups is None:
                word, _, rest = line.partition(" ")
                if word != "groups":
                    raise ValueError(
                        f"a spec opens with the table of groups ('groups  h1: 32 …'), found {word!r}"
                    )
                groups = _parse_groups(rest)
            elif actions is None and line == "actions":
                actions = []
            elif actions is None:
                name, rest = _unquote(line)
                entries.append((name, parse_axes(rest)))
            elif line.startswith("- "):
                if not actions:
                    raise ValueError("a term follows the header of its action, e.g. 'linear head v'")
                action = actions[-1]
                term = _parse_term(action, line[2:].strip(), dict(entries))
                actions[-1] = Action(action.kind, action.axes, (*action.terms, term), action.layout)
            else:
                actions.append(parse_action(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    if groups is None:
        raise ValueError("the text holds no spec: expected a first line 'groups  h1: 32 …'")
    return groups, tuple(entries), tuple(actions or ())


# Groups

_GROUP = re.compile(
    rf"\s*(?P<name>{GROUP_NAME.pattern}):\s*(?P<size>\d+)(?P<rest>(?:\s+(?!{GROUP_NAME.pattern}:)\S+)*)"
)
_FREEDOM = re.compile(r"([a-z_]+)(?:\(([^()]+)\))?")


def _parse_groups(text: str) -> tuple[Group, ...]:
    groups: list[Group] = []
    end = 0
    while text[end:].strip():
        match = _GROUP.match(text, end)
        if match is None:
            raise ValueError(
                f"unreadable group {text[end:].strip()!r}: expected 'name: size freedom… [under parent]'"
            )
        groups.append(parse_group(match[0]))
        end = match.end()
    return tuple(groups)


def parse_group(text: str) -> Group:
    """Read one group of the table.

    Raises:
        ValueError: unreadable.
    """
    match = _GROUP.fullmatch(text.rstrip())
    if match is None:
        raise ValueError(f"unreadable group {text!r}: expected 'name: size freedom… [under parent]'")
    words = match["rest"].split()
    parent = None
    if "under" in words:
        at = words.index("under")
        if at != len(words) - 2:
            raise ValueError(f"group {match['name']!r}: 'under' is followed by one group name at the end")
        parent, words = words[-1], words[:at]
    freedoms = []
    for word in words:
        found = _FREEDOM.fullmatch(word)
        if found is None:
            raise ValueError(f"group {match['name']!r}: unreadable freedom {word!r}")
        freedoms.append(Freedom(found[1], float(found[2]) if found[2] else None))  # type: ignore[arg-type]
    return Group(match["name"], int(match["size"]), tuple(freedoms), parent)


# Actions


def parse_action(text: str) -> Action:
    """Read the header of an action, e.g. ``rotation head 16 half``; it has no terms yet.

    Raises:
        ValueError: unreadable.
    """
    kind, _, rest = text.partition(" ")
    if kind not in ACTION_KINDS:
        raise ValueError(f"unknown action {kind!r}; the known ones are {', '.join(ACTION_KINDS)}")
    words = rest.split()
    layout: Layout | None = None
    if kind == "rotation" and words and words[-1] in ("half", "interleaved"):
        layout = words.pop()  # type: ignore[assignment]
    axes = parse_axes(" ".join(words))
    atoms = tuple(axis for axis in axes if isinstance(axis, (Fixed, Perm)))
    if len(atoms) < len(axes):
        raise ValueError(f"the axes of an action are groups and sizes, found {rest!r}")
    return Action(kind, atoms, (), layout)


def _fits(action: Action, place: int, atom: Atom) -> bool:
    axis = action.axes[place]
    if isinstance(axis, Perm):
        return isinstance(atom, Perm) and atom.group == axis.group
    pairs = action.kind == "rotation" and place == len(action.axes) - 1
    return atom == Fixed(axis.size * (2 if pairs else 1))


def _assign(action: Action, atoms: Sequence[Atom], marked: Sequence[int]) -> list[int]:
    """Return, for every axis, the first marked leaf left that fits it."""
    left, chosen = list(marked), list[int]()
    for place in range(len(action.axes)):
        leaf = next((leaf for leaf in left if _fits(action, place, atoms[leaf])), None)
        if leaf is None:
            raise ValueError(
                f"no marked leaf fits the axis {action.axes[place]} of '{action}': mark one of this group or "
                "size with '^' for every axis"
            )
        left.remove(leaf)
        chosen.append(leaf)
    if left:
        raise ValueError(f"{len(marked)} marked leaves where '{action}' has {len(action.axes)} axes")
    return chosen


def _format_term(action: Action, term: Term, axes: tuple[Axis, ...]) -> str:
    atoms = [leaf.atom for leaf in leaves_of(axes)]
    plain = sorted(term.leaves) != list(term.leaves)
    try:
        plain = _assign(action, atoms, sorted(term.leaves)) == list(term.leaves)
    except ValueError:
        plain = False
    power = "" if term.power == 1 and term.eps is None else str(term.power)
    power += "" if term.eps is None else f"~{term.eps!r}"
    marks = {
        leaf: "^" + ("" if plain else f"{place}:") + (power if place == len(term.leaves) - 1 else "")
        for place, leaf in enumerate(term.leaves)
    }
    numbers = iter(range(len(atoms)))

    def show(axis: Axis) -> str:
        if isinstance(axis, (Fixed, Perm)):
            return f"{axis}{marks.get(next(numbers), '')}"
        inner = [show(part) for part in axis.axes]
        return f"[{' | '.join(inner)}]" if isinstance(axis, Concat) else f"({' '.join(inner)})"

    text = " ".join(map(show, axes))
    return text if term.leaves or not power else f"^{power} {text}"


_MARK = re.compile(r"\^(?:(\d+):)?(-?\d+)?(?:~([0-9.eE+-]+))?")
_ATOM = re.compile(rf"({GROUP_NAME.pattern}['+]?|\d+)({_MARK.pattern})?")


def _parse_term(action: Action, text: str, axes: dict[str, tuple[Axis, ...]]) -> Term:
    name, rest = _unquote(text)
    if name not in axes:
        raise ValueError(f"'{action}' acts on {name!r}, which is not an entry above")
    power, eps = 1, None
    scalar = _MARK.match(rest.strip())
    if scalar is not None:
        if action.axes:
            raise ValueError(f"mark the leaves of {name!r} along which '{action}' acts")
        power, eps = _power(scalar)
        rest = rest.strip()[scalar.end() :]
    found = list(_ATOM.finditer(rest))
    marks = {i: match for i, match in enumerate(found) if match[2] is not None}
    plain = _ATOM.sub(r"\1", rest)
    if parse_axes(plain) != axes[name] or len(found) != len(leaves_of(axes[name])):
        raise ValueError(
            f"the axes of {name!r} are {' '.join(map(str, axes[name]))}, but the action says {plain.strip()}"
        )
    parsed = {leaf: _MARK.fullmatch(match[2]) for leaf, match in marks.items()}
    numbered = {int(mark[1]): leaf for leaf, mark in parsed.items() if mark is not None and mark[1]}
    if numbered:
        if sorted(numbered) != list(range(len(action.axes))) or len(numbered) < len(marks):
            raise ValueError(f"{name!r}: number all marked leaves, 0 to {len(action.axes) - 1}")
        leaves = [numbered[place] for place in range(len(action.axes))]
    else:
        leaves = _assign(action, [leaf.atom for leaf in leaves_of(axes[name])], list(marks))
    for place, leaf in enumerate(leaves):
        mark = parsed[leaf]
        assert mark is not None
        if place == len(leaves) - 1:
            power, eps = _power(mark)
        elif mark[2] or mark[3]:
            raise ValueError(f"{name!r}: the power stands at the leaf of the last axis, {action.axes[-1]}")
    return Term(name, tuple(leaves), power, eps)


def _power(mark: re.Match[str]) -> tuple[int, float | None]:
    return int(mark[2] or 1), float(mark[3]) if mark[3] else None


def action_to_dict(action: Action) -> dict[str, Any]:
    """Return an action as plain JSON values."""
    return {
        "action": str(action),
        "terms": [
            {"entry": term.entry, "leaves": list(term.leaves), "power": term.power, "eps": term.eps}
            for term in action.terms
        ],
    }


def action_from_dict(data: dict[str, Any]) -> Action:
    """Read what `action_to_dict` returned."""
    header = parse_action(data["action"])
    terms = tuple(
        Term(str(t["entry"]), tuple(map(int, t["leaves"])), int(t["power"]), t["eps"]) for t in data["terms"]
    )
    return Action(header.kind, header.axes, terms, header.layout)


# Entry names


def _quote(name: str) -> str:
    plain = name and not re.search(r'[\s"#]', name) and name not in ("groups", "actions")
    return name if plain else json.dumps(name)


def _unquote(line: str) -> tuple[str, str]:
    if line.startswith('"'):
        name, end = json.JSONDecoder().raw_decode(line)
        return str(name), line[end:]
    name, _, rest = line.partition(" ")
    return name, rest
