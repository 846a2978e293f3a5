"""`profile` on an emulated device: instructions counted, and written into the bundle."""

from __future__ import annotations

import re
from pathlib import Path

from exporter.artifacts import InstructionProfile, canonical
from exporter.bundle import INSTRUCTIONS, PROFILES, check_bundle, read_manifest, sealed_profile, write_atomically
from exporter.devices import EmulatedDevice
from exporter.disk import writing_failed
from exporter.events import Note
from exporter.pipeline.publish import clear_partial, lock_of
from exporter.pipeline.steps import Steps


def count_on(device: EmulatedDevice, bundle: Path, steps: Steps) -> InstructionProfile:
    """Runs a published bundle's self-test on an emulated device, counts instructions, and keeps the profile in it.

    Raises:
        BundleError: the bundle is damaged, or its self-test fails on the device.
        MissingError: what emulates the device is not here.
        OutputError, StageError: the profile cannot be written.
    """
    manifest = read_manifest(bundle)
    try:
        with steps.store.exclusive(lock_of(manifest)):
            clear_partial(bundle)
            check_bundle(bundle)
            with steps.measuring(f"{manifest.target}: count instructions on {device.name}"):
                profile = sealed_profile(device.profile(bundle, manifest))
            write_atomically(bundle / PROFILES / _file_name(profile), canonical(profile))
    except OSError as error:
        raise writing_failed(error, "the profile", bundle) from error
    for flag in profile.flags:
        steps.emit(Note(text=f"instructions: {flag}"))
    return profile


def _file_name(profile: InstructionProfile) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", f"{profile.device}-{profile.cpu}-{profile.runtime.name}".lower())
    return f"{name.strip('-')[:80]}{INSTRUCTIONS}"
