"""What the commands that show and compare do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.opening import opened


def show(*, bundle: Path, **common: Any) -> None:
    """`edge-exporter show`."""
    from exporter.bundle import read_view
    from exporter.show_view import show_view, view_document

    with opened(**common) as (console, _):
        view = read_view(bundle)
        show_view(console, view)
        console.document(view_document(view))
