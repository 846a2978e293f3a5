"""A bundle and a profile as the terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from exporter.artifacts import Alternative, BenchmarkProfile, InstructionProfile, Manifest, NotMeasured, Profile
from exporter.console import Console
from exporter.tables import (
    BENCHMARK_COLUMNS,
    PROFILE_COLUMNS,
    across_lines,
    alternative_columns,
    alternative_rows,
    apart_text,
    benchmark_rows,
    delegation_text,
    fidelity_columns,
    fidelity_rows,
    gate_text,
    history_columns,
    history_rows,
    instruction_kinds,
    instruction_rows,
    profile_rows,
    runtimes_text,
    variant_lines,
)


def show_bundle(
    console: Console,
    path: Path,
    manifest: Manifest,
    measured: Profile | NotMeasured,
    beside: Mapping[str, Profile | NotMeasured],
) -> None:
    """Fidelity with its gate, latency, the default variant and why.

    Args:
        console: prints.
        path: the bundle's folder.
        manifest: of the bundle.
        measured: on its main runtime.
        beside: by further runtimes.
    """
    fidelity = manifest.variants[-1].fidelity
    judged_on = f"{fidelity.samples} {fidelity.data} samples"
    judged = f"{judged_on}, against the model in {fidelity.reference}"
    console.result("")
    if manifest.history:
        console.table(
            history_columns(manifest.history),
            history_rows(manifest.history),
            title=f"{manifest.name}: torch models on {judged_on}; SQNR and top-1 against the trained model",
        )
        for entry in manifest.history:
            for note in entry.notes:
                console.result(f"{entry.name}: {note}")
        console.result("")
    console.table(
        fidelity_columns(manifest),
        fidelity_rows(manifest),
        title=f"{manifest.name} for {manifest.target}: fidelity on {judged}",
    )
    for line in variant_lines(manifest):
        console.result(line)
    console.result(f"gate: {gate_text(fidelity.gate)}")
    console.result("")
    if isinstance(measured, NotMeasured):
        console.result(f"latency: not measured, {measured.reason}; `{measured.command}` measures it")
    else:
        show_profile(console, manifest, measured)
        seen = {one.variant for one in measured.variants}
        if others := [variant for variant in manifest.variants if variant.name not in seen]:
            console.result(f"not run here: {', '.join(f'{one.name}, {apart_text(one)}' for one in others)}")
    console.result(f"default: {manifest.choice.variant}: {manifest.choice.why}")
    for runtime, found in beside.items():
        console.result("")
        if isinstance(found, NotMeasured):
            console.result(f"latency on {runtime}: not measured, {found.reason}; `{found.command}` measures it")
        else:
            show_profile(console, manifest, found)
    console.result(f"bundle: {path}")
    if any(variant.packed_bytes is not None for variant in manifest.variants):
        console.result(f"zstd is what a file takes in a packed bundle: `edge-exporter pack {path}`")


def show_alternatives(console: Console, name: str, alternatives: Sequence[Alternative]) -> None:
    """All alternatives of a plan in one table, and why some are refused."""
    console.result("")
    console.table(
        alternative_columns(alternatives),
        alternative_rows(alternatives),
        title=f"{name}: variants of the plan; SQNR is against each one's own trained model, and each was timed in a "
        "run of its own",
    )
    for one in alternatives:
        if one.failure:
            console.result(f"{one.name} for {one.target} is refused: {one.failure}")
    console.result("* no other file of the target is as good in every respect and better in one")


def show_instructions(console: Console, counted: InstructionProfile) -> None:
    """What each variant executes on an emulated device; no time, and nothing is ranked by it."""
    console.table(
        ("", "equal", *instruction_kinds(counted)),
        instruction_rows(counted),
        title=f"guest instructions of one inference: {counted.runtime.name} {counted.runtime.version}, 1 thread, "
        f"batch {counted.batch}, emulated on {counted.cpu} ({counted.device})",
    )
    if (delegation := delegation_text(counted.variants)) is not None:
        console.result(delegation)
    for reason in counted.skipped:
        console.result(f"not run there: {reason}")
    console.result(
        "self-test: passed; `equal` is the share of output values that are the expected ones to the last bit"
    )
    console.result("emulated: these are instructions, not latency; nothing is ranked or chosen by them")


def show_benchmark(console: Console, measured: BenchmarkProfile) -> None:
    """What LiteRT's benchmark_model printed of each .tflite file."""
    threads = f"{measured.threads} thread{'s' if measured.threads > 1 else ''}"
    console.table(
        BENCHMARK_COLUMNS,
        benchmark_rows(measured),
        title=f"latency in ms by LiteRT's benchmark_model: {threads}, random inputs, native on {measured.device}: "
        f"{measured.host.cpu} ({measured.host.cores} cores)",
    )
    console.result("self-test: not run (the tool compares no outputs); nothing is ranked or chosen by these numbers")


def show_profile(console: Console, manifest: Manifest, measured: Profile) -> None:
    """Latency of each variant, and where it was measured."""
    host, settings = measured.host, measured.settings
    place = f"{measured.provenance} on " + ("" if measured.device == "local" else f"{measured.device}: ")
    console.table(
        PROFILE_COLUMNS,
        profile_rows(measured, manifest),
        title=f"latency in ms: {runtimes_text(measured, manifest)}, {settings.threads} "
        f"thread{'s' if settings.threads > 1 else ''}, batch {settings.batch}, {place}{host.cpu} "
        f"({host.cores} cores)",
    )
    if (delegation := delegation_text(measured.variants)) is not None:
        console.result(delegation)
    for line in across_lines(measured):
        console.result(line)
