"""A report as Markdown for a pull request: the same tables, without pictures."""

from __future__ import annotations

from exporter.markdown import escaped, table
from exporter.report.page import Block, Lines, Page, Section, Table


def markdown_page(page: Page) -> str:
    """Renders a report; everything from outside is escaped."""
    lines = [f"# {escaped(page.title)}", "", escaped(page.made), ""]
    for section in page.sections:
        lines += _section(section, 2)
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(section: Section, level: int) -> list[str]:
    lines = [f"{'#' * level} {escaped(section.title)}", ""]
    for block in section.blocks:
        lines += _block(block)
    for inner in section.sections:
        lines += _section(inner, level + 1)
    return lines


def _block(block: Block) -> list[str]:
    if isinstance(block, Table):
        shown = [*table(block.columns, block.rows), ""]
        if block.folded:
            return ["<details>", f"<summary>{escaped(block.caption)}</summary>", "", *shown, "</details>", ""]
        return [f"**{escaped(block.caption)}**", "", *shown]
    if isinstance(block, Lines):
        return [*(f"- {escaped(item)}" for item in block.items), ""]
    # A figure's numbers are in a table, and a plan lies in the bundle: a pull request is no place for either.
    return []
