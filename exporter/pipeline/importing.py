"""`profile --import`: what the runner printed on a device that nobody here can reach."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import msgspec

from exporter.artifacts import Manifest, Profile, VariantProfile
from exporter.bundle import check_bundle, read_manifest
from exporter.devices import NAME
from exporter.disk import writing_failed
from exporter.errors import BundleError, InputError, UsageError, shorten
from exporter.pipeline.measuring import keep
from exporter.pipeline.publish import clear_partial, lock_of
from exporter.pipeline.steps import Steps

LARGEST = 64 * 2**20
PRINTED_BY = "`python run.py --bench --json > FILE` on the device makes one"


def import_profile(bundle: Path, file: Path, name: str | None, steps: Steps) -> Profile:
    """Checks a profile that was made elsewhere, and keeps it in its bundle as `imported`.

    Args:
        bundle: the bundle's folder.
        file: what `run.py --bench --json` printed.
        name: of the device; by default that of the file.
        steps: holds the bundle meanwhile.

    Raises:
        InputError: the file is not there or is no profile.
        BundleError: it is of another bundle, its self-test did not pass, or it contradicts itself.
        OutputError, StageError: it cannot be written.
    """
    device = file.stem if name is None else name
    if not NAME.fullmatch(device) or device == "local":
        raise UsageError(
            f"'{device}' cannot name a device (letters, digits, '.', '_', '-', and not 'local')",
            hint="name it with --as",
        )
    manifest = read_manifest(bundle)
    profile = _read(file)
    _check(profile, manifest, str(file))
    try:
        with steps.store.exclusive(lock_of(manifest)):
            clear_partial(bundle)
            check_bundle(bundle)
            return keep(bundle, manifest, profile, device, "imported", steps)
    except OSError as error:
        raise writing_failed(error, "the profile", bundle) from error


def _read(file: Path) -> Profile:
    try:
        if file.stat().st_size > LARGEST:
            raise InputError("the file is too large for a profile", where=str(file), hint=PRINTED_BY)
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise InputError("the file to import does not exist", where=str(file), hint=PRINTED_BY) from error
    except OSError as error:
        raise InputError("the file to import cannot be read", where=str(file), why=error.strerror) from error
    try:
        tables = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            "the file is no JSON document", where=str(file), why=shorten(error), hint=PRINTED_BY
        ) from error
    failed = tables.get("passed") is False or tables.get("self_test", "passed") != "passed"
    if failed:
        why = shorten(tables.get("problems") or tables.get("self_test") or "its report says so")
        raise BundleError("the self-test did not pass on the device: nothing is imported", where=str(file), why=why)
    if "passed" in tables:
        raise InputError("this is the report of a self-test, and no profile", where=str(file), hint=PRINTED_BY)
    try:
        return msgspec.convert(tables, Profile)
    except msgspec.ValidationError as error:
        raise InputError("the file is no profile", where=str(file), why=shorten(error), hint=PRINTED_BY) from error


def _check(profile: Profile, manifest: Manifest, where: str) -> None:
    if profile.bundle_digest != manifest.digest:
        raise BundleError(
            "the profile belongs to another bundle",
            where=where,
            why=f"it was measured on {profile.bundle_digest[:12]}, this bundle is {manifest.digest[:12]}",
            hint="import it with the bundle that was on the device",
        )
    known = {variant.name for variant in manifest.variants}
    named = [one.variant for one in profile.variants]
    compared = {name for one in profile.comparisons for name in (one.variant, one.baseline)}
    faults = [f"{one.variant}: {fault}" for one in profile.variants if (fault := _contradiction(one))]
    if not named or len(set(named)) != len(named) or not set(named) <= known or not compared <= set(named):
        faults.append("its variants are not those of the bundle")
    others = [runtime.name for runtime in manifest.other_runtimes]
    if profile.runtime.name not in (manifest.runtime.name, *manifest.runtime.alternatives, *others):
        faults.append(f"it ran on {profile.runtime.name}, the bundle runs on {manifest.runtime.name}")
    if faults:
        raise BundleError("the profile contradicts itself or its bundle", where=where, why="; ".join(faults))


def _contradiction(measured: VariantProfile) -> str | None:
    """What of a summary is not what its samples say, or None."""
    samples, summary = measured.samples_ns, measured.summary
    if not samples or summary.count != len(samples):
        return f"{summary.count} samples are claimed, {len(samples)} are there"
    if min(samples) <= 0 or min(measured.load_ns, measured.first_ns) <= 0:
        return "a time is not above zero"
    said = (summary.minimum, summary.median)
    found = (min(samples), statistics.median(samples))
    if said != found:
        return f"minimum and median are {said[0]:g} and {said[1]:g} ns, its samples say {found[0]:g} and {found[1]:g}"
    if not set(summary.percentiles.values()) <= set(samples):
        return "a percentile is no sample"
    return None
