"""Reports of ``metanet match`` as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metanet_zoo.matching.many import ManyReport
    from metanet_zoo.matching.run import MatchReport
    from metanet_zoo.matching.soft import SoftReport


def show(report: MatchReport) -> None:
    """Print a report as text and a table."""
    from rich.markup import escape
    from rich.table import Table

    from metanet_tasks.console import console

    out, found = console(), report.alignment
    out.print(
        f"[bold]{escape(report.model)}[/] aligned to [bold]{escape(report.reference)}[/]", highlight=False
    )
    out.print(f"symmetry: {escape(report.origin)}", highlight=False)
    how = f"matched by {found.method}"
    if found.method == "weights":
        starts = ", ".join(f"{start} {count}×" for start, count in found.starts.items())
        how = f"{found.sweeps} sweeps, best start {starts}"
    out.print(
        f"{found.measure} {found.before:.6g} → {found.after:.6g} ({found.gain:.1%} less; {how}, "
        f"{found.seconds:.1f} s)",
        highlight=False,
    )
    if found.used:
        moved = Table("group", "units moved", title="groups", title_justify="left")
        rows = list(found.moved.items())
        for name, fraction in rows[:20]:
            moved.add_row(escape(name), f"{fraction:.1%}")
        if len(rows) > 20:
            moved.add_row(f"… and {len(rows) - 20} more", "(--json lists all)")
        out.print(moved)
    for note in found.notes:
        out.print(f"note: {escape(note)}", highlight=False)
    out.print(escape(str(report.proof)), highlight=False)
    for path in (report.element_file, report.out, report.out_reference):
        if path is not None:
            out.print(f"wrote {escape(path)}", highlight=False)


def show_map(report: SoftReport) -> None:
    """Print the report of a soft map."""
    print(f"{report.model} taken to {report.reference} by {report.method}: {report.origin}")
    for name, cost in list(report.costs.items())[:20]:
        before, after = report.widths.get(name, (0, 0))
        width = f", {before} units onto {after}" if before != after else ""
        print(f"  {name:<24} {report.measure} {cost:.4g}, {report.mixed[name]:.1%} mixed{width}")
    if len(report.costs) > 20:
        print(f"  … and {len(report.costs) - 20} groups more (--json lists all)")
    for note in report.notes:
        print(f"note: {note}")
    for path in (*report.maps, *report.outputs):
        print(f"wrote {path}")


def show_many(report: ManyReport) -> None:
    """Print the report of three or more models."""
    print(f"{len(report.models)} models, {report.method}: {report.origin}")
    print(f"squared distance to their mean {report.before:.6g} → {report.after:.6g}")
    for path in (*report.elements, *report.outputs):
        print(f"wrote {path}")
