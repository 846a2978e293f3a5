"""Latency of a new bundle on runtimes beside its main one, each in an environment of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from exporter.artifacts import Manifest, NotMeasured, Profile, RuntimeRatio
from exporter.devices import kept_python, run_bench, runtime_named, steady_seconds
from exporter.errors import ExporterError, shorten
from exporter.events import Note
from exporter.measure import Ratio, bootstrap_ratio
from exporter.pipeline.steps import Steps
from exporter.plan_types import ProfilePlan

AGAIN_SECONDS = 4.0
"""How long the main runtime is measured at most when it is only to tell what the host itself changed by."""


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """A further runtime, and what was measured on it or why nothing was."""

    runtime: str
    profile: Profile | NotMeasured


def interpreters(names: Sequence[str], manifest: Manifest, steps: Steps) -> dict[str, str | ExporterError]:
    """For each runtime the interpreter of its environment, or why there can be none here."""
    found: dict[str, str | ExporterError] = {}
    for name in names:
        try:
            found[name] = kept_python(steps.store, runtime_named(manifest, name), steps.emit)
        except ExporterError as error:
            found[name] = error
    return found


def measure_beside(
    bundle: Path,
    manifest: Manifest,
    first: Profile,
    pythons: Mapping[str, str | ExporterError],
    settings: ProfilePlan,
    steps: Steps,
    final: Path,
) -> tuple[Beside, ...]:
    """Measures a bundle on further runtimes, and each variant there against itself on the main runtime.

    Runtimes that need environments of their own cannot run in one process. So the main runtime was measured before,
    and is again after: what it differs by from itself is the host, and every ratio's interval is widened by that.

    Args:
        bundle: its folder.
        manifest: of the bundle.
        first: the profile on the main runtime, measured just now.
        pythons: see `interpreters`.
        settings: how to measure.
        steps: the build's.
        final: where the bundle will be published.

    Returns:
        Unsealed profiles, or why there are none, in the order of `pythons`.
    """
    found: dict[str, Profile | NotMeasured] = {}
    for name, python in pythons.items():
        try:
            if isinstance(python, ExporterError):
                raise python
            with steps.measuring(f"{manifest.target}: measure latency on {name}", steady_seconds(settings)):
                found[name] = run_bench(bundle, settings, len(manifest.variants), python, name)
        except ExporterError as error:
            steps.emit(Note(text=f"not measured on {name}: {error.what} ({shorten(error.why)})"))
            found[name] = not_made(name, error, final)
    if any(isinstance(one, Profile) for one in found.values()):
        by = _widened(first, _again(bundle, manifest, settings, steps))
        found = {name: _against(one, first, by) for name, one in found.items()}
    return tuple(Beside(runtime=name, profile=one) for name, one in found.items())


def not_made(name: str, error: ExporterError, final: Path) -> NotMeasured:
    """Why a bundle was not measured on a runtime."""
    return NotMeasured(reason=error.what, command=f"edge-exporter profile {final} --runtime {name}")


def _again(bundle: Path, manifest: Manifest, settings: ProfilePlan, steps: Steps) -> Profile:
    longest = min(settings.max_seconds, AGAIN_SECONDS)
    short = msgspec.structs.replace(settings, max_seconds=longest, min_seconds=min(settings.min_seconds, longest))
    label = f"{manifest.target}: measure again on {manifest.runtime.name}, to tell what the host changed by"
    with steps.measuring(label, steady_seconds(short)):
        return run_bench(bundle, short, len(manifest.variants))


def _widened(first: Profile, again: Profile) -> float:
    """The factor by which a runtime differs from itself: the most of any variant."""
    ratios = _ratios(again, first).values()
    return max((max(one.high, 1 / one.low) for one in ratios), default=1.0)


def _ratios(profile: Profile, base: Profile) -> dict[str, Ratio]:
    """Median of each variant over that in another profile; none where either has too few runs."""
    bases = {one.variant: one.samples_ns for one in base.variants}
    pairs = {
        one.variant: bootstrap_ratio(one.samples_ns, bases[one.variant], 0.5)
        for one in profile.variants
        if one.variant in bases
    }
    return {name: found for name, found in pairs.items() if found is not None}


def _against(measured: Profile | NotMeasured, first: Profile, by: float) -> Profile | NotMeasured:
    if isinstance(measured, NotMeasured):
        return measured
    found = [
        (name, msgspec.structs.replace(one, low=one.low / by, high=one.high * by))
        for name, one in _ratios(measured, first).items()
    ]
    across = tuple(
        RuntimeRatio(
            variant=name,
            baseline=first.runtime.name,
            ratio=one.ratio,
            low=one.low,
            high=one.high,
            confidence=one.confidence,
            widened_by=by,
            verdict=one.verdict,
        )
        for name, one in found
    )
    return msgspec.structs.replace(measured, across=across)
