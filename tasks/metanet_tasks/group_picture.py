"""The group structure of a network as a picture: groups are bars, parameters lead from bar to bar.

Time runs from left to right as the network does. A bar lasts from the operation that first writes a group to
the last one that reads it, so that a residual stream is one long bar with the layers above it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from matplotlib.patheffects import withStroke

from metanet.spec import Group, WeightSpec
from metanet_tasks.group_structure import Folded, Step, bands_of, shortened, steps_of
from metanet_zoo.atomic import atomic_path

STEP, LANE = 0.30, 0.46
"""Inches between operations and between bars."""
LETTER = 0.075
"""Inches that a letter of a bar's name takes."""
WIDEST = 60.0
COLOURS = ("#2f6f9f", "#d9822b", "#6a994e", "#7b5ea7", "#b5495b", "#4f8a8b", "#a07c2c", "#5c6b7a")
INK, FAINT = "#3a4450", "#9aa5b1"
FORMATS = (".svg", ".png", ".pdf")


def plot_groups(spec: WeightSpec, path: Path, title: str = "") -> None:
    """Draw which parameters lead from which groups to which, and write the picture whole or not at all.

    Args:
        spec: best with operations, as derived or read from JSON.
        path: where to; the ending says the format, SVG, PNG or PDF.
        title: above the picture.

    Raises:
        ValueError: another format, or a spec without groups.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"a picture ends in {', '.join(FORMATS)}, found {path.name!r}")
    if not spec.groups:
        raise ValueError("there is nothing to draw: the spec has no groups")
    figure = draw_groups(spec, title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=130, bbox_inches="tight")


def draw_groups(spec: WeightSpec, title: str = "") -> Figure:
    """Return the picture as a figure of matplotlib; see `plot_groups`."""
    steps = steps_of(spec)
    spans = _spans(steps)
    bands = bands_of(steps)
    shown_bands = {name: ".".join(name.split(".")[-2:]) for name, _, _ in bands}
    names = _bar_names(spec, list(spans), [name for name, _, _ in bands])
    lanes = _lanes(spans, names)
    width = min(STEP * len(steps) + 1.6, WIDEST)
    height = LANE * (max(lanes.values()) + 3) + 0.5
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    kinds = list(dict.fromkeys(names[group].split(":")[0] for group in _by_size_of_use(spans)))
    colours = {group: COLOURS[kinds.index(names[group].split(":")[0]) % len(COLOURS)] for group in spans}
    gaps = [x for x, step in enumerate(steps) if isinstance(step, Folded)]
    for group, (start, stop) in spans.items():
        _bar(axis, start, stop, lanes[group], names[group], colours[group], gaps)
    for x, step in enumerate(steps):
        if isinstance(step, Step):
            _stick(axis, x, step, lanes, colours)
        else:
            _gap(axis, x, step, max(lanes.values()) + 1)
    _labels(axis, steps, bands)
    top = max(lanes.values()) + 1.3
    for number, (name, first, last) in enumerate(bands):
        if number % 2 == 0:
            axis.axvspan(first - 0.5, last + 0.5, color="#f5f7f9", zorder=0)
        axis.text(first - 0.4, top - 0.08, shown_bands[name], fontsize=7, color=FAINT, va="top", zorder=6)
    axis.set_xlim(-0.9, len(steps) + 1.2)
    axis.set_ylim(-1.6, top)
    if title:
        axis.set_title(title, fontsize=11, color=INK, loc="left", pad=18)
    _legend(axis)
    return figure


def _spans(steps: Sequence[Step | Folded]) -> dict[str, tuple[int, int]]:
    """Return the first and last step that meets each group, in the order of their first."""
    spans: dict[str, tuple[int, int]] = {}
    for x, step in enumerate(steps):
        for group in step.touches if isinstance(step, Step) else ():
            spans[group] = (spans.get(group, (x, x))[0], x)
    return spans


def _bar_names(spec: WeightSpec, groups: Sequence[str], layers: Sequence[str]) -> dict[str, str]:
    short = _within(layers, groups)
    return {name: _bar_name(spec.group[name], short[name]) for name in groups}


def _within(layers: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return names without the layer that they belong to, or without what all others begin with."""
    inside = {
        name: name.removeprefix(f"{layer}.")
        for name in names
        for layer in layers
        if name.startswith(f"{layer}.")
    }
    return {**shortened([name for name in names if name not in inside]), **inside}


def _bar_name(group: Group, short: str) -> str:
    words = [f"{short}: {group.size}", *(freedom.kind.replace("_", " ") for freedom in group.freedoms)]
    return " ".join(words) + (" (nested)" if group.parent else "")


def _by_size_of_use(spans: Mapping[str, tuple[int, int]]) -> list[str]:
    return sorted(spans, key=lambda group: (spans[group][0] - spans[group][1], spans[group][0]))


def _lanes(spans: Mapping[str, tuple[int, int]], names: Mapping[str, str]) -> dict[str, int]:
    """Give every bar a lane in which it and its name are alone; long bars lie below."""
    taken: list[list[tuple[float, float]]] = []
    lanes: dict[str, int] = {}
    for group in _by_size_of_use(spans):
        start, stop = spans[group]
        end = max(stop + 0.5, start - 0.3 + len(names[group]) * LETTER / STEP)
        lane = 0
        while lane < len(taken) and any(start - 0.5 < b and a < end for a, b in taken[lane]):
            lane += 1
        if lane == len(taken):
            taken.append([])
        taken[lane].append((start - 0.5, end))
        lanes[group] = lane
    return lanes


def _bar(axis: Axes, start: int, stop: int, lane: int, name: str, colour: str, gaps: Sequence[int]) -> None:
    axis.add_patch(
        FancyBboxPatch(
            (start - 0.25, lane - 0.13),
            stop - start + 0.5,
            0.26,
            boxstyle="round,pad=0,rounding_size=0.13",
            facecolor=colour,
            edgecolor="none",
            alpha=0.85,
            zorder=2,
        )
    )
    for gap in gaps:
        if start < gap < stop:
            axis.plot([gap - 0.45, gap + 0.45], [lane, lane], color="white", linewidth=1.6, zorder=3)
    axis.text(
        start - 0.25,
        lane + 0.19,
        name,
        fontsize=7,
        color=colour,
        va="bottom",
        zorder=6,
        path_effects=[withStroke(linewidth=2.2, foreground="white")],
    )


def _stick(axis: Axes, x: int, step: Step, lanes: Mapping[str, int], colours: Mapping[str, str]) -> None:
    ends = [lanes[group] for group in (*step.reads, *step.writes)]
    if step.source or step.target or (ends and not step.reads):
        ends.append(-1)
    if ends:
        axis.plot([x, x], [min(ends), max(ends)], color=INK, linewidth=0.9, zorder=4)
    if -1 in ends:
        size = step.source or step.target
        axis.plot([x], [-1], marker="s", markersize=5, color=FAINT, zorder=5)
        axis.text(x + 0.16, -0.92, str(size) if size else "", fontsize=6, color=INK, va="bottom", zorder=6)
    for group in step.works_on:
        axis.plot([x], [lanes[group]], marker="D", markersize=3.4, color="white", zorder=5)
    for group in step.reads:
        axis.plot(
            [x], [lanes[group]], "o", markersize=4.6, markerfacecolor="white", markeredgecolor=INK, zorder=5
        )
    for group in step.writes:
        both = group in step.reads
        axis.plot([x + 0.18 * both], [lanes[group]], "o", markersize=4.6, color=INK, zorder=5)


def _gap(axis: Axes, x: int, step: Folded, top: int) -> None:
    axis.axvspan(x - 0.45, x + 0.45, color="#eef1f4", zorder=0)
    axis.text(
        x,
        (top - 1) / 2,
        f"{step.layers} more like {step.like}",
        rotation=90,
        fontsize=7,
        color=INK,
        ha="center",
        va="center",
        zorder=7,
    )


def _labels(axis: Axes, steps: Sequence[Step | Folded], bands: Sequence[tuple[str, int, int]]) -> None:
    layers = [name for name, _, _ in bands]
    labels = _within(layers, [step.label for step in steps if isinstance(step, Step)])
    shown = [labels[step.label] if isinstance(step, Step) else "⋯" for step in steps]
    axis.set_xticks(range(len(steps)), shown, rotation=90, fontsize=7, color=INK)
    axis.set_yticks([])
    axis.tick_params(axis="x", length=0, pad=1)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)


def _legend(axis: Axes) -> None:
    marks = [
        Line2D([], [], marker="o", linestyle="", markerfacecolor="white", markeredgecolor=INK, markersize=5),
        Line2D([], [], marker="o", linestyle="", color=INK, markersize=5),
        Line2D(
            [], [], marker="D", linestyle="", markerfacecolor="white", markeredgecolor=FAINT, markersize=4
        ),
        Line2D([], [], marker="s", linestyle="", color=FAINT, markersize=5),
    ]
    words = ("reads the group", "writes it", "normalises it", "fixed: inputs, outputs")
    axis.legend(
        marks,
        words,
        loc="upper left",
        bbox_to_anchor=(0, 1.0),
        bbox_transform=axis.transAxes,
        ncols=4,
        fontsize=7,
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.2,
        borderaxespad=-1.6,
    )
