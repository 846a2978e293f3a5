"""Text and tables for Markdown: a stranger's words stay words."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from exporter.views import printable

SPECIAL = re.compile(r"([\\`*~|#@]|(?<!\w)_|_(?!\w)|!(?=\[)|\](?=[(\[:])|:(?=//)|(?<=www)\.)")


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no link, no emphasis, no end of a table's cell, no line break."""
    plain = html.escape(printable(" ".join(text.split())), quote=False)
    return SPECIAL.sub(lambda match: f"&#{ord(match[1])};", plain)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table; the first column names the row."""
    if not rows:
        return []
    lines = [columns, ["---"] * len(columns), *rows]
    shown = [line if index == 1 else [escaped(cell) for cell in line] for index, line in enumerate(lines)]
    return [f"| {' | '.join(cells)} |" for cells in shown]
