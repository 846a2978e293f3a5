"""Results as rows of text, for the console's tables."""

from __future__ import annotations

from exporter.artifacts import Comparison, Manifest, NotMeasured, Profile, Variant, VariantProfile

BUILD_COLUMNS = ("", "size", "metric", "SQNR dB", "top-1", "int8 nodes", "median ms", "p90 ms", "vs float")
NONE = "-"


def build_rows(manifest: Manifest, profile: Profile | NotMeasured) -> list[tuple[str, ...]]:
    """One row for the trained model and one a variant; `*` marks the default."""
    sizes = {entry.path: entry.size for entry in manifest.files}
    rows = []
    first = manifest.variants[0].fidelity
    if first.metric is not None:
        rows.append((first.reference, NONE, f"{first.metric.reference:.4f}", *[NONE] * 6))
    for variant in manifest.variants:
        folder = variant.main.rpartition("/")[0] + "/"
        size = sum(count for path, count in sizes.items() if path.startswith(folder))
        mark = " *" if variant.name == manifest.choice.variant else ""
        latency = _latency(variant.name, profile)
        rows.append((variant.name + mark, human_size(size), *_fidelity(variant), *latency))
    return rows


def human_size(size: int) -> str:
    """Bytes in kB or MB (powers of ten)."""
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


def profile_rows(profile: Profile) -> list[tuple[str, ...]]:
    """One row a variant: load, first run, steady state, memory."""
    rows = []
    for variant in profile.variants:
        compared = [one for one in profile.comparisons if one.variant == variant.variant]
        memory = NONE if variant.peak_rss_bytes is None else human_size(variant.peak_rss_bytes)
        rows.append(
            (
                variant.variant,
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


PROFILE_COLUMNS = ("variant", "runs", "load ms", "first ms", "median ms", "p90 ms", "p99 ms", "peak", "vs float")


def _fidelity(variant: Variant) -> tuple[str, str, str, str]:
    fidelity, coverage = variant.fidelity, variant.coverage
    metric = f"{fidelity.metric.value:.4f}" if fidelity.metric else NONE
    measured = [output.sqnr_db for output in fidelity.outputs if output.sqnr_db is not None]
    agreements = [output.top1_agreement for output in fidelity.outputs if output.top1_agreement is not None]
    return (
        metric,
        f"{min(measured):.1f}" if measured else "exact",
        percent(min(agreements)) if agreements else NONE,
        f"{coverage.quantized}/{coverage.eligible}" if coverage else NONE,
    )


def _latency(name: str, profile: Profile | NotMeasured) -> tuple[str, str, str]:
    if isinstance(profile, NotMeasured):
        return ("not measured", NONE, NONE)
    found = [variant for variant in profile.variants if variant.variant == name]
    compared = [one for one in profile.comparisons if one.variant == name]
    if not found:
        return (NONE, NONE, NONE)
    return (
        milliseconds(found[0].summary.median),
        _percentile(found[0], "p90"),
        ratio(compared[0]) if compared else NONE,
    )


def _percentile(variant: VariantProfile, name: str) -> str:
    value = variant.summary.percentiles.get(name)
    return NONE if value is None else milliseconds(value)
