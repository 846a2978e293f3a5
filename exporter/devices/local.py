"""Runs a bundle's own runner on this machine: a fresh process, started from another folder."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from exporter.artifacts import Profile
from exporter.errors import BundleError, ExporterError, InputError, MissingError, StageError, shorten
from exporter.plan_types import ProfilePlan

FAILURES: dict[int, type[ExporterError]] = {3: InputError, 4: MissingError, 6: BundleError}
SELF_TEST_SECONDS = 600
BENCH_MARGIN_SECONDS = 600


def run_self_test(bundle: Path, python: str = sys.executable) -> dict[str, Any]:
    """`run.py --self-test --json`.

    Args:
        bundle: the bundle's folder.
        python: the interpreter, which has numpy and the bundle's runtime.

    Returns:
        What the runner printed: `passed`, `runtime`, `host`, and one report a variant.

    Raises:
        BundleError: the self-test failed.
        MissingError: the runtime is not there.
    """
    printed = _run(bundle, ["--self-test", "--json"], python, SELF_TEST_SECONDS, "self-test")
    report = msgspec.json.decode(printed, type=dict[str, Any])
    if report.get("passed") is not True:
        raise BundleError("the bundle's self-test did not pass", where=str(bundle), why=shorten(report))
    return report


def run_bench(bundle: Path, settings: ProfilePlan, variants: int, python: str = sys.executable) -> Profile:
    """`run.py --bench --json`: latency of all variants, interleaved, in a process that does nothing else.

    Raises:
        BundleError: the self-test that precedes measuring failed.
        MissingError: the runtime is not there.
    """
    arguments = [
        "--bench", "--json",
        "--threads", str(settings.threads),
        "--min-samples", str(settings.min_samples),
        "--min-seconds", str(settings.min_seconds),
        "--max-seconds", str(settings.max_seconds),
        "--ci-width", str(settings.ci_width),
        "--warmup-seconds", str(settings.warmup_seconds),
        "--seed", str(settings.seed),
    ]  # fmt: skip
    limit = BENCH_MARGIN_SECONDS + variants * (settings.max_seconds + settings.warmup_seconds)
    printed = _run(bundle, arguments, python, limit, "benchmark")
    try:
        return msgspec.json.decode(printed, type=Profile)
    except msgspec.MsgspecError as error:
        raise BundleError(
            "the bundle's benchmark did not print a profile", where=str(bundle), why=shorten(error)
        ) from error


def cpu_features() -> tuple[str, ...]:
    """What the kernel says this CPU can do, sorted; empty where it does not say."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return tuple(sorted(match.group(1).split())) if match else ()


def profile_name(profile: Profile) -> str:
    """File name of a profile: CPU, cores and runtime, so that the same kind of host replaces its own profile."""
    words = f"{profile.host.cpu}-{profile.host.cores}c-{profile.runtime.name}".lower()
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")[:80] + ".json"


def _run(bundle: Path, arguments: list[str], python: str, seconds: float, what: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="edge-exporter-") as elsewhere:
        try:
            # -B: a __pycache__ written into the bundle would count as an added file.
            done = subprocess.run(
                [python, "-B", str(bundle.absolute() / "run.py"), *arguments],
                cwd=elsewhere,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StageError(f"the bundle's {what} did not end within {seconds:.0f} s", where=str(bundle)) from error
    if done.returncode == 0:
        return done.stdout
    words = (done.stderr or done.stdout).decode(errors="replace").strip()
    if done.returncode in FAILURES:
        raise FAILURES[done.returncode](f"the bundle's {what} failed", where=str(bundle), why=words[-2000:])
    ending = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    raise StageError(f"the bundle's {what} ended with {ending}", where=str(bundle), why=words[-2000:])
