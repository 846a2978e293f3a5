"""A report as one HTML file: no script, no network, light and dark."""

from __future__ import annotations

import base64
from importlib.resources import files

from exporter.errors import MissingError
from exporter.report.page import Figure, Page, Section

TEMPLATES = "templates"


def html_page(page: Page) -> str:
    """Renders a report; everything from outside goes through the template's escaping.

    Raises:
        MissingError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401 - asked for before any work
    except ImportError as error:
        raise MissingError(
            f"a report in HTML needs {error.name}", hint='pip install "edge-exporter[report]", or --format md'
        ) from error
    folder = files("exporter.report") / TEMPLATES
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    style = (folder / "page.css").read_text(encoding="utf-8")
    ids = _anchors(page)
    return template.render(
        page=page,
        style=style,
        picture=_picture,
        kind=lambda block: type(block).__name__,
        anchor=lambda section: ids[id(section)],
        sentences=lambda block: block.items,
    )


def _anchors(page: Page) -> dict[int, str]:
    """An id for each section, by the section's identity: titles may repeat, and hold anything."""
    found: dict[int, str] = {}

    def add(section: Section, path: str) -> None:
        found[id(section)] = path
        for index, inner in enumerate(section.sections, start=1):
            add(inner, f"{path}-{index}")

    for index, section in enumerate(page.sections, start=1):
        add(section, f"s{index}")
    return found


def _picture(figure: Figure) -> str:
    """A plot as a data URI. An image cannot run what it may hold."""
    from exporter.report.plots import svg

    return "data:image/svg+xml;base64," + base64.b64encode(svg(figure.plot).encode()).decode()
