"""Latency of two sides as ratios, and what the host itself changed by between two measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from exporter.artifacts import Profile, VariantProfile
from exporter.comparison import PERCENTILES, Control, LatencyPair, Pair
from exporter.measure import Ratio, bootstrap_ratios, paired_ratio, sample_quantile
from exporter.pipeline.sides import Side


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Latency and memory of both sides, or why there is none."""

    profiles: tuple[Profile, Profile] | None = None
    rounds: tuple[tuple[Profile, Profile], ...] = ()
    differences: tuple[str, ...] = ()
    why: str = ""


class _Found(NamedTuple):
    """A percentile on both sides in nanoseconds, and the second over the first."""

    a: float
    b: float
    ratio: Ratio


def control(a: Side, b: Side, measured: Measured) -> Control | None:
    """How far variants whose files are the same on both sides are apart: no more can be told of any other.

    Two processes of one file differ by more than their runs do, and so do two hours of one host. Where both profiles
    have a file in common, that difference is known, and every interval is widened by it: by that of the median, and
    in the tail, which a busy host moves further, by that of the percentile itself. Rounds in turn do not
    take it away: the variants of a bundle run in one process, and which they are moves the latency of each.
    """
    if measured.profiles is None:
        return None
    first, second = measured.profiles
    worst: Control | None = None
    tails: dict[str, float] = {}
    for name in _same_files(a, b, first, second):
        both = _series(measured, (name, name))
        found = _pairs(measured, *both) if both else {}
        factors = {percentile: max(one.ratio.high, 1 / one.ratio.low) for percentile, one in found.items()}
        if "p50" not in factors:
            continue
        for percentile, by in factors.items():
            tails[percentile] = max(by, tails.get(percentile, 1.0))
        if worst is None or factors["p50"] > worst.widened_by:
            worst = Control(variant=name, ratio=found["p50"].ratio.ratio, widened_by=factors["p50"])
    if worst is None:
        return None
    return msgspec.structs.replace(worst, tails={name: by for name, by in tails.items() if by > worst.widened_by})


def _same_files(a: Side, b: Side, first: Profile, second: Profile) -> list[str]:
    """Names of variants that are the same files in the same runtime on both sides."""
    if first.bundle_digest == second.bundle_digest:
        return [one.variant for one in first.variants]
    if a.view is None or b.view is None:
        return []
    found = [_files(side) for side in (a, b)]
    return [name for name, files in found[0].items() if found[1].get(name) == files]


def _files(side: Side) -> dict[str, list[tuple[str, str]]]:
    """Path and digest of each variant's files."""
    if side.view is None:
        return {}
    manifest = side.view.manifest
    return {one.name: [(entry.path, entry.sha256) for entry in manifest.files_of(one)] for one in manifest.variants}


def latencies(
    measured: Measured, names: tuple[str, str], shift: Control | None
) -> tuple[dict[str, LatencyPair], Pair]:
    """Percentiles of a pair of variants with their ratio, and peak memory; nothing where a side was not measured."""
    if measured.profiles is None:
        return {}, Pair(a=None, b=None, why=measured.why)
    both = _series(measured, names)
    if both is None:
        return {}, Pair(a=None, b=None, why="the variant was not measured on one side")
    left, right = both
    memory = Pair(a=left[-1].peak_rss_bytes, b=right[-1].peak_rss_bytes)
    pairs = _pairs(measured, left, right)
    return {name: _pair(pair, shift.factor(name) if shift else 1.0) for name, pair in pairs.items()}, memory


def _series(measured: Measured, names: tuple[str, str]) -> tuple[list[VariantProfile], list[VariantProfile]] | None:
    """What both sides measured of a pair of variants, in every round; None where one side lacks it."""
    series = measured.rounds or ((measured.profiles,) if measured.profiles else ())
    sides = [[_find(pair[index], names[index]) for pair in series] for index in (0, 1)]
    left, right = ([one for one in side if one is not None] for side in sides)
    return (left, right) if len(left) == len(right) == len(series) > 0 else None


def _pairs(measured: Measured, left: Sequence[VariantProfile], right: Sequence[VariantProfile]) -> dict[str, _Found]:
    """Both sides by percentile."""
    if measured.rounds:
        return {name: pair for name in PERCENTILES if (pair := _paired(left, right, name)) is not None}
    return _resampled(left[0], right[0], [*PERCENTILES])


def _paired(left: Sequence[VariantProfile], right: Sequence[VariantProfile], name: str) -> _Found | None:
    values = [[_quantile(one, name) for one in side] for side in (left, right)]
    mine, theirs = ([value for value in side if value is not None] for side in (values[1], values[0]))
    if len(mine) < len(right) or len(theirs) < len(left):
        return None
    ratio = paired_ratio(mine, theirs)
    return None if ratio is None else _Found(statistics.median(theirs), statistics.median(mine), ratio)


def _resampled(left: VariantProfile, right: VariantProfile, names: Sequence[str]) -> dict[str, _Found]:
    """By percentile, where both sides have enough runs for it."""
    names = [name for name in names if None not in (_quantile(left, name), _quantile(right, name))]
    quantiles = [PERCENTILES[name] for name in names]
    ratios = bootstrap_ratios(right.samples_ns, left.samples_ns, quantiles)
    sides = [[sample_quantile(one.samples_ns, quantile) for quantile in quantiles] for one in (left, right)]
    return {name: _Found(*found) for name, *found in zip(names, *sides, ratios, strict=True)} if ratios else {}


def _pair(found: _Found, by: float) -> LatencyPair:
    ratio = msgspec.structs.replace(found.ratio, low=found.ratio.low / by, high=found.ratio.high * by)
    return LatencyPair(
        a=found.a,
        b=found.b,
        ratio=ratio.ratio,
        low=ratio.low,
        high=ratio.high,
        confidence=ratio.confidence,
        count=ratio.count,
        verdict=ratio.verdict,
    )


def _quantile(profile: VariantProfile, name: str) -> float | None:
    """A percentile of the runs themselves, other than the median only where they are enough to bound it."""
    if name != "p50" and name not in profile.summary.percentiles:
        return None
    return sample_quantile(profile.samples_ns, PERCENTILES[name])


def _find(profile: Profile, variant: str) -> VariantProfile | None:
    return next((one for one in profile.variants if one.variant == variant), None)
