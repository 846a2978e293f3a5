"""What every command starts with: a console, and the steps that report to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from exporter.console import Console, Style
from exporter.store import Store, default_root

if TYPE_CHECKING:
    from exporter.pipeline.steps import Steps


@contextmanager
def opened(*, as_json: bool, verbose: bool, progress: Style, jobs: int = 1) -> Iterator[tuple[Console, Steps]]:
    """A console and the Steps that report to it, and that may use so many processes."""
    from exporter.pipeline.steps import RunLog, Steps

    with Console(progress, json=as_json) as console:
        root = default_root()
        log = RunLog(root / "logs", echo=(lambda line: console.say(f"| {line}")) if verbose else None)
        yield console, Steps(Store(root), console.emit, log, jobs)
