"""Reports: one HTML file that needs nothing else, pictures inside."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from metanet_zoo.atomic import atomic_path

STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #1f2933; background: white; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #d9e2ec; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.best td { font-weight: 600; }
img { max-width: 100%; } figure { margin: .8rem 0; } figcaption, p.note { color: #52606d; font-size: .9rem; }
pre { background: #f5f7fa; padding: .7rem; overflow-x: auto; font-size: .85rem; }
"""


@dataclass
class Report:
    """Parts of a page, in the order in which they are added.

    Args:
        title: of the page.
    """

    title: str
    _parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Add a heading."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, *, note: bool = False) -> None:
        """Add a paragraph; a note is set smaller."""
        self._parts.append(f"<p{' class=note' if note else ''}>{escape(text)}</p>")

    def code(self, text: str) -> None:
        """Add preformatted text."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def figure(self, image: bytes, caption: str) -> None:
        """Add a PNG picture with a caption."""
        data = b64encode(image).decode("ascii")
        self._parts.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], best: int | None = None) -> None:
        """Add a table; cells that begin with a digit are aligned as numbers.

        Args:
            head: of the columns.
            rows: of cells.
            best: number of a row to stand out.
        """
        numeric = [all(row[i][:1].isdigit() or not row[i] for row in rows) for i in range(len(head))]

        def cells(row: Sequence[str], tag: str) -> str:
            return "".join(
                f"<{tag}{' class=number' if number else ''}>{escape(cell)}</{tag}>"
                for cell, number in zip(row, numeric, strict=True)
            )

        lines = [f"<tr>{cells(head, 'th')}</tr>"]
        lines += [
            f"<tr{' class=best' if i == best else ''}>{cells(r, 'td')}</tr>" for i, r in enumerate(rows)
        ]
        self._parts.append("<table>" + "\n".join(lines) + "</table>")

    def html(self) -> str:
        """Return the page."""
        title = escape(self.title)
        return (
            f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>\n'
            f"<style>\n{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n"
            + "\n".join(self._parts)
            + "\n</body>\n</html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
