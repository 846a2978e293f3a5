"""From bundles and records to the sections of a report. What is not known is said, and never made up."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from exporter.artifacts import NodeLatency
from exporter.history import BuildRecord, MeasurementRecord, build_of, made_in
from exporter.report.bundles import bundle_section
from exporter.report.over_time import history_section
from exporter.report.page import Block, Lines, Page, Section, Table
from exporter.report.tradeoffs import tradeoff_sections
from exporter.tables import human_size, milliseconds
from exporter.views import BundleView

NOT_RECORDED = "not recorded: the build ran on another machine, with another store, or with an earlier version"


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a report is made from.

    Attributes:
        made: when, by which version.
        views: bundles, in the order in which they are shown.
        unreadable: what looks like a bundle and holds not what it claims, and why.
        builds: records of builds, oldest first.
        measurements: records of measurements; None where history was not asked for.
        operators: time by operator, by digest and variant, or why there is none.
    """

    made: str
    views: tuple[BundleView, ...]
    unreadable: tuple[tuple[str, str], ...] = ()
    builds: tuple[BuildRecord, ...] = ()
    measurements: tuple[MeasurementRecord, ...] | None = None
    operators: Mapping[str, Mapping[str, tuple[NodeLatency, ...] | str]] = {}


def collect(found: Findings) -> Page:
    """The report's sections."""
    names = sorted({view.manifest.name for view in found.views})
    sections = [_summary(found), *tradeoff_sections(found.views), _pipeline(found)]
    sections += [bundle_section(view, found.operators.get(view.manifest.digest, {})) for view in found.views]
    if found.measurements is not None:
        sections.append(history_section(found.measurements, found.views))
    return Page(title=f"{', '.join(names)}: bundles", made=found.made, sections=tuple(sections))


def _summary(found: Findings) -> Section:
    rows = []
    for view in found.views:
        manifest, default = view.manifest, view.default
        metric = default.fidelity.metric
        name = view.main_profile
        profile = view.profiles[name] if name else None
        measured = [one for one in profile.variants if one.variant == default.name] if profile else []
        ratios = [one for one in profile.comparisons if one.variant == default.name] if profile else []
        rows.append(
            (
                view.path.name,
                manifest.target,
                default.name,
                human_size(view.manifest.size_of(default)),
                f"{metric.value:.4f} ({metric.name})" if metric else "no labels",
                milliseconds(measured[0].summary.median) if measured else "not measured",
                f"{ratios[0].ratio:.3f}x" if ratios else "-",
            )
        )
    columns = ("bundle", "target", "default", "size", "accuracy", "median ms", "vs float")
    blocks: list[Block] = [Table(caption="Bundles, each with the variant that runs by default", columns=columns,
                                 rows=tuple(rows))]  # fmt: skip
    blocks.append(Lines(items=tuple(f"{view.path.name}: {view.manifest.choice.why}" for view in found.views)))
    if found.unreadable:
        blocks.append(Lines(items=tuple(f"{name} is left out: {why}" for name, why in found.unreadable)))
    return Section(title="Summary", blocks=tuple(blocks))


def _pipeline(found: Findings) -> Section:
    """The latest build of each bundle, step by step; one table for targets that were built together."""
    seconds = made_in(list(found.builds))
    blocks: list[Block] = []
    shown: list[BuildRecord] = []
    for view in found.views:
        build = build_of(list(found.builds), view.manifest.digest)
        if build is None:
            blocks.append(Lines(items=(f"{view.path.name}: {NOT_RECORDED}",)))
        elif build not in shown:
            shown.append(build)
    for build in shown:
        rows = []
        for step in build.steps:
            state = "there already" if step.cached else "made"
            took = "-" if step.cached else f"{step.seconds:.1f}"
            first = seconds.get(step.key) if step.key else None
            rows.append((step.step, state, took, "-" if first is None else f"{first:.1f}"))
        failed = [f"{one.target}: failed: {one.failed}" for one in build.targets if one.failed]
        caption = f"Build of {build.name} at {build.started[:19]} UTC, {build.seconds:.1f} s in all"
        columns = ("step", "result", "s", "s when it was made")
        blocks.append(Table(caption=caption, columns=columns, rows=tuple(rows)))
        if failed:
            blocks.append(Lines(items=tuple(failed)))
    return Section(title="Pipeline", blocks=tuple(blocks))
