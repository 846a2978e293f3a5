"""Measures the variants of a bundle, and lays the result out for people."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from .bench import Settings, flags, measure
from .bundle import Bundle
from .engine import Engine, delegation_of
from .faults import say
from .feeds import Samples
from .footprint import footprint_apart
from .host import host_facts
from .stats import compare, summarize


def profile(
    engine: Engine, bundle: Bundle, names: Sequence[str], settings: Settings, runtime: str | None = None
) -> dict[str, Any]:
    """Measures the named variants on the bundle's own samples, once the self-test has passed.

    Args:
        engine: numpy and the runtime.
        bundle: what to measure.
        names: variants, measured interleaved.
        settings: how; `batch` is filled in from the samples.
        runtime: the one that was asked for, where one was.
    """
    samples = Samples(engine.numpy, bundle)
    batch, cases = samples.to_measure()
    feeds = [samples.inputs(case) for case in cases]
    settings = settings._replace(batch=batch)
    apart = {name: footprint_apart(name, settings.threads, runtime) for name in names}
    sessions = {name: engine.open(bundle, name) for name in names}
    runs = {name: session.run for name, session in sessions.items()}
    say(f"measuring {', '.join(names)}: at most {settings.max_seconds:g} s, batch {batch}, "
        f"{settings.threads} thread(s)")  # fmt: skip
    steady = measure(runs, feeds, settings)
    host, baseline, series = host_facts(), bundle.manifest["float_variant"], steady.samples
    others = [name for name in names if baseline in series and name != baseline]
    return {
        "schema": 1,
        "bundle_digest": bundle.manifest["digest"],
        "target": bundle.manifest["target"],
        "provenance": "native",
        "host": host,
        "runtime": engine.facts([bundle.variants[name] for name in names]),
        "settings": settings._asdict(),
        "before": steady.before,
        "after": steady.after,
        "variants": [
            {
                "variant": name,
                **apart[name],
                "delegation": delegation_of(sessions[name]),
                "warmup_runs": steady.warmup_runs,
                "samples_ns": series[name],
                "summary": summarize(series[name]),
            }
            for name in names
        ],
        "comparisons": [compare(name, baseline, series[name], series[baseline]) for name in others],
        "flags": flags(steady, settings, host["cores"]),
        "self_test": "passed",
        "seal": "",
    }


def profile_lines(profile: dict[str, Any], name: str) -> list[str]:
    """The profile as a table of at most 80 columns; a bound that the samples do not support is a dash."""
    host, facts, settings = profile["host"], profile["runtime"], profile["settings"]
    pinned = ",".join(map(str, settings["affinity"])) if settings["affinity"] else "not pinned"
    others = "".join(f", {other} {version}" for other, version in facts["others"].items())
    about = [
        f"bundle   {name}",
        f"runtime  {facts['name']} {facts['version']}, {facts['provider']}{others}, numpy {facts['numpy']}",
        f"host     {host['cpu']}, {host['cores']} cores, {host['system']} {host['machine']}, "
        f"governor {host['governor'] or 'unknown'}",
        f"measured batch {settings['batch']}, {settings['threads']} thread(s), CPUs {pinned}, "
        f"{profile['variants'][0]['summary']['count']} rounds interleaved",
    ]
    lines = [line for text in about for line in textwrap.wrap(text, 80, subsequent_indent=" " * 9)]
    head = ("variant", "median", "95 % interval", "p90 <=", "p99 <=", "load", "first", "peak MB")
    lines += ["", _row(head), _row(("", "ms", "ms", "ms", "ms", "ms", "ms", ""))]
    for entry in profile["variants"]:
        summary, peak = entry["summary"], entry["peak_rss_bytes"]
        cells = [entry["variant"], _ms(summary["median"])]
        cells += [f"{_ms(summary['median_low'])}-{_ms(summary['median_high'])}"]
        cells += [_ms(summary["percentiles"].get(label)) for label in ("p90", "p99")]
        cells += [_ms(entry["load_ns"]), _ms(entry["first_ns"]), f"{peak / 1e6:.0f}" if peak else "-"]
        lines.append(_row(cells))
    lines.append("")
    for entry in profile["variants"]:
        found = entry["delegation"]
        if found is not None:
            share = "an unknown share" if found["of"] is None else f"{found['operators']} of {found['of']}"
            lines.append(f"{found['delegate']} computes {share} of the operators of {entry['variant']}")
    for found in profile["comparisons"]:
        verb = {"faster": "is faster than", "slower": "is slower than"}
        what = verb.get(found["verdict"], "does not measurably differ from")
        text = (
            f"{found['variant']} {what} {found['baseline']}: {found['ratio']:.3f} of its time "
            f"({100 * found['confidence']:.0f} % interval {found['low']:.3f}-{found['high']:.3f})"
        )
        lines += textwrap.wrap(text, 80, subsequent_indent="  ")
    for flag in profile["flags"]:
        lines += textwrap.wrap(f"note: {flag}", 80, subsequent_indent="      ")
    return lines


def _row(cells: Sequence[str]) -> str:
    widths = (8, 15, 8, 8, 8, 8, 8)
    return (f"{cells[0]:<10}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells[1:], widths))).rstrip()


def _ms(nanoseconds: float | None) -> str:
    if nanoseconds is None:
        return "-"
    value = nanoseconds / 1e6
    decimals = 4 if value < 1 else 3 if value < 10 else 2 if value < 100 else 1
    return f"{value:.{decimals}f}"
