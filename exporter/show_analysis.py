"""An analysis as the terminal shows it: nodes, the worst first, then findings."""

from __future__ import annotations

from exporter.analysis import AnalysedNode, Analysis
from exporter.artifacts import Lint
from exporter.console import Console
from exporter.tables import NONE

TIME = "time"
COLUMNS = (
    "node", "module", "op", "weights", "bits", "range", "SQNR dB", "channels dB", "so far dB", "noise from", TIME
)  # fmt: skip
NEVER_LEFT_OUT = ("node", "op", "bits", "range", "SQNR dB", TIME)
NOT_MEASURED = "not measured"
WIDEST = 28
"""Characters of a name on a terminal; longer ones keep their ends, where they differ."""
PIPED = 132
"""Columns of a table that goes to no terminal: operators of some files have long names."""
LINTS_SHOWN = 3


def show_analysis(console: Console, analysis: Analysis, rows: int) -> None:
    """The table, what onnxruntime added, and the first findings of each kind.

    Args:
        console: prints.
        analysis: what to show.
        rows: nodes to show; 0 for all.
    """
    short = console.terminal  # Elsewhere rows have room, and names are to be taken over into a plan.
    shown = [_row(node, timed=analysis.runtime is not None, short=short) for node in analysis.nodes]
    # Not every kind of file tells everything.
    kept = [
        place
        for place, name in enumerate(COLUMNS)
        if name in NEVER_LEFT_OUT or any(row[place] != NONE for row in shown)
    ]
    how = analysis.scheme.label if analysis.scheme is not None else analysis.precision
    noise = f"noise on {analysis.samples} {_samples(analysis)}, worst first"
    console.table(
        [COLUMNS[place] for place in kept],
        [[row[place] for place in kept] for row in shown[: rows or None]],
        title=f"{analysis.source}, {analysis.variant} for {analysis.target} ({how}): "
        + (noise if analysis.samples else "nothing computes in integers"),
        width=None if console.out.isatty() else PIPED,
    )
    if rows and (left := len(shown) - rows) > 0:
        console.result(f"{left} more nodes: `--rows 0` or --json shows them all")
    if analysis.runtime is not None:
        added = ", ".join(f"{share:.1%} {op}" for op, share in analysis.added.items())
        console.result(f"time: {analysis.runtime}, under its profiler; between nodes: {added or 'nothing'}")
    else:
        console.result(f"time: {NOT_MEASURED}, {analysis.why}")
    if analysis.lints is not None:
        _show_lints(console, analysis.lints)


def _show_lints(console: Console, lints: tuple[Lint, ...]) -> None:
    """The first findings of each kind."""
    console.result("")
    counts: dict[str, int] = {}
    for lint in lints:
        counts[lint.kind] = counts.get(lint.kind, 0) + 1
        if counts[lint.kind] <= LINTS_SHOWN:
            console.result(f"{lint.kind}: {lint.subject}: {lint.text}; {lint.action}")
    hidden = {kind: count - LINTS_SHOWN for kind, count in counts.items() if count > LINTS_SHOWN}
    if hidden:
        more = ", ".join(f"{count} {kind}" for kind, count in hidden.items())
        console.result(f"and {more} more: --json lists them all")
    if not counts:
        console.result("no findings")


def _samples(analysis: Analysis) -> str:
    return analysis.data if analysis.data.startswith("samples") else f"{analysis.data} samples"


def _row(node: AnalysedNode, *, timed: bool, short: bool) -> tuple[str, ...]:
    causes = node.causes
    parts = {} if causes is None else {"in": causes.inputs, "weights": causes.weights, "range": causes.result}
    cause = max(parts, key=lambda name: parts[name], default=NONE)
    return (
        _short(node.node) if short else node.node,
        _short(node.module or NONE) if short else node.module or NONE,
        node.op,
        NONE if node.weight_bits is None else str(node.weight_bits),
        _bits(node),
        NONE if node.range is None else f"{node.range[0]:.3g} .. {node.range[1]:.3g}",
        _decibels(node.sqnr_db),
        _decibels(node.channel_db),
        _decibels(node.accumulated_db),
        cause if causes is None else f"{cause} {parts[cause]:.0%}",
        NOT_MEASURED if not timed else NONE if node.share is None else f"{node.share:.1%}",
    )


def _bits(node: AnalysedNode) -> str:
    if node.bits is not None:
        return str(node.bits)
    # Shapes and indices are neither.
    return "float" if node.reason or node.weight_bits is not None else NONE


def _short(name: str) -> str:
    return name if len(name) <= WIDEST else "…" + name[1 - WIDEST :]


def _decibels(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"
