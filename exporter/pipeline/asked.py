"""Whether a published bundle was measured already as a build would measure it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from exporter.artifacts import Manifest, NotMeasured, Profile
from exporter.bundle import read_profiles
from exporter.devices import cpu_features
from exporter.errors import ExporterError
from exporter.pipeline.beside import Beside, not_made
from exporter.pipeline.steps import versions
from exporter.plan_types import ProfilePlan


def unmeasured(manifest: Manifest, final: Path, settings: ProfilePlan) -> NotMeasured | None:
    """Why the build does not measure a bundle, or None when it does."""
    made_for, here = manifest.runtime.machine, platform.machine()
    if made_for not in (None, here):
        reason = f"this machine is {here}, and the bundle is made for {made_for}"
        return NotMeasured(reason=reason, command=f"edge-exporter profile {final} --device NAME --set-default")
    if not settings.enabled:
        return NotMeasured(reason="profiling is turned off", command=f"edge-exporter profile {final} --set-default")
    return None


def measured_as_asked(final: Path, manifest: Manifest, settings: ProfilePlan) -> Profile | None:
    """The profile that the default rests on, when it is of this host, runtime version and settings."""
    name = manifest.choice.profile
    profile = _like_here(final, manifest, settings).get(name) if name is not None else None
    if profile is None or versions(profile.runtime.name) != {profile.runtime.name: profile.runtime.version}:
        return None
    return profile


def beside_as_asked(
    final: Path, manifest: Manifest, settings: ProfilePlan, pythons: Mapping[str, str | ExporterError]
) -> tuple[Beside, ...] | None:
    """What was measured on further runtimes on this host with these settings; None when one is still to be."""
    there = {one.runtime.name: one for one in _like_here(final, manifest, settings).values()}
    if any(isinstance(python, str) and name not in there for name, python in pythons.items()):
        return None
    return tuple(
        Beside(runtime=name, profile=there[name] if isinstance(python, str) else not_made(name, python, final))
        for name, python in pythons.items()
    )


def _like_here(final: Path, manifest: Manifest, settings: ProfilePlan) -> dict[str, Profile]:
    """Profiles of this host with these settings, by file name."""
    wanted, features = _asked(settings), set(cpu_features())
    return {
        name: profile
        for name, profile in read_profiles(final, manifest).items()
        if profile.device == "local"
        and profile.provenance == "native"
        and set(profile.host.features) <= features
        and _used(profile) == wanted
    }


def _asked(settings: ProfilePlan) -> Sequence[object]:
    return (
        settings.threads, tuple(sorted(set(settings.affinity))), settings.min_samples, settings.min_seconds,
        settings.max_seconds, settings.ci_width, settings.warmup_seconds, settings.seed,
    )  # fmt: skip


def _used(profile: Profile) -> Sequence[object]:
    used = profile.settings
    return (
        used.threads, used.affinity or (), used.min_samples, used.min_seconds, used.max_seconds,
        used.ci_width, used.warmup_seconds, used.seed,
    )  # fmt: skip
