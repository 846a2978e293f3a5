"""This machine: a bundle's own runner in a fresh process, started from another folder."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from exporter.artifacts import DeviceFacts, Manifest, Profile, Provenance
from exporter.devices.config import LOCAL
from exporter.devices.environments import clean_environment
from exporter.devices.running import (
    SELF_TEST,
    SELF_TEST_SECONDS,
    bench_arguments,
    bench_seconds,
    printed_profile,
    printed_self_test,
    runner_failed,
)
from exporter.errors import StageError
from exporter.events import Emit
from exporter.plan_types import ProfilePlan

PROBE = Path(__file__).parent / "onboard" / "probe.py"
PROBE_SECONDS = 60
RUNTIMES = ("onnxruntime", "ai-edge-litert", "tflite-runtime", "numpy")
"""Distributions that `devices check` looks for."""


class LocalDevice:
    """This machine, in the environment that the exporter runs in."""

    name = LOCAL
    address = LOCAL

    def check(self) -> DeviceFacts:
        """Asks a fresh interpreter, as a bundle's runner would be."""
        done = subprocess.run(
            [sys.executable, "-I", PROBE, tempfile.gettempdir(), *RUNTIMES],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise StageError("this machine could not be looked at", why=done.stderr.decode(errors="replace")[-600:])
        return probed(done.stdout, LOCAL, LOCAL)

    @contextmanager
    def prepared(self, bundle: Path, manifest: Manifest, emit: Emit) -> Iterator[LocalBundle]:
        """The bundle where it stands: nothing is copied."""
        yield LocalBundle(bundle, manifest)


class LocalBundle:
    """A bundle on this machine, the interpreter that runs it, and the only runtime to run it on if named."""

    provenance: Provenance = "native"
    emulated = ""

    def __init__(
        self, bundle: Path, manifest: Manifest, python: str = sys.executable, runtime: str | None = None
    ) -> None:
        self._bundle = bundle
        self._variants = len(manifest.variants)
        self._python = python
        self._runtime = runtime

    def self_test(self) -> dict[str, Any]:
        """See `run_self_test`."""
        return run_self_test(self._bundle, self._python, self._runtime)

    def profile(self, settings: ProfilePlan) -> Profile:
        """See `run_bench`."""
        return run_bench(self._bundle, settings, self._variants, self._python, self._runtime)


def probed(
    printed: bytes, name: str, address: str, notes: Sequence[str] = (), provenance: Provenance = "native"
) -> DeviceFacts:
    """What onboard/probe.py printed on a device that runs bundles by itself."""
    found = msgspec.json.decode(printed, type=dict[str, Any])
    facts = {"device": name, "address": address, "provenance": provenance, "notes": list(notes)}
    return msgspec.convert({**found, **facts}, DeviceFacts)


def run_self_test(bundle: Path, python: str = sys.executable, runtime: str | None = None) -> dict[str, Any]:
    """`run.py --self-test --json`.

    Args:
        bundle: the bundle's folder.
        python: the interpreter, which has numpy and the bundle's runtime.
        runtime: run only what runs on this one of the bundle's runtimes.

    Returns:
        What the runner printed: `passed`, `runtime`, `host`, and one report a variant.

    Raises:
        BundleError: the self-test failed.
        MissingError: the runtime is not there.
    """
    arguments = [*SELF_TEST, *_only(runtime)]
    return printed_self_test(_run(bundle, arguments, python, SELF_TEST_SECONDS, "self-test"), str(bundle))


def run_bench(
    bundle: Path,
    settings: ProfilePlan,
    variants: int,
    python: str = sys.executable,
    runtime: str | None = None,
    variant: str | None = None,
) -> Profile:
    """`run.py --bench --json`: latency of all variants, interleaved, in a process that does nothing else.

    Args:
        bundle: the bundle's folder.
        settings: how to measure.
        variants: how many there are, for the time limit.
        python: as for `run_self_test`.
        runtime: likewise.
        variant: measure this one alone.

    Raises:
        BundleError: the self-test that precedes measuring failed.
        MissingError: the runtime is not there.
    """
    arguments = [*bench_arguments(settings), *_only(runtime), *(["--variant", variant] if variant else [])]
    printed = _run(bundle, arguments, python, bench_seconds(settings, variants), "benchmark")
    return printed_profile(printed, str(bundle))


def cpu_features() -> tuple[str, ...]:
    """What the kernel says this CPU can do, sorted; empty where it does not say."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return tuple(sorted(match.group(1).split())) if match else ()


def _only(runtime: str | None) -> list[str]:
    return [] if runtime is None else ["--runtime", runtime]


def _run(bundle: Path, arguments: Sequence[str], python: str, seconds: float, what: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="edge-exporter-") as elsewhere:
        try:
            # -B: a __pycache__ written into the bundle would count as an added file.
            done = subprocess.run(
                [python, "-B", str(bundle.absolute() / "run.py"), *arguments],
                cwd=elsewhere,
                env=None if python == sys.executable else clean_environment(),
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
    raise runner_failed(what, str(bundle), done.returncode, words)
