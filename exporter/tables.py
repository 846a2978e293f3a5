"""Results as rows of text, for the console's tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from exporter.artifacts import (
    Alternative,
    BenchmarkProfile,
    Comparison,
    Coverage,
    DeviceFacts,
    Fidelity,
    GateResult,
    HistoryEntry,
    HostState,
    InstructionProfile,
    Manifest,
    Profile,
    Repair,
    Variant,
    VariantInstructions,
    VariantProfile,
)

FIDELITY_COLUMNS = ("", "size", "metric", "SQNR dB", "cosine", "top-1", "max error", "int8")
HISTORY_COLUMNS = ("SQNR dB", "top-1", "parameters", "MMAC", "size", "zstd", "zeros")
PROFILE_COLUMNS = ("", "runs", "load", "first", "median", "p90 <=", "p99 <=", "peak MB", "vs float")
"""Times are milliseconds; a percentile is at most what is shown, with 99 % confidence."""
BENCHMARK_COLUMNS = ("", "runs", "load", "first", "least", "mean", "median", "p95", "MB")
_ALTERNATIVE_COLUMNS = ("", "target", "file", "metric", "SQNR dB", "size", "median ms", "Pareto")
NONE = "-"
REASONS_SHOWN = 4
REASONS = {"gate": "repaired", "speed": "changed for speed"}


def fidelity_columns(manifest: Manifest) -> list[str]:
    """Columns of `fidelity_rows`, with the metric called by its name."""
    metric = manifest.variants[0].fidelity.metric
    name, size, _, *rest = FIDELITY_COLUMNS
    packed = ["zstd"] if _is_sparse(manifest) else []
    return [name, size, *packed, *([metric.name] if metric else []), *rest]


def fidelity_rows(manifest: Manifest) -> list[tuple[str, ...]]:
    """The trained model, then each variant: size and divergence of its worst output; `*` marks the default."""
    rows: list[tuple[str, ...]] = []
    first, sparse = manifest.variants[0].fidelity, _is_sparse(manifest)
    if first.metric is not None:
        rows.append((first.reference, *[NONE] * (1 + sparse), f"{first.metric.reference:.4f}", *[NONE] * 5))
    for variant in manifest.variants:
        size = (_marked(variant.name, manifest), human_size(manifest.size_of(variant)))
        packed = (_packed(variant.packed_bytes),) if sparse else ()
        metric, *rest = _fidelity(variant, manifest)
        rows.append((*size, *packed, *((metric,) if first.metric is not None else ()), *rest))
    return rows


def history_rows(history: Sequence[HistoryEntry]) -> list[tuple[str, ...]]:
    """From what was trained to what was exported: accuracy or divergence, parameters, work, and sizes."""
    return [
        (
            entry.name,
            NONE if entry.metric is None else f"{entry.metric:.4f}",
            *_divergence(entry.fidelity),
            f"{entry.cost.parameters:,}",
            f"{entry.cost.macs / 1e6:.2f}",
            human_size(entry.cost.bytes),
            NONE if entry.cost.compressed_bytes is None else human_size(entry.cost.compressed_bytes),
            f"{entry.cost.zeros:.0%}",
        )
        for entry in history
    ]


def history_columns(history: Sequence[HistoryEntry]) -> tuple[str, ...]:
    """Columns of `history_rows`, with the metric called by its name."""
    metrics = [entry.fidelity.metric.name for entry in history if entry.fidelity and entry.fidelity.metric]
    return ("", metrics[0] if metrics else "metric", *HISTORY_COLUMNS)


def history_lines(history: Sequence[HistoryEntry]) -> list[str]:
    """The same as aligned text, for messages."""
    rows = [history_columns(history), *history_rows(history)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def alternative_columns(alternatives: Sequence[Alternative]) -> tuple[str, ...]:
    """Columns of `alternative_rows`."""
    before, after = _ALTERNATIVE_COLUMNS[:-2], _ALTERNATIVE_COLUMNS[-2:]
    return (*before, *(("zstd",) if _any_packed(alternatives) else ()), *after)


def alternative_rows(alternatives: Sequence[Alternative]) -> list[tuple[str, ...]]:
    """One row a file; `*` marks those that no other of the target beats."""
    sparse = _any_packed(alternatives)
    return [
        (
            one.name,
            one.target,
            one.variant or "refused",
            NONE if one.metric is None else f"{one.metric:.4f}",
            NONE if one.variant is None else "exact" if one.sqnr_db is None else f"{one.sqnr_db:.1f}",
            NONE if one.size is None else human_size(one.size),
            *((_packed(one.packed_bytes),) if sparse else ()),
            NONE if one.latency_ms is None else milliseconds(one.latency_ms * 1e6),
            "*" if one.pareto else "",
        )
        for one in alternatives
    ]


def variant_lines(manifest: Manifest) -> list[str]:
    """What the fidelity table cannot say: what stayed float and why, once for all that share it, and simulation."""
    groups: dict[str, list[str]] = {}
    for variant in manifest.variants:
        for line in left_in_float(variant.coverage) if variant.coverage else ():
            groups.setdefault(line, []).append(variant.name)
    repaired = [
        f"{variant.name} was {REASONS[repair.reason]}: {repair_text(repair)}"
        for variant in manifest.variants
        for repair in variant.repairs
        if repair.kept
    ]
    lines = [f"{', '.join(names)} leaves in float {line}" for line, names in groups.items()]
    apart = [
        f"{variant.name} is not what ONNX is: {lint.text}"
        for variant in manifest.variants
        for lint in variant.lints
        if lint.kind == "cross-check"
    ]
    return [*repaired, *lines, *apart] + [
        f"{variant.name}: {made_for_text(variant)}; its arithmetic was simulated, not run here"
        for variant in manifest.variants
        if variant.fidelity.arithmetic == "simulated"
    ]


def gate_text(gate: GateResult) -> str:
    """What was asked, and in whose stead."""
    if not gate.rules:
        return gate.reason
    return "; ".join(gate.rules) + (f" ({gate.reason})" if gate.reason else "")


def repair_text(repair: Repair) -> str:
    """A repair in words, with what it brought."""
    db = " -> ".join("exact" if value is None else f"{value:.1f}" for value in repair.sqnr_db)
    metric = f", metric {repair.metric[0]:.4f} -> {repair.metric[1]:.4f}" if repair.metric else ""
    nodes = f", int8 nodes {repair.quantized[0]} -> {repair.quantized[1]}"
    latency = f", latency {repair.latency:.2f}x" if repair.latency is not None else ""
    return f"{repair.change}: SQNR {db} dB{metric}{nodes}{latency}{'' if repair.kept else '; not kept'}"


def made_for_text(variant: Variant) -> str:
    """Which CPUs a variant is made for."""
    return "made for CPUs with " + " and ".join(need.replace("|", " or ") for need in variant.requires)


def apart_text(variant: Variant) -> str:
    """Why a variant was not run on a machine."""
    return made_for_text(variant) if variant.requires else f"which runs on {variant.runtime}"


def left_in_float(coverage: Coverage) -> list[str]:
    """Which operators stayed float and why, most frequent first, one line a kind."""
    kinds = Counter((skipped.op, skipped.reason) for skipped in coverage.skipped).most_common()
    lines = [f"{count} {op}: {reason}" for (op, reason), count in kinds[:REASONS_SHOWN]]
    rest = sum(count for _, count in kinds[REASONS_SHOWN:])
    return lines + ([f"{rest} more nodes: the manifest and --json list them all"] if rest else [])


def human_size(size: int) -> str:
    """Bytes in kB, MB or GB (powers of ten)."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def milliseconds(nanoseconds: float) -> str:
    """Nanoseconds as milliseconds with three significant digits at least."""
    value = nanoseconds / 1e6
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def percent(share: float | None) -> str:
    """A share as percent, or a dash."""
    return NONE if share is None else f"{share:.2%}"


def ratio(comparison: Comparison) -> str:
    """A ratio with its interval."""
    return f"{comparison.ratio:.3f}x [{comparison.low:.3f}, {comparison.high:.3f}]"


def delegation_text(variants: Sequence[VariantProfile | VariantInstructions]) -> str | None:
    """How much of each file a delegate computes; None where the runtime has none."""
    found = [(one.variant, one.delegation) for one in variants if one.delegation is not None]
    if not found:
        return None
    shares = ", ".join(
        f"{name} unknown" if one.of is None else f"{name} {one.operators}/{one.of}" for name, one in found
    )
    return f"operators that {found[0][1].delegate} computes: {shares}"


def across_lines(profile: Profile) -> list[str]:
    """What this runtime does not run right, and each variant against itself on another one where it ran there."""
    left = [f"{name} was not measured on {profile.runtime.name}: {why}" for name, why in profile.not_measured.items()]
    if not profile.across:
        return left
    first = profile.across[0]
    pairs = ", ".join(f"{one.variant} {one.ratio:.2f}x [{one.low:.2f}, {one.high:.2f}]" for one in profile.across)
    return [
        *left,
        f"{profile.runtime.name} against {first.baseline}, the same files in processes in turn: {pairs}",
        f"intervals are widened by the {first.widened_by:.2f}x that {first.baseline} differs by from itself",
    ]


def runtimes_text(profile: Profile, manifest: Manifest) -> str:
    """Names and versions of the runtimes that a profile's variants ran on; the main one first."""
    measured = {one.variant for one in profile.variants}
    named = {variant.runtime for variant in manifest.variants if variant.name in measured}
    others = {name: version for name, version in profile.runtime.others.items() if name in named}
    main = {profile.runtime.name: profile.runtime.version} if named - others.keys() or not others else {}
    return " and ".join(f"{name} {version}" for name, version in {**main, **others}.items())


def profile_rows(profile: Profile, manifest: Manifest) -> list[tuple[str, ...]]:
    """One row a variant: load, first run, steady state, memory."""
    rows = []
    for variant in profile.variants:
        compared = [one for one in profile.comparisons if one.variant == variant.variant]
        memory = NONE if variant.peak_rss_bytes is None else f"{variant.peak_rss_bytes / 1e6:.0f}"
        rows.append(
            (
                _marked(variant.variant, manifest),
                str(variant.summary.count),
                milliseconds(variant.load_ns),
                milliseconds(variant.first_ns),
                milliseconds(variant.summary.median),
                *(_percentile(variant, name) for name in ("p90", "p99")),
                memory,
                ratio(compared[0]) if compared else NONE,
            )
        )
    return rows


def instruction_rows(profile: InstructionProfile) -> list[tuple[str, ...]]:
    """One row a variant: share of equal values in the self-test, then instructions of one inference by class."""
    kinds = instruction_kinds(profile)
    return [
        (
            one.variant,
            percent(one.exact_share),
            *(f"{one.guest_instructions[kind]:,}" for kind in kinds),
        )
        for one in profile.variants
    ]


def instruction_kinds(profile: InstructionProfile) -> list[str]:
    """Classes of instructions that some variant executes, `total` first."""
    kinds = [kind for kind in profile.variants[0].guest_instructions if kind != "total"]
    return ["total", *(kind for kind in kinds if any(one.guest_instructions[kind] for one in profile.variants))]


def facts_rows(facts: DeviceFacts) -> list[tuple[str, str]]:
    """What `devices check` found, one fact a row; what the device does not tell is a dash."""
    host, state = facts.host, facts.state
    runtimes = [f"{name} {version}" for name, version in sorted(facts.runtimes.items())]
    clocks = state.frequency_mhz if state else None
    return [
        ("address", facts.address),
        ("measurements are", facts.provenance),
        ("CPU", f"{host.cpu}, {host.cores} cores, {host.system} {host.machine}" if host else NONE),
        ("features", " ".join(host.features) or NONE if host else NONE),
        ("memory", human_size(host.memory_bytes) if host and host.memory_bytes else NONE),
        ("governor", host.governor or NONE if host else NONE),
        ("frequency", f"{min(clocks):.0f} to {max(clocks):.0f} MHz" if clocks else NONE),
        ("temperature", f"{state.temperature_c:.1f} C" if state and state.temperature_c is not None else NONE),
        ("held back by", _held_back(state)),
        ("load average", " ".join(f"{load:.2f}" for load in state.load_average or ()) or NONE if state else NONE),
        ("Python", f"{host.python} ({facts.python})" if host and facts.python else NONE),
        ("runtimes", ", ".join(runtimes) or NONE),
        ("folder", facts.folder or NONE),
        ("free disk", NONE if facts.free_bytes is None else human_size(facts.free_bytes)),
    ]


def benchmark_rows(profile: BenchmarkProfile) -> list[tuple[str, ...]]:
    """One row a variant, times in milliseconds."""
    rows = []
    for one in profile.variants:
        times = (one.init_us, one.first_us, one.minimum_us, one.mean_us, one.median_us, one.p95_us)
        shown = [NONE if value is None else milliseconds(1000 * value) for value in times]
        rows.append((one.variant, str(one.count), *shown, NONE if one.memory_mb is None else f"{one.memory_mb:.0f}"))
    return rows


def _held_back(state: HostState | None) -> str:
    if state is None or state.throttling is None:
        return NONE
    return ", ".join(state.throttling) or "nothing"


def _is_sparse(manifest: Manifest) -> bool:
    return any(variant.packed_bytes is not None for variant in manifest.variants)


def _any_packed(alternatives: Sequence[Alternative]) -> bool:
    return any(one.packed_bytes is not None for one in alternatives)


def _packed(size: int | None) -> str:
    return NONE if size is None else human_size(size)


def _marked(name: str, manifest: Manifest) -> str:
    return name + (" *" if name == manifest.choice.variant else "")


def _divergence(fidelity: Fidelity | None) -> tuple[str, str]:
    if fidelity is None:
        return NONE, NONE
    measured = [output.sqnr_db for output in fidelity.outputs if output.sqnr_db is not None]
    agreement = next((one.top1_agreement for one in fidelity.outputs if one.top1_agreement is not None), None)
    return (f"{min(measured):.1f}" if measured else "exact"), percent(agreement)


def _fidelity(variant: Variant, manifest: Manifest) -> tuple[str, ...]:
    fidelity, coverage = variant.fidelity, variant.coverage
    measured = [output.sqnr_db for output in fidelity.outputs if output.sqnr_db is not None]
    # The arg-max means something for the output that is judged, not for a hidden state beside it.
    judged = manifest.plan.get("evaluation", {}).get("output", fidelity.outputs[0].output)
    agreement = next(output.top1_agreement for output in fidelity.outputs if output.output == judged)
    return (
        f"{fidelity.metric.value:.4f}" if fidelity.metric else NONE,
        f"{min(measured):.1f}" if measured else "exact",
        f"{min(output.cosine for output in fidelity.outputs):.5f}",
        percent(agreement),
        f"{max(output.max_abs_error for output in fidelity.outputs):.2g}",
        f"{coverage.quantized}/{coverage.eligible}" if coverage else NONE,
    )


def _percentile(variant: VariantProfile, name: str) -> str:
    value = variant.summary.percentiles.get(name)
    return NONE if value is None else milliseconds(value)
