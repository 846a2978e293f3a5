"""An Android device without Python: LiteRT's benchmark_model runs the .tflite files of a bundle there.

It times a model on random inputs. It gives no single samples and compares no outputs, so its numbers are a profile of
their own kind: not tested, and not ranked with what a bundle's own runner measures.
"""

from __future__ import annotations

import re
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from exporter.artifacts import BenchmarkedVariant, BenchmarkProfile, HostState, Manifest, file_digest
from exporter.devices.adb import Adb
from exporter.devices.android import android_host, android_state
from exporter.devices.config import NamedDevice
from exporter.devices.remote import folder_of
from exporter.devices.running import bench_seconds
from exporter.errors import InputError, MissingError, StageError, shorten
from exporter.events import Emit, Note, StepFinished
from exporter.plan_types import ProfilePlan

TFLITE = ".tflite"
PUSH_SECONDS = 1800.0
LOOK_SECONDS = 1.0
LOCK = (
    'mkdir -p "$1/blobs" "$1/tmp" && command -v flock >/dev/null && exec 9>"$1/lock" && '
    "if flock -n 9 9>&9; then echo held; cat; else echo busy; fi"
)
"""Held by a shell that ends with its stdin, and so with this process."""
NUMBER = r"([\d.e+]+)"
STEADY = re.compile(
    rf"count=(\d+) first={NUMBER} curr={NUMBER} min={NUMBER} max={NUMBER} avg={NUMBER} std={NUMBER}"
    rf"(?: p5={NUMBER} median={NUMBER} p95={NUMBER})?"
)
TIMINGS = re.compile(rf"Inference timings in us: Init: {NUMBER}, First inference: {NUMBER}, Warmup \(avg\): {NUMBER}")
MEMORY = re.compile(rf"[Mm]emory footprint.*\(MB\): init={NUMBER} overall={NUMBER}")
HOTTER, FASTER = 10.0, 0.05
"""Degrees Celsius, and share of the clock, whose change while measuring is flagged; as the runner does."""


class BenchmarkDevice:
    """A device at `adb:SERIAL` with a `benchmark_binary`."""

    def __init__(self, named: NamedDevice, binary: Path) -> None:
        self.name = named.name
        self._named = named
        self._binary = binary
        self._adb = Adb(named)
        self._folder = folder_of(named.plan)

    @contextmanager
    def ready(self, bundle: Path, manifest: Manifest, emit: Emit) -> Iterator[Timed]:
        """The binary and the models on the device, for this exporter alone; cleaned up at the end.

        Raises:
            InputError: the binary is not there, or the bundle has nothing that it runs.
            MissingError: the device cannot be used.
            StageError: a file could not be sent.
        """
        models = {one.name: bundle / one.main for one in manifest.variants if one.main.endswith(TFLITE)}
        if not models:
            hint = "build the bundle with --target mobile"
            raise InputError("the benchmark binary runs .tflite files, and the bundle has none", hint=hint)
        if not self._binary.is_file():
            hint = "LiteRT's page on performance measurement links to a build for android_aarch64"
            raise InputError("the benchmark binary does not exist", where=str(self._binary), hint=hint)
        serial = self._adb.ready()
        with self._held(serial, emit):
            try:
                paths = {name: self._send(serial, file, emit) for name, file in models.items()}
                binary = self._send(serial, self._binary, emit)
                yield Timed(self._adb, serial, self.name, binary, file_digest(self._binary), paths, manifest)
            finally:
                self._clean(serial, list(models.values()))

    @contextmanager
    def _held(self, serial: str, emit: Emit) -> Iterator[None]:
        deadline, told = time.monotonic() + self._named.plan.wait_seconds, False
        while True:
            command = self._adb.shell(serial, ["sh", "-c", LOCK, "sh", self._folder])
            # Without a line to read, the shell failed: its stderr says why.
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            ) as holder:
                assert holder.stdin is not None
                assert holder.stdout is not None
                assert holder.stderr is not None
                try:
                    said = holder.stdout.readline().strip()
                    if said == b"held":
                        yield
                        return
                    if said != b"busy":
                        words = holder.stderr.read().decode(errors="replace")
                        raise StageError(
                            f"{self.name} cannot be prepared",
                            where=self._folder,
                            why=shorten(words, 600) or "its shell has no flock",
                        )
                finally:
                    holder.stdin.close()
            if time.monotonic() >= deadline:
                hint = "run the same command again later"
                raise MissingError(f"{self.name} is in use: another exporter measures on this device", hint=hint)
            if not told:
                emit(Note(text=f"{self.name} is in use by another exporter: waiting until it is free"))
            told = True
            time.sleep(LOOK_SECONDS)

    def _send(self, serial: str, file: Path, emit: Emit) -> str:
        """The path of a file on the device, where it is sent to unless it is there whole."""
        digest, begun = file_digest(file), time.perf_counter()
        path, partial = f"{self._folder}/blobs/{digest}", f"{self._folder}/tmp/{uuid.uuid4().hex}"
        sent = self._digest(serial, path) != digest
        if sent:
            self._must(["adb", "-s", serial, "push", str(file.absolute()), partial], f"send {file.name}")
            if self._digest(serial, partial) != digest:
                raise StageError(f"{file.name} arrived damaged on {self.name}", hint="run the same command again")
            self._must(self._adb.shell(serial, ["chmod", "755", partial]), f"make {file.name} runnable")
            self._must(self._adb.shell(serial, ["mv", partial, path]), f"keep {file.name}")
        label, seconds = f"{self.name}: send {file.parent.name}/{file.name}", time.perf_counter() - begun
        emit(StepFinished(step=label, cached=not sent, seconds=seconds))
        return path

    def _digest(self, serial: str, path: str) -> str:
        done = subprocess.run(
            self._adb.shell(serial, ["sha256sum", path]), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        return done.stdout.decode(errors="replace").lstrip("\\").partition(" ")[0]

    def _must(self, command: Sequence[str], what: str) -> None:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PUSH_SECONDS, check=False
        )
        if done.returncode == 0:
            return
        words = (done.stderr or done.stdout).decode(errors="replace")
        full = "No space left" in words
        raise StageError(
            f"no space left on {self.name}" if full else f"could not {what} on {self.name}",
            why=shorten(words, 600),
            hint="free some space there, or choose another `folder` in devices.toml" if full else "see `adb devices`",
        )

    def _clean(self, serial: str, models: Sequence[Path]) -> None:
        folder, keep = self._folder, self._named.plan.keep
        gone = [f"{folder}/tmp"]
        gone += [f"{folder}/blobs/{file_digest(file)}" for file in models] if keep == "environment" else []
        gone += [f"{folder}/blobs"] if keep == "nothing" else []
        subprocess.run(
            self._adb.shell(serial, ["rm", "-rf", *gone]), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )


class Timed:
    """A device that holds the binary and the models."""

    def __init__(
        self, adb: Adb, serial: str, name: str, binary: str, digest: str, paths: dict[str, str], manifest: Manifest
    ) -> None:
        self._adb = adb
        self._serial = serial
        self._name = name
        self._binary = binary
        self._digest = digest
        self._paths = paths
        self._manifest = manifest

    def profile(self, settings: ProfilePlan) -> BenchmarkProfile:
        """Runs the binary once for each model.

        Raises:
            StageError: it failed, or printed no timings.
        """
        host, before = android_host(self._shell), android_state(self._shell)
        variants = tuple(self._time(name, path, settings) for name, path in self._paths.items())
        after = android_state(self._shell)
        left = [one.name for one in self._manifest.variants if one.name not in self._paths]
        flags = [f"not measured: {name} is no .tflite file" for name in left]
        return BenchmarkProfile(
            bundle_digest=self._manifest.digest,
            target=self._manifest.target,
            device=self._name,
            host=host,
            binary_sha256=self._digest,
            threads=settings.threads,
            affinity=tuple(sorted(set(settings.affinity))),
            before=before,
            after=after,
            variants=variants,
            flags=(*flags, *changed(before, after)),
        )

    def _shell(self, words: Sequence[str]) -> list[str]:
        return self._adb.shell(self._serial, words)

    def _time(self, variant: str, path: str, settings: ProfilePlan) -> BenchmarkedVariant:
        mask = format(sum(1 << cpu for cpu in set(settings.affinity)), "x")
        words = [
            *(["taskset", mask] if settings.affinity else []),
            self._binary,
            f"--graph={path}",
            f"--num_threads={settings.threads}",
            f"--num_runs={settings.min_samples}",
            f"--min_secs={settings.min_seconds}",
            f"--max_secs={settings.max_seconds}",
            f"--warmup_min_secs={settings.warmup_seconds}",
        ]
        limit = bench_seconds(settings, 1)
        try:
            done = subprocess.run(
                self._shell(words), stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired as error:
            what = f"the benchmark of {variant} on {self._name} did not end within {limit:.0f} s"
            raise StageError(what, hint="is the device busy?") from error
        text = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
        if done.returncode != 0:
            what = f"the benchmark of {variant} on {self._name} ended with exit code {done.returncode}"
            raise StageError(what, where=path, why=shorten(text[-1500:], 600))
        return parsed(variant, text, self._name)


def parsed(variant: str, text: str, device: str) -> BenchmarkedVariant:
    """What benchmark_model printed; its times are microseconds.

    Raises:
        StageError: it holds no timings.
    """
    steady, timings, memory = list(STEADY.finditer(text)), TIMINGS.search(text), MEMORY.search(text)
    if not steady or timings is None:
        raise StageError(
            f"the benchmark of {variant} on {device} printed no timings",
            why=shorten(text[-1500:], 600),
            hint="is `benchmark_binary` LiteRT's benchmark_model?",
        )
    last = steady[-1]  # The first is of the warm-up.
    return BenchmarkedVariant(
        variant=variant,
        count=int(last[1]),
        minimum_us=float(last[4]),
        maximum_us=float(last[5]),
        mean_us=float(last[6]),
        std_us=float(last[7]),
        median_us=float(last[9]) if last[9] else None,
        p95_us=float(last[10]) if last[10] else None,
        init_us=float(timings[1]),
        first_us=float(timings[2]),
        warmup_us=float(timings[3]),
        memory_mb=float(memory[2]) if memory else None,
    )


def changed(before: HostState, after: HostState) -> list[str]:
    """What of the device's state changed while measuring."""
    found = []
    heat = before.temperature_c, after.temperature_c
    if heat[0] is not None and heat[1] is not None and heat[1] - heat[0] >= HOTTER:
        found.append(f"CPU grew warmer: {heat[0]:.0f} to {heat[1]:.0f} C")
    if before.frequency_mhz and after.frequency_mhz:
        clocks = max(before.frequency_mhz), max(after.frequency_mhz)
        if abs(clocks[1] / clocks[0] - 1) > FASTER:
            found.append(f"CPU frequency changed: {clocks[0]:.0f} to {clocks[1]:.0f} MHz")
    if before.governor != after.governor:
        found.append(f"governor changed: {before.governor} to {after.governor}")
    return found
