"""`profile` with LiteRT's benchmark_model: what it printed, written into the bundle as a profile of its own kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from exporter.artifacts import BenchmarkProfile, canonical
from exporter.bundle import BENCHMARK, PROFILES, check_bundle, read_manifest, sealed_profile, write_atomically
from exporter.devices import BenchmarkDevice
from exporter.disk import writing_failed
from exporter.events import Note
from exporter.pipeline.publish import clear_partial, lock_of
from exporter.pipeline.steps import Steps
from exporter.plan_types import ProfilePlan


def benchmark_on(
    device: BenchmarkDevice, bundle: Path, sweep: Sequence[ProfilePlan], steps: Steps
) -> list[BenchmarkProfile]:
    """Times the .tflite files of a published bundle on a device, once for each of the settings.

    Raises:
        BundleError: the bundle is damaged.
        InputError, MissingError, StageError: what the device or the binary lacks, or how it failed.
    """
    manifest = read_manifest(bundle)
    profiles = []
    try:
        with steps.store.exclusive(lock_of(manifest)):
            clear_partial(bundle)
            check_bundle(bundle)
            with device.ready(bundle, manifest, steps.emit) as ready:
                for settings in sweep:
                    with steps.measuring(f"{manifest.target}: benchmark_model on {device.name}"):
                        profile = sealed_profile(ready.profile(settings))
                    write_atomically(bundle / PROFILES / _file_name(profile), canonical(profile))
                    profiles.append(profile)
                    for flag in profile.flags:
                        steps.emit(Note(text=f"latency: {flag}"))
    except OSError as error:
        raise writing_failed(error, "the profile", bundle) from error
    return profiles


def _file_name(profile: BenchmarkProfile) -> str:
    pinned = f"-cpu{'.'.join(map(str, profile.affinity))}" if profile.affinity else ""
    name = re.sub(r"[^a-z0-9]+", "-", f"{profile.device}-{profile.host.cpu}".lower()).strip("-")[:80]
    return f"{name}-{profile.threads}t{pinned}{BENCHMARK}"
