"""Latency of one model over time, from the records of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from exporter.history import MeasurementRecord
from exporter.report.page import Block, Figure, Lines, Section, Series, Table, Timeline
from exporter.tables import human_size, milliseconds
from exporter.views import BundleView


def history_section(records: Sequence[MeasurementRecord], views: Sequence[BundleView]) -> Section:
    """A plot and a table for each model, target, host, runtime and thread count; others do not compare."""
    shown = {(view.manifest.name, view.manifest.target) for view in views}
    groups: dict[tuple[str, str, str], list[MeasurementRecord]] = {}
    for record in records:
        if (record.name, record.target) in shown:
            groups.setdefault((record.name, record.target, _place(record)), []).append(record)
    blocks: list[Block] = []
    for (name, target, place), measured in groups.items():
        blocks += _blocks(f"{name} for {target}, {place}", measured)
    if not blocks:
        blocks.append(Lines(items=("no measurement of these models is recorded in this store",)))
    return Section(title="History", blocks=tuple(blocks))


def _blocks(what: str, measured: Sequence[MeasurementRecord]) -> list[Block]:
    rows = []
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for record in measured:
        moment = datetime.fromisoformat(record.time).timestamp()
        for one in record.variants:
            metric = "-" if one.metric is None else f"{one.metric:.4f}"
            interval = f"{milliseconds(one.low_ns)} to {milliseconds(one.high_ns)}"
            rows.append(
                (
                    f"{record.time[:19]} UTC",
                    record.digest[:12],
                    one.variant,
                    milliseconds(one.median_ns),
                    interval,
                    metric,
                    human_size(one.size),
                )
            )
            point = (moment, one.median_ns / 1e6, one.low_ns / 1e6, one.high_ns / 1e6)
            points.setdefault(one.variant, []).append(point)
    series = tuple(
        Series(label=name, x=tuple(p[0] for p in found), y=tuple(p[1] for p in found),
               low=tuple(p[2] for p in found), high=tuple(p[3] for p in found))
        for name, found in points.items()
    )  # fmt: skip
    columns = (
        "measured",
        "bundle",
        "variant",
        "median ms",
        "interval of 95 %",
        measured[-1].metric or "metric",
        "size",
    )
    return [
        Figure(
            caption=f"Median latency over time: {what}. Bars are intervals of 95 % within one measurement.",
            alt=f"median latency in {len(measured)} measurements; the table has the numbers",
            plot=Timeline(series=series),
        ),
        Table(caption=f"Measurements of {what}", columns=columns, rows=tuple(rows), folded=len(rows) > 12),
    ]


def _place(record: MeasurementRecord) -> str:
    threads = f"{record.threads} thread{'s' if record.threads > 1 else ''}"
    device = "" if record.device == "local" else f"{record.device}: "
    return f"{record.provenance} on {device}{record.cpu}, {record.cores} cores, {record.runtime}, {threads}"
