"""Latency of one bundle: each profile by itself, all native ones side by side, emulated ones apart."""

from __future__ import annotations

from exporter.artifacts import HostState, Manifest, Profile
from exporter.report.page import Block, Distribution, Figure, Lines, Section, Series, Table
from exporter.report.tradeoffs import place_of
from exporter.tables import (
    BENCHMARK_COLUMNS,
    across_lines,
    benchmark_rows,
    delegation_text,
    instruction_kinds,
    instruction_rows,
    milliseconds,
    ratio,
    runtimes_text,
)
from exporter.views import BundleView

COLUMNS = ("variant", "runs", "load ms", "first ms", "median ms", "interval of 95 %", "p90 <=", "p95 <=", "p99 <=",
           "peak MB",
           "against float")  # fmt: skip


def latency_sections(view: BundleView) -> list[Section]:
    """Sections about latency; one that says how to measure where nothing was."""
    several = len({one.runtime.name for one in view.profiles.values()}) > 1
    sections = [
        Section(
            title=f"Latency{f' on {one.runtime.name}' if several else ''}, {place_of(one)}",
            blocks=_profile(one, view.manifest),
        )
        for one in view.profiles.values()
    ]
    if not sections:
        text = f"not measured; `edge-exporter profile {view.path}` measures it"
        sections = [Section(title="Latency", blocks=(Lines(items=(text,)),))]
    if len(view.profiles) > 1:
        sections.append(Section(title="Devices side by side", blocks=(_side_by_side(view),)))
    if view.instructions or view.benchmarks:
        sections.append(Section(title="Emulated devices and other tools", blocks=_apart(view)))
    return sections


def _profile(profile: Profile, manifest: Manifest) -> tuple[Block, ...]:
    rows = []
    for one in profile.variants:
        summary = one.summary
        compared = [found for found in profile.comparisons if found.variant == one.variant]
        percentiles = [summary.percentiles.get(name) for name in ("p90", "p95", "p99")]
        rows.append(
            (
                one.variant,
                str(summary.count),
                milliseconds(one.load_ns),
                milliseconds(one.first_ns),
                milliseconds(summary.median),
                f"{milliseconds(summary.median_low)} to {milliseconds(summary.median_high)}",
                *("-" if value is None else milliseconds(value) for value in percentiles),
                "-" if one.peak_rss_bytes is None else f"{one.peak_rss_bytes / 1e6:.0f}",
                f"{ratio(compared[0])}, {compared[0].verdict}" if compared else "-",
            )
        )
    table = Table(
        caption=f"{runtimes_text(profile, manifest)}, batch {profile.settings.batch}: load and first run apart from "
        "steady state; a dash is what was not measured or what too few runs support. Percentiles are bounds: with "
        "99 % confidence so many of all runs take no longer",
        columns=COLUMNS,
        rows=tuple(rows),
    )
    series = tuple(
        Series(label=one.variant, x=tuple(value / 1e6 for value in sorted(one.samples_ns)), y=())
        for one in profile.variants
    )
    longest = ", ".join(f"{one.label} {one.x[-1]:.3g} ms" for one in series)
    figure = Figure(
        caption=f"Share of runs that took at most so long: raw samples but the slowest 0.5 % (longest: {longest}).",
        alt=f"distribution of latency of {', '.join(one.label for one in series)}; percentiles are in the table",
        plot=Distribution(series=series),
    )
    delegation = delegation_text(profile.variants)
    told = (*((delegation,) if delegation else ()), *across_lines(profile), *profile.flags)
    flags = (Lines(items=told),) if told else ()
    state = Table(
        caption="The host, before and after",
        columns=("", "before", "after"),
        rows=tuple(
            (name, before, after)
            for (name, before), (_, after) in zip(_state(profile.before), _state(profile.after), strict=True)
        ),
        folded=True,
    )
    return (figure, table, *flags, state)


def _state(state: HostState) -> list[tuple[str, str]]:
    clocks = state.frequency_mhz
    return [
        ("load average", " ".join(f"{value:.2f}" for value in state.load_average or ()) or "-"),
        ("frequency in MHz", f"{min(clocks):.0f} to {max(clocks):.0f}" if clocks else "-"),
        ("temperature in C", "-" if state.temperature_c is None else f"{state.temperature_c:.1f}"),
        ("governor", state.governor or "-"),
        ("held back by", "-" if state.throttling is None else ", ".join(state.throttling) or "nothing"),
    ]


def _side_by_side(view: BundleView) -> Table:
    names = list(dict.fromkeys(one.variant for profile in view.profiles.values() for one in profile.variants))
    rows = []
    for profile in view.profiles.values():
        medians = {one.variant: milliseconds(one.summary.median) for one in profile.variants}
        runtime = f"{profile.runtime.name} {profile.runtime.version}"
        rows.append((place_of(profile), runtime, *(medians.get(name, "-") for name in names)))
    columns = ("place", "runtime", *(f"{name}, median ms" for name in names))
    return Table(caption="Every profile of this bundle", columns=columns, rows=tuple(rows))


def _apart(view: BundleView) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for counted in view.instructions.values():
        caption = (
            f"Emulated on {counted.cpu} ({counted.device}): guest instructions of one inference. These are no times, "
            "and nothing is ranked by them"
        )
        columns = ("variant", "equal values", *instruction_kinds(counted))
        blocks.append(Table(caption=caption, columns=columns, rows=tuple(instruction_rows(counted))))
        if counted.skipped:
            blocks.append(Lines(items=counted.skipped))
    for measured in view.benchmarks.values():
        caption = (
            f"LiteRT's benchmark_model on {measured.device}, times in ms of random inputs; the self-test was not "
            "run, and nothing is ranked by them"
        )
        columns = ("variant", *BENCHMARK_COLUMNS[1:])
        blocks.append(Table(caption=caption, columns=columns, rows=tuple(benchmark_rows(measured))))
    return tuple(blocks)
