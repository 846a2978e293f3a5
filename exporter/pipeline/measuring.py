"""`profile`: a published bundle measured on a device, and what was measured written into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from exporter.artifacts import Manifest, Profile, Provenance, canonical
from exporter.bundle import PROFILES, check_bundle, read_manifest, sealed_profile, write_atomically
from exporter.devices import Device, emulation_note, profile_name, steady_seconds
from exporter.disk import writing_failed
from exporter.errors import BundleError
from exporter.events import Note
from exporter.history import measurement
from exporter.pipeline.publish import clear_partial, lock_of
from exporter.pipeline.recording import remember
from exporter.pipeline.steps import Steps
from exporter.plan_types import ProfilePlan


def profile_on(device: Device, bundle: Path, sweep: Sequence[ProfilePlan], steps: Steps) -> list[Profile]:
    """Measures a published bundle on a device, once for each of the settings, and keeps each profile in it.

    Raises:
        BundleError: the bundle is damaged, or its self-test fails on the device.
        MissingError: the device or its runtime is not there.
        OutputError, StageError: a profile cannot be written.
    """
    manifest = read_manifest(bundle)
    profiles = []
    try:
        with steps.store.exclusive(lock_of(manifest)):
            clear_partial(bundle)
            check_bundle(bundle)
            with device.prepared(bundle, manifest, steps.emit) as ready:
                for settings in sweep:
                    label = _label(manifest, device, settings, len(sweep) > 1)
                    with steps.measuring(label, steady_seconds(settings)):
                        measured = ready.profile(settings)
                    if ready.emulated:
                        flags = (*measured.flags, emulation_note(ready.emulated))
                        measured = msgspec.structs.replace(measured, flags=flags)
                    profiles.append(keep(bundle, manifest, measured, device.name, ready.provenance, steps))
    except OSError as error:
        raise writing_failed(error, "the profile", bundle) from error
    return profiles


def keep(
    bundle: Path, manifest: Manifest, measured: Profile, device: str, provenance: Provenance, steps: Steps
) -> Profile:
    """Writes a profile into its bundle under the device's name, and tells what was noticed while measuring.

    Raises:
        BundleError: it is of another bundle.
    """
    if measured.bundle_digest != manifest.digest:
        raise BundleError("the benchmark reports another bundle's digest", where=str(bundle))
    named = msgspec.structs.replace(measured, device=device, provenance=provenance)
    profile = sealed_profile(named)
    write_atomically(bundle / PROFILES / profile_name(profile), canonical(profile))
    remember(steps, measurement(manifest, profile))
    for flag in profile.flags:
        steps.emit(Note(text=f"latency: {flag}"))
    return profile


def _label(manifest: Manifest, device: Device, settings: ProfilePlan, several: bool) -> str:
    where = "" if device.name == "local" else f" on {device.name}"
    how = f", {settings.threads} thread{'s' if settings.threads > 1 else ''}" if several else ""
    return f"{manifest.target}: measure latency{where}{how}"
