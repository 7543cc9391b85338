"""Which architectures does `metanet.spec_of` derive, does the group keep their function, what is lost?

Every family of `architectures.FAMILIES` is built at a small random configuration, derived and verified in
float64 on generic values, with elements of all kinds and a negative control per group. A family that cannot
be exported, that takes longer than the limit, or that fails in any other way counts in the total. Results
are kept as JSON lines, one per family, and written as a table with the date and the machine.

    python scripts/architectures_table.py                      # all, anew
    python scripts/architectures_table.py --resume             # those without a result
    python scripts/architectures_table.py --only 'Llama|GPT'   # these, in place of their results
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import torch
from architectures import FAMILIES, Family
from rich.progress import Progress

from metanet import spec_of, verify
from metanet.verification import CHANGED, TOLERANCE

RESULTS = Path(__file__).parent / "results"
MISSING = ("no rule", "its rule")
"""How the reason of a lost freedom begins if a rule is missing, or does not cover a form."""

COLUMNS = (
    *("family", "operations", "entries", "groups", "bits", "dimension", "phases", "error", "control", "lost"),
    *("s derive", "s verify"),
)
PREFACE = """\
Written by `python scripts/architectures_table.py`. Models of `transformers` and plain modules at small random
configurations; failures count in the total. *Error*: worst relative change of an output under random elements
of every kind, in float64 on generic values. *Control*: least change when one tensor of a group is left out.
*Lost*: what operations cost, with the number of entries. Seconds are of processor time."""


@dataclass
class Row:
    """What is known of one family.

    Args:
        family: name.
        group: heading.
        stage: ``build``, ``export``, ``derive``, ``verify`` (what failed), ``done``, or ``run`` (not yet).
        reason: of the failure.
        parameters: number of values in the state dict.
        operations: of the skeleton.
        entries: of the state dict.
        groups: of the spec.
        bits: log2 of the size of the finite part of the group.
        dimension: of its continuous part.
        phase_rank: rank of its phases.
        lost: operation, entries, reason.
        error: worst relative error over all kinds of elements.
        errors: by kind.
        control: least change of outputs that leaving one tensor out causes.
        dead: groups that the outputs do not tell apart.
        derive_seconds: of processor time, with export; None if it was not measured alone.
        verify_seconds: the same for the numerical proof.
        kept: why the proof kept the example inputs, if it did.
        commit: of the code that gave this row.
    """

    family: str
    group: str
    stage: str = "build"
    reason: str = ""
    parameters: int = 0
    operations: int = 0
    entries: int = 0
    groups: int = 0
    bits: float = 0.0
    dimension: int = 0
    phase_rank: int = 0
    lost: list[tuple[str, int, str]] = field(default_factory=list)
    error: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    control: float | None = None
    dead: list[str] = field(default_factory=list)
    derive_seconds: float | None = 0.0
    verify_seconds: float | None = 0.0
    kept: str = ""
    commit: str = ""

    @property
    def missing(self) -> list[str]:
        """Operations without a sufficient rule."""
        return [name for name, _, reason in self.lost if reason.startswith(MISSING)]

    @property
    def sound(self) -> bool:
        """Whether it was derived and no element changed the function."""
        return self.stage == "done" and self.error is not None and self.error <= TOLERANCE

    @property
    def unsound(self) -> bool:
        """Whether an element changed the function."""
        return self.stage == "done" and self.error is not None and not self.error <= TOLERANCE


class TooSlow(BaseException):
    """A family took longer than the limit; no `except Exception` of a library swallows it."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Interrupt the body after some seconds of processor time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"longer than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def measured(family: Family, limit: int, draws: int) -> Row:
    """Build, derive and verify one family."""
    row = Row(family.name, family.group)
    try:
        with limited(limit), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, args, kwargs = family.build()
            row.stage, start = "export", time.process_time()
            spec = spec_of(model, *args, **kwargs)
            row.derive_seconds = time.process_time() - start
            row.parameters, row.entries, row.groups = spec.num_parameters, len(spec), len(spec.groups)
            row.operations, row.bits = len(spec.operations), spec.log2_size()
            row.dimension, row.phase_rank = spec.dimension(), spec.phase_rank()
            row.lost = [(lost.operation, len(lost.entries), lost.reason) for lost in spec.lost]
            row.stage, start = "verify", time.process_time()
            proof = verify(spec, model, *args, draws=draws, **kwargs)
            row.verify_seconds = time.process_time() - start
            row.stage, row.error, row.errors = "done", proof.max_error, dict(proof.errors)
            row.kept = proof.kept
            row.control, row.dead = min(proof.controls.values(), default=None), list(proof.dead)
    except (Exception, TooSlow) as error:
        if row.stage == "export" and "cannot be exported" not in str(error):
            row.stage = "derive"
        row.reason = " ".join(f"{type(error).__name__}: {error}".split())[:600]
    return row


def read(path: Path) -> dict[str, Row]:
    """Return the results of an earlier run, the last one of every family."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    return {row.family: row for row in rows if row.family in FAMILIES}


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace the results."""
    path.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))


def summary(rows: Sequence[Row]) -> list[str]:
    """Return the counts that open the table, as lines of Markdown."""
    total = len(rows)
    derived = [row for row in rows if row.stage in ("verify", "done")]
    sound, unsound = [row for row in rows if row.sound], [row for row in rows if row.unsound]
    covered = [row for row in sound if not row.missing]
    whole = [row for row in sound if not row.lost]

    def share(part: Sequence[Row]) -> str:
        return f"{len(part)} ({100 * len(part) / max(total, 1):.1f} %)"

    lines = [
        "| | families |",
        "|---|---|",
        f"| all | {total} |",
        f"| exported and derived | {share(derived)} |",
        f"| kept their function to {TOLERANCE:g} under every kind of element | {share(sound)} |",
        f"| … and no rule is missing | {share(covered)} |",
        f"| … and no operation cost a freedom | {share(whole)} |",
        f"| **unsound** | {len(unsound)} |",
    ]
    causes = Counter(operation for row in rows for operation in dict.fromkeys(row.missing))
    if causes:
        listed = ", ".join(f"`{name}` {count}" for name, count in causes.most_common())
        lines += ["", f"Missing rules, by the number of families that they touch: {listed}."]
    return lines


def table(rows: Sequence[Row]) -> str:
    """Return everything as Markdown."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    lines = ["# Architectures", ""]
    lines += [f"{now}; {machine}; torch {torch.__version__}, Python {platform.python_version()}.", ""]
    commits = Counter(row.commit or "not recorded" for row in rows if row.stage != "run")
    recorded = ", ".join(f"`{commit}` ({count} rows)" for commit, count in commits.most_common())
    lines += [f"Commit: {recorded}.", "", PREFACE, ""]
    lines += summary(rows)
    for heading in dict.fromkeys(row.group for row in rows):
        lines += ["", f"## {heading[:1].upper()}{heading[1:]}", ""]
        lines += [f"| {' | '.join(COLUMNS)} |", "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|--:|"]
        lines += [_line(row) for row in rows if row.group == heading]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    if row.stage not in ("verify", "done"):
        verdict = "not run" if row.stage == "run" else f"{row.stage} failed"
        return f"| {row.family} | | | | | | | **{verdict}** | | {_cell(row.reason, 160)} | | |"
    error = f"**verify failed**: {_cell(row.reason, 80)}" if row.error is None else f"{row.error:.1e}"
    error = f"**{error}**" if row.unsound else error
    control = "" if row.control is None else f"{row.control:.0e}"
    control += f", dead: {_cell(', '.join(row.dead), 40)}" if row.dead else ""
    lost = ", ".join(f"`{_cell(name, 40)}` {count}" for name, count, _ in row.lost[:4])
    lost += f" and {len(row.lost) - 4} more" if len(row.lost) > 4 else ""
    numbers = [row.operations, row.entries, row.groups, f"{row.bits:.0f}", row.dimension, row.phase_rank]
    seconds = ["" if s is None else f"{s:.1f}" for s in (row.derive_seconds, row.verify_seconds)]
    return "| " + " | ".join(map(str, [row.family, *numbers, error, control, lost, *seconds])) + " |"


def _cell(text: str, limit: int) -> str:
    plain = text.replace("|", "\\|").replace("\n", " ")
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def main() -> None:
    """Run the families that are asked for, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="regular expression of the families (or headings) to run")
    parser.add_argument("--resume", action="store_true", help="run the families that have no result")
    parser.add_argument("--limit", type=int, default=120, help="seconds of processor time a family may take")
    parser.add_argument("--draws", type=int, default=3, help="elements of each kind")
    parser.add_argument("--commit", default="", help="of the code that runs, for the record")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = options.results / "architectures.jsonl"
    rows = read(lines) if options.resume or options.only else {}
    chosen = [
        family
        for family in FAMILIES.values()
        if not (options.resume and family.name in rows)
        and (not options.only or re.search(options.only, f"{family.name}\n{family.group}"))
    ]
    with Progress() as progress:
        task = progress.add_task("architectures", total=len(chosen))
        for family in chosen:
            progress.update(task, description=f"{family.name:<34}")
            row = measured(family, options.limit, options.draws)
            row.commit = options.commit
            rows[family.name] = row
            with lines.open("a") as file:
                file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            weak = row.control is not None and row.control <= CHANGED
            verdict = row.reason if row.stage != "done" else f"{row.error:.1e}{', dead groups' * weak}"
            if row.stage != "done" or row.lost or row.unsound:
                lost = "; ".join(f"{name} {count} ({reason})" for name, count, reason in row.lost)
                progress.console.print(f"{family.name}: {row.stage}: {verdict} {lost}", markup=False)
            progress.advance(task)
    write(lines, [rows[name] for name in FAMILIES if name in rows])
    ordered = [
        rows.get(name, Row(name, family.group, "run", "not yet run")) for name, family in FAMILIES.items()
    ]
    (options.results / "architectures.md").write_text(table(ordered))
    print("\n".join(summary(ordered)))


if __name__ == "__main__":
    main()
