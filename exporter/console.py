"""The only user of rich: events to a live screen, plain lines or JSON lines on stderr, results to stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal

import msgspec

from exporter.errors import ExporterError, printable
from exporter.events import Event, Note, Quiet, StepFailed, StepFinished, StepProgress, StepStage, StepStarted

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress

Style = Literal["auto", "live", "plain", "json", "none"]

PIPED = 120
"""Columns of output that goes to no terminal and has no width of its own; tables take more where rows need it."""


class Console:
    """Prints. Progress and messages go to stderr; results, and nothing else, to stdout.

    The file descriptors are duplicated when it is made, so that it keeps its streams while the noise of libraries is
    sent to a log.
    """

    def __init__(self, style: Style = "auto", *, json: bool = False) -> None:
        self.out: IO[str] = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        self.err: IO[str] = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8")
        self.json = json
        interactive = self.err.isatty() and os.environ.get("TERM") != "dumb"
        self.style = ("live" if interactive else "plain") if style == "auto" else style
        self._live: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_live()
        for stream in (self.out, self.err):
            try:
                stream.close()
            except BrokenPipeError:  # The reader (`| head`) has gone: there is nobody left to tell.
                continue

    def emit(self, event: Event) -> None:
        """Shows one event."""
        if self.style == "json":
            self._write_err(msgspec.json.encode(event).decode())
        elif self.style == "live":
            self._emit_live(event)
        elif self.style == "plain":
            for line in _plain(event):
                self._write_err(line)

    def error(self, error: ExporterError) -> None:
        """Prints a user-facing error on stderr."""
        self._stop_live()
        first, *rest = error.lines()
        self._write_err(printable("\n".join([f"error: {first}", *rest])))

    def say(self, text: str) -> None:
        """Prints a message on stderr, whatever the style."""
        self._stop_live()
        self._write_err(printable(text))

    def result(self, text: str) -> None:
        """Prints a result on stdout; silent with --json, where the document is the result."""
        if not self.json:
            self.out.write(printable(text) + "\n")
            self.out.flush()

    def document(self, value: Any) -> None:
        """Prints the one JSON document on stdout, when --json was given."""
        if self.json:
            self.out.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
            self.out.flush()

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", width: int | None = None
    ) -> None:
        """Prints a result table on stdout: aligned plain text, numbers to the right.

        Args:
            columns: headings.
            rows: cells.
            title: a line above it.
            width: columns that it must fit in; what is no number is folded where it does not.
        """
        if not self.json:
            from rich.table import Table
            from rich.text import Text

            self._stop_live()
            table = Table(box=None, pad_edge=False)
            for index, column in enumerate(columns):
                numeric = all(_is_number(row[index]) for row in rows)
                table.add_column(
                    printable(column, one_line=True),
                    justify="right" if numeric and rows else "left",
                    overflow="fold",
                    no_wrap=numeric,
                )
            for row in rows:
                table.add_row(*(Text(printable(cell, one_line=True)) for cell in row))
            if title:  # A line of its own: rich would fold it to the table's width.
                self.out.write(printable(title, one_line=True) + "\n")
            console = self._rich(self.out, width or self._whole(columns, rows))
            with console.capture() as captured:
                console.print(table)
            self.out.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
            self.out.flush()

    @property
    def terminal(self) -> bool:
        """Whether results go to a terminal, which has a width."""
        return self.out.isatty()

    def _whole(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int | None:
        """A width that no row is folded in, where output is piped: names in it can be searched for and taken over."""
        if self.terminal:
            return None
        from rich.cells import cell_len

        lines = [[cell_len(printable(cell, one_line=True)) for cell in row] for row in (columns, *rows)]
        widest: list[int] = [max(cells) for cells in zip(*lines, strict=True)]
        return max(PIPED, sum(widest) + 2 * len(widest))

    def _rich(self, stream: IO[str], width: int | None = None) -> RichConsole:
        from rich.console import Console as RichConsole

        width = width or (None if stream.isatty() else PIPED)
        return RichConsole(file=stream, markup=False, highlight=False, emoji=False, width=width)

    def _emit_live(self, event: Event) -> None:
        if isinstance(event, StepStarted):
            self._tasks[event.step] = self._progress().add_task(
                printable(event.step, one_line=True), total=event.total
            )
        elif isinstance(event, StepProgress) and event.step in self._tasks:
            self._progress().update(self._tasks[event.step], completed=event.done)
        elif isinstance(event, StepStage) and event.step in self._tasks:
            self._progress().update(
                self._tasks[event.step], description=printable(f"{event.step}: {event.stage}", one_line=True)
            )
        elif isinstance(event, Quiet):
            self._stop_live()
            self._write_err(_plain(event)[0])
        elif isinstance(event, (StepFinished, StepFailed)):
            if event.step in self._tasks:
                self._progress().remove_task(self._tasks.pop(event.step))
            for line in _plain(event):
                self._say_beside_live(line)
        elif isinstance(event, Note):
            self._say_beside_live(_plain(event)[0])

    def _progress(self) -> Progress:
        if self._live is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._rich(self.err),
                transient=True,
            )
            self._live.start()
        return self._live

    def _say_beside_live(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line)
        else:
            self._write_err(line)

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._tasks.clear()

    def _write_err(self, line: str) -> None:
        self.err.write(line + "\n")
        self.err.flush()


def _plain(event: Event) -> list[str]:
    """An event as a line, whatever stands in the names of nodes and tensors that it tells of."""
    return [printable(line, one_line=True) for line in _lines(event)]


def _lines(event: Event) -> list[str]:
    if isinstance(event, StepFinished):
        took = "cached" if event.cached else f"{event.seconds:.1f} s"
        return [f"{event.step}: {took}" + (f" ({event.detail})" if event.detail else "")]
    if isinstance(event, StepFailed):
        return [f"{event.step}: failed"]
    if isinstance(event, StepStage):
        return [f"{event.step}: {event.stage} ..."]
    if isinstance(event, Note):
        return [f"note: {event.text}"]
    if isinstance(event, Quiet):
        limit = f" (runs for at most {event.at_most:.0f} s, after loading)" if event.at_most else ""
        return [f"{event.step}{limit} ..."]
    return []


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in ("-", "+", "")
