"""From a drafted bundle to a published one: measured, a default chosen, verified, renamed into place."""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from exporter.artifacts import Choice, Comparison, Manifest, NotMeasured, Profile, canonical
from exporter.bundle import (
    MANIFEST,
    PROFILES,
    bundle_name,
    check_bundle,
    sealed_manifest,
    sealed_profile,
    write_atomically,
)
from exporter.devices import profile_name, run_bench, steady_seconds
from exporter.disk import DISK_FULL, sync_folder, sync_tree, writing_failed
from exporter.errors import BundleError, ExporterError, OutputError
from exporter.events import Note, StepFinished
from exporter.history import measurement
from exporter.pipeline.asked import beside_as_asked, measured_as_asked, unmeasured
from exporter.pipeline.beside import Beside, interpreters, measure_beside
from exporter.pipeline.bundling import Drafted
from exporter.pipeline.recording import remember
from exporter.pipeline.steps import Steps
from exporter.plan_types import ProfilePlan
from exporter.store import ENTRY

PROBE = ".edge-exporter-probe"
STAGING = re.compile(r"\..+-[0-9a-f]{12}-[0-9a-f]{12}")
"""`.NAME-TARGET-DIGEST12-` and what makes it unique: the folder that a bundle is finished in."""
PARTIAL = re.compile(r"\..+\.json\.[0-9a-f]{32}")
"""What a killed run leaves of a manifest or profile that it was replacing."""
STALE_SECONDS = 24 * 3600


class Measured(NamedTuple):
    """Profiles of a bundle, or why there are none, and its manifest with the default that they choose."""

    profile: Profile | NotMeasured
    beside: tuple[Beside, ...]
    manifest: Manifest


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle in the output folder, and its profile or why there is none, also on runtimes beside the main one."""

    path: Path
    manifest: Manifest
    profile: Profile | NotMeasured
    beside: tuple[Beside, ...] = ()
    cached: bool


def check_output(output: Path) -> None:
    """Makes the output folder and proves that it can be written, before any work is done.

    Raises:
        OutputError: it cannot.
        StageError: the disk is full.
    """
    probe = output / PROBE  # One name for all: what a killed run leaves is removed by the next one.
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise writing_failed(error, "the build", output, full=True) from error
        raise OutputError(
            "the output folder cannot be written",
            where=str(error.filename or output),
            why=error.strerror or str(error),
            hint="choose another one with --output",
        ) from error


def publish(drafted: Drafted, output: Path, settings: ProfilePlan, steps: Steps) -> Published:
    """Publishes a bundle, or returns the one that is there when it is intact and measured as asked.

    Raises:
        OutputError, StageError: the folder cannot be written.
    """
    final = output / bundle_name(drafted.manifest)
    label = f"{drafted.manifest.target}: publish"
    try:
        # Two builds into one folder publish and measure one after the other; the second finds it done.
        with steps.store.exclusive(lock_of(drafted.manifest)):
            _sweep(final)
            found = _intact(final, steps)
            why_not = unmeasured(drafted.manifest, final, settings)
            pythons = {} if why_not is not None else interpreters(drafted.beside, drafted.manifest, steps)
            if found is not None and (ready := _ready(final, found, settings, why_not, pythons)) is not None:
                steps.emit(StepFinished(step=label, cached=True, seconds=0.0, detail=str(final)))
                return ready
            return _publish(drafted, final, found, steps, lambda bundle: _profile(
                bundle, drafted.manifest, final, settings, why_not, pythons, steps
            ))  # fmt: skip
    except OSError as error:
        raise writing_failed(error, label, output) from error


def choose(manifest: Manifest, profile: Profile, name: str) -> Choice:
    """The default variant: the fastest of those that were measured to be faster than float, else float."""
    faster = [one for one in profile.comparisons if one.verdict == "faster"]
    settings, place = (
        profile.settings,
        "" if profile.device == "local" else f" ({profile.device}, {profile.provenance})",
    )
    host = f"{profile.host.cpu}{place}, {settings.threads} thread{'s' if settings.threads > 1 else ''}"
    host += "" if profile.runtime.name == manifest.runtime.name else f", {profile.runtime.name}"
    ratios = {one.variant: one.ratio for one in profile.comparisons}
    # What float is compared with has a ratio; float's own is 1.
    measured = tuple(sorted((one.variant for one in profile.variants), key=lambda name: ratios.get(name, 1.0)))
    if faster:
        best = min(faster, key=lambda one: one.ratio)
        return Choice(variant=best.variant, why=f"{describe(best)} on {host}", profile=name, measured=measured)
    rest = "; ".join(describe(one) for one in profile.comparisons) or "it is the only variant"
    return Choice(variant=manifest.float_variant, why=f"{rest} on {host}", profile=name, measured=measured)


def describe(comparison: Comparison) -> str:
    """A comparison in words, with its interval."""
    interval = (
        f"latency ratio {comparison.ratio:.3f}, {comparison.confidence:.0%} interval "
        f"{comparison.low:.3f} to {comparison.high:.3f}"
    )
    words = {"faster": "is faster than", "slower": "is slower than", "no difference": "is not measurably faster than"}
    return f"{comparison.variant} {words[comparison.verdict]} {comparison.baseline} ({interval})"


def set_default(bundle: Path, manifest: Manifest, choice: Choice) -> Manifest:
    """Writes another default variant into a published bundle; its digest stays."""
    try:
        return _with_choice(bundle, manifest, choice)
    except OSError as error:
        raise writing_failed(error, "the manifest", bundle) from error


def _with_choice(bundle: Path, manifest: Manifest, choice: Choice) -> Manifest:
    chosen = sealed_manifest(msgspec.structs.replace(manifest, choice=choice))
    write_atomically(bundle / MANIFEST, canonical(chosen))
    return chosen


def _ready(
    final: Path,
    manifest: Manifest,
    settings: ProfilePlan,
    why_not: NotMeasured | None,
    pythons: Mapping[str, str | ExporterError],
) -> Published | None:
    """The bundle that is published already, when it needs no measuring or was measured as asked."""
    profile = why_not or measured_as_asked(final, manifest, settings)
    beside = beside_as_asked(final, manifest, settings, pythons)
    if profile is None or beside is None:
        return None
    return Published(path=final, manifest=manifest, profile=profile, beside=beside, cached=True)


def _publish(
    drafted: Drafted, final: Path, found: Manifest | None, steps: Steps, measure: Callable[[Path], Measured]
) -> Published:
    staging = final.parent / f".{final.name}-{uuid.uuid4().hex[:12]}"
    bundle = staging / final.name
    try:
        staging.mkdir()
        _copy(drafted.folder, bundle)
        if found is not None and (final / PROFILES).is_dir():
            # Measured elsewhere, or with other settings: facts that a new measurement here does not undo.
            _copy(final / PROFILES, bundle / PROFILES)
        measured = measure(bundle)
        check_bundle(bundle)
        sync_tree(bundle)
        _put(bundle, final, staging / "replaced")
    except OSError as error:
        # Asked here, because the staging folder goes next, and space comes back with it.
        raise writing_failed(error, f"{drafted.manifest.target}: publish", final.parent) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    label = f"{drafted.manifest.target}: publish"
    steps.emit(StepFinished(step=label, cached=False, seconds=0.0, detail=str(final)))
    profile, beside, manifest = measured
    return Published(path=final, manifest=manifest, profile=profile, beside=beside, cached=False)


def _copy(source: Path, destination: Path) -> None:
    """Copies a folder without its entry.json; shutil.copytree would hide a full disk in a list of words."""
    destination.mkdir()
    for path in sorted(source.rglob("*")):
        target = destination / path.relative_to(source)
        if path.is_dir():
            target.mkdir()
        elif path != source / ENTRY:
            shutil.copyfile(path, target)


def _put(bundle: Path, final: Path, replaced: Path) -> None:
    """Moves a bundle into place; what stands there, damaged or not measured as asked, goes when it has succeeded."""
    if final.exists():
        final.rename(replaced)
    try:
        bundle.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    sync_folder(final.parent)


def lock_of(manifest: Manifest) -> str:
    """The store's lock that all who publish or measure one bundle take."""
    return f"publish-{manifest.digest[:32]}"


def _sweep(final: Path) -> None:
    """Removes what killed runs left in the output folder and in the bundle; the lock of this bundle is held.

    A staging folder of this bundle has no owner then; one of another bundle may, until it is older than any run.
    """
    for path in final.parent.glob(".*"):
        if STAGING.fullmatch(path.name) is None:
            continue
        own = path.name.rpartition("-")[0] == f".{final.name}"
        if own or time.time() - path.lstat().st_mtime > STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
    clear_partial(final)


def clear_partial(bundle: Path) -> None:
    """Removes files that a killed run was about to rename, and a folder made for them: they count as added."""
    for folder in (bundle, bundle / PROFILES):
        for path in folder.glob(".*"):
            if PARTIAL.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)
    with suppress(OSError):  # It holds profiles, or is not there.
        (bundle / PROFILES).rmdir()


def _profile(
    bundle: Path,
    manifest: Manifest,
    final: Path,
    settings: ProfilePlan,
    why_not: NotMeasured | None,
    pythons: Mapping[str, str | ExporterError],
    steps: Steps,
) -> Measured:
    if why_not is not None:
        return Measured(why_not, (), manifest)
    try:
        with steps.measuring(f"{manifest.target}: measure latency", steady_seconds(settings)):
            profile = run_bench(bundle, settings, len(manifest.variants))
        _tell(profile, manifest, bundle, steps)
    except BundleError:
        raise
    except ExporterError as error:
        steps.emit(Note(text=f"no profile: {error.what} ({error.why})"))
        command = f"edge-exporter profile {final} --set-default"
        return Measured(NotMeasured(reason=error.what, command=command), (), manifest)
    beside = measure_beside(bundle, manifest, profile, pythons, settings, steps, final)
    for one in beside:
        if isinstance(one.profile, Profile):
            _tell(one.profile, manifest, bundle, steps)
            _keep(bundle, manifest, one.profile, steps)
    name = _keep(bundle, manifest, profile, steps)
    chosen = _with_choice(bundle, manifest, choose(manifest, profile, name))
    return Measured(sealed_profile(profile), beside, chosen)


def _tell(profile: Profile, manifest: Manifest, bundle: Path, steps: Steps) -> None:
    """What was noticed while measuring.

    Raises:
        BundleError: it is of another bundle.
    """
    if profile.bundle_digest != manifest.digest:
        raise BundleError("the benchmark reports another bundle's digest", where=str(bundle))
    where = "" if profile.runtime.name == manifest.runtime.name else f" on {profile.runtime.name}"
    for flag in profile.flags:
        steps.emit(Note(text=f"latency{where}: {flag}"))


def _keep(bundle: Path, manifest: Manifest, profile: Profile, steps: Steps) -> str:
    """Writes a profile into the bundle; gives its file name."""
    name = profile_name(profile)
    write_atomically(bundle / PROFILES / name, canonical(sealed_profile(profile)))
    remember(steps, measurement(manifest, profile))
    return name


def _intact(final: Path, steps: Steps) -> Manifest | None:
    if not final.is_dir():
        return None
    try:
        return check_bundle(final)
    except BundleError as error:
        steps.emit(Note(text=f"{final} is damaged and is made again: {error.what}"))
        return None
