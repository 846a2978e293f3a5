"""What the commands that show and compare do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from exporter.errors import RegressionError, UsageError
from exporter.opening import opened


def show(*, bundle: Path, **common: Any) -> None:
    """`edge-exporter show`."""
    from msgspec.structs import replace

    from exporter.bundle import opened_bundle, read_view
    from exporter.show_view import show_view, view_document

    with opened(**common) as (console, _), opened_bundle(bundle) as folder:
        view = replace(read_view(folder), path=bundle)
        show_view(console, view)
        console.document(view_document(view))


def compare(
    *,
    first: Path,
    second: Path,
    gates: Sequence[str],
    variant: str | None,
    across: bool,
    remeasure: bool,
    rounds: int,
    no_latency: bool,
    form: Literal["text", "json", "md"],
    as_json: bool,
    **common: Any,
) -> None:
    """`edge-exporter compare`."""
    from exporter.bundle import opened_bundle
    from exporter.comparison import judged, parse_gates
    from exporter.pipeline.side_by_side import compare as run_compare
    from exporter.show_compare import compared_markdown, show_compared

    if remeasure and no_latency:
        raise UsageError("--remeasure measures latency, --no-latency leaves it out: choose one")
    if as_json and form == "md":
        raise UsageError("--json and --format md are two forms of the same result: choose one")
    asked = parse_gates(gates)
    with (
        opened(as_json=as_json or form == "json", **common) as (console, steps),
        opened_bundle(first) as one,
        opened_bundle(second) as other,
    ):
        compared = run_compare(
            one,
            other,
            steps,
            variant=variant,
            across=across,
            remeasure=rounds if remeasure else 0,
            latency=not no_latency,
        )
        compared = judged(compared, asked)
        if form == "md":
            console.result(compared_markdown(compared))
        else:
            show_compared(console, compared)
        console.document(compared)
        if failed := compared.failed:
            told = "".join(f"\n  - {gate.gate}: {gate.variant}: {gate.text}" for gate in failed)
            raise RegressionError(
                f"{len(failed)} of {len(compared.gates)} gates were not met{told}",
                where=compared.b,
                hint="`--remeasure` tells a slower bundle from a busy host; `edge-exporter show` has the details",
            )


def report(
    *,
    folder: Path,
    form: Literal["html", "md"],
    output: str | None,
    history: bool,
    operators: bool,
    show: bool,
    **common: Any,
) -> None:
    """`edge-exporter report`."""
    from exporter.pipeline.reporting import check_place, findings, write_report
    from exporter.report import collect, html_page, markdown_page

    name = output or f"report.{form}"
    if name == "-" and show:
        raise UsageError("--open needs a file, and `--output -` is stdout")
    if name != "-":
        check_place(Path(name))
    with opened(**common) as (console, steps):
        found = findings(folder, steps, history=history, operators=operators)
        page = collect(found)
        with steps.guarded("report"):
            text = html_page(page) if form == "html" else markdown_page(page)
        if name == "-":
            console.result(text.rstrip("\n"))
            console.document({"schema": 1, "report": text, "bundles": [str(view.path) for view in found.views]})
            return
        path = Path(name).absolute()
        write_report(path, text)
        console.result(f"report: {path}")
        for left_out, why in found.unreadable:
            console.result(f"left out: {left_out}: {why}")
        console.document(
            {
                "schema": 1,
                "report": str(path),
                "bytes": len(text.encode()),
                "bundles": [str(view.path) for view in found.views],
                "left_out": [{"bundle": left_out, "why": why} for left_out, why in found.unreadable],
            }
        )
        if show:
            import webbrowser

            if not webbrowser.open(path.as_uri()):
                console.say(f"no browser was found: open {path.as_uri()}")
