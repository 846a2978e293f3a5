"""`show`: one bundle on a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from exporter.artifacts import Manifest, Profile, RuntimeNeed, Variant
from exporter.console import Console
from exporter.tables import (
    PROFILE_COLUMNS,
    REASONS,
    across_lines,
    delegation_text,
    fidelity_columns,
    fidelity_rows,
    gate_text,
    history_columns,
    history_rows,
    left_in_float,
    made_for_text,
    profile_rows,
    ratio,
    repair_text,
    runtimes_text,
)
from exporter.views import BundleView, printable, without_samples

WIDTH = 80
LINTS_SHOWN = 10
SCHEMA = 1


def show_view(console: Console, view: BundleView) -> None:
    """What a bundle takes and gives, what its variants keep, how fast they are, and which one runs."""
    manifest = view.manifest
    _say(console, f"{manifest.name} for {manifest.target}")
    console.result(printable(f"bundle: {view.path}"))  # Never folded: people copy it.
    _say(console, f"made from: {manifest.model.source}{_licence(manifest.model.licence)}")
    _say(console, f"runs on: {runtime_text(manifest.runtime)}")
    for side, specs in (("input", manifest.signature.inputs), ("output", manifest.signature.outputs)):
        for spec in specs:
            _say(console, f"{side} {spec}")
    if manifest.history:
        columns = history_columns(manifest.history)
        _table(console, "torch models", columns, history_rows(manifest.history))
    fidelity = manifest.variants[-1].fidelity
    judged = f"{fidelity.samples} {fidelity.data} samples, against the model in {fidelity.reference}"
    _table(console, f"variants: fidelity on {judged}", fidelity_columns(manifest), fidelity_rows(manifest))
    _say(console, f"gate: {gate_text(fidelity.gate)}")
    for variant in manifest.variants:
        for line in variant_facts(variant):
            _say(console, f"{variant.name}: {line}")
    _show_latency(console, view)
    console.result("")
    _say(console, f"default: {manifest.choice.variant}: {manifest.choice.why}")
    for note in manifest.notes:
        _say(console, f"note: {note}")


def view_document(view: BundleView) -> dict[str, Any]:
    """The same as JSON, without raw samples and with no list of files."""
    manifest = view.manifest
    return {
        "schema": SCHEMA,
        "bundle": str(view.path),
        "name": manifest.name,
        "target": manifest.target,
        "digest": manifest.digest,
        "default": manifest.choice,
        "signature": manifest.signature,
        "runtime": manifest.runtime,
        "model": manifest.model,
        "data": manifest.data,
        "tools": manifest.tools,
        "history": manifest.history,
        "notes": manifest.notes,
        "variants": [
            {
                "name": variant.name,
                "precision": variant.precision,
                "runtime": variant.runtime,
                "size": view.manifest.size_of(variant),
                "packed_bytes": variant.packed_bytes,
                "scheme": variant.scheme,
                "requires": variant.requires,
                "coverage": variant.coverage,
                "lints": variant.lints,
                "fidelity": variant.fidelity,
                "repairs": variant.repairs,
            }
            for variant in manifest.variants
        ],
        "profiles": {name: without_samples(profile) for name, profile in view.profiles.items()},
        "instructions": view.instructions,
        "benchmarks": view.benchmarks,
    }


def runtime_text(runtime: RuntimeNeed) -> str:
    """What a bundle needs to run."""
    machine = f", on {runtime.machine}" if runtime.machine else ""
    others = f", or {' or '.join(runtime.alternatives)}" if runtime.alternatives else ""
    return f"{runtime.name} {runtime.minimum} or newer{others}; Python {runtime.python} or newer{machine}"


def variant_facts(variant: Variant) -> list[str]:
    """How a variant was made: scheme, repairs, what stayed float, findings."""
    facts = [variant.scheme.label] if variant.scheme else []
    facts += [made_for_text(variant)] if variant.requires else []
    facts += ["its arithmetic was simulated, not run here"] if variant.fidelity.arithmetic == "simulated" else []
    facts += [
        f"{REASONS[repair.reason] if repair.kept else 'tried'}: {repair_text(repair)}" for repair in variant.repairs
    ]
    facts += [f"in float: {line}" for line in (left_in_float(variant.coverage) if variant.coverage else ())]
    facts += [f"{lint.kind}: {lint.subject}: {lint.text}; {lint.action}" for lint in variant.lints[:LINTS_SHOWN]]
    rest = len(variant.lints) - LINTS_SHOWN
    return facts + ([f"{rest} more findings: --json lists them all"] if rest > 0 else [])


def _show_latency(console: Console, view: BundleView) -> None:
    if not view.profiles:
        console.result("")
        packed = f"`edge-exporter unpack {view.path}`, then `edge-exporter profile` with its folder"
        how = packed if view.path.is_file() else f"`edge-exporter profile {view.path}`"
        _say(console, f"latency: not measured; {how} measures it")
    for profile in view.profiles.values():
        _table(console, latency_title(profile, view.manifest), PROFILE_COLUMNS[:-1], [
            row[:-1] for row in profile_rows(profile, view.manifest)
        ])  # fmt: skip
        for one in profile.comparisons:
            _say(console, f"{one.variant} against {one.baseline}: {ratio(one)}, {one.verdict}")
        if (delegation := delegation_text(profile.variants)) is not None:
            _say(console, delegation)
        for line in across_lines(profile):
            _say(console, line)
        for flag in profile.flags:
            _say(console, f"note: {flag}")
    for counted in view.instructions.values():
        totals = ", ".join(f"{one.variant} {one.guest_instructions['total']:,}" for one in counted.variants)
        console.result("")
        _say(console, f"emulated on {counted.device}, guest instructions of one inference, no time: {totals}")
    for measured in view.benchmarks.values():
        means = ", ".join(f"{one.variant} {one.mean_us / 1000:.3f} ms" for one in measured.variants)
        console.result("")
        _say(console, f"mean by benchmark_model on {measured.device}, random inputs, self-test not run: {means}")


def latency_title(profile: Profile, manifest: Manifest) -> str:
    """Where and how latency was measured."""
    host, settings = profile.host, profile.settings
    place = "" if profile.device == "local" else f"{profile.device}: "
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    return (
        f"latency in ms: {runtimes_text(profile, manifest)}, {threads}, batch {settings.batch}, "
        f"{profile.provenance} on {place}{host.cpu} ({host.cores} cores)"
    )


def _licence(licence: str | None) -> str:
    return f" (licence {licence})" if licence else ""


def _say(console: Console, text: str) -> None:
    console.result(textwrap.fill(printable(text), WIDTH, subsequent_indent="  ", break_on_hyphens=False))


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console.result("")
    _say(console, title)
    shown = [[printable(cell) for cell in row] for row in rows]
    console.table([printable(column) for column in columns], shown, width=WIDTH)
