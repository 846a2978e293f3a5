"""What every device that runs a bundle's runner shares: its command lines, its time limits, and what it printed."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from exporter.artifacts import Profile
from exporter.errors import BundleError, ExporterError, InputError, MissingError, StageError, shorten
from exporter.plan_types import ProfilePlan

FAILURES: dict[int, type[ExporterError]] = {3: InputError, 4: MissingError, 6: BundleError}
"""Exit codes of the runner that say what was wrong."""
SELF_TEST = ("--self-test", "--json")
SELF_TEST_SECONDS = 600
BENCH_MARGIN_SECONDS = 600


def bench_arguments(settings: ProfilePlan) -> list[str]:
    """The runner's command line that measures as the plan says."""
    pinned = ["--affinity", ",".join(map(str, settings.affinity))] if settings.affinity else []
    return [
        "--bench", "--json",
        "--threads", str(settings.threads),
        *pinned,
        "--min-samples", str(settings.min_samples),
        "--min-seconds", str(settings.min_seconds),
        "--max-seconds", str(settings.max_seconds),
        "--ci-width", str(settings.ci_width),
        "--warmup-seconds", str(settings.warmup_seconds),
        "--seed", str(settings.seed),
    ]  # fmt: skip


def steady_seconds(settings: ProfilePlan) -> float:
    """How long warm-up and steady state take at most: all variants share the time."""
    return settings.warmup_seconds + settings.max_seconds


def bench_seconds(settings: ProfilePlan, variants: int) -> float:
    """How long measuring may take before it counts as hung."""
    return BENCH_MARGIN_SECONDS + variants * (settings.max_seconds + settings.warmup_seconds)


def printed_self_test(printed: bytes, where: str) -> dict[str, Any]:
    """Reads what `run.py --self-test --json` printed.

    Raises:
        BundleError: it says that the self-test failed, or nothing that can be read.
    """
    try:
        report = msgspec.json.decode(printed, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BundleError("the bundle's self-test printed no report", where=where, why=shorten(error)) from error
    if report.get("passed") is not True:
        raise BundleError("the bundle's self-test did not pass", where=where, why=shorten(report))
    return report


def printed_profile(printed: bytes, where: str) -> Profile:
    """Reads what `run.py --bench --json` printed.

    Raises:
        BundleError: it is no profile.
    """
    try:
        return msgspec.json.decode(printed, type=Profile)
    except msgspec.MsgspecError as error:
        raise BundleError(
            "the bundle's benchmark did not print a profile", where=where, why=shorten(error)
        ) from error


def runner_failed(what: str, where: str, code: int, words: str) -> ExporterError:
    """The error for a runner that ended with something else than 0, in its own words."""
    if code in FAILURES:
        return FAILURES[code](f"the bundle's {what} failed", where=where, why=words[-2000:])
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    return StageError(f"the bundle's {what} ended with {ending}", where=where, why=words[-2000:])


def profile_name(profile: Profile) -> str:
    """File name of a profile, so that measuring the same place in the same way again replaces it.

    A device's name where it is not this machine, CPU, cores, runtime, threads, and CPUs when pinned.
    """
    settings, elsewhere = profile.settings, "" if profile.device == "local" else f"{profile.device}-"
    # What a stranger's file or an emulator says must not take the place of what was measured on the device.
    elsewhere = elsewhere if profile.provenance == "native" else f"{profile.provenance}-{elsewhere}"
    pinned = f"-cpu{'.'.join(map(str, settings.affinity))}" if settings.affinity else ""
    host = f"{elsewhere}{profile.host.cpu}-{profile.host.cores}c-{profile.runtime.name}".lower()
    how = f"-{settings.threads}t{pinned}"
    return re.sub(r"[^a-z0-9]+", "-", host).strip("-")[: 100 - len(how)] + how + ".json"
