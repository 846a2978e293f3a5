"""QEMU's user-mode emulator: runs Python of an arm64 userland, and counts what one inference executes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from exporter.devices.arm64 import WHEELS
from exporter.devices.running import SELF_TEST, printed_self_test, runner_failed
from exporter.errors import MissingError, StageError, shorten

GUEST = Path(__file__).parent / "guest"
STEADY = 0.02
"""Relative range of the counts of one variant's inferences above which they are flagged."""
SECONDS = 3600
"""A guest runs a hundred to a thousand times slower than a device."""


class _Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tag: int
    others: int
    counts: dict[str, int]


class _Counted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    batch: int
    pairs: dict[str, list[tuple[int, int]]]


class Guest:
    """A running emulated device: a root folder, and the core that executes what lies in it."""

    def __init__(self, folder: Path, prefix: Path, python: str, cpu: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self._python = python
        self._cpu = cpu

    def self_test(self, bundle: Path) -> dict[str, Any]:
        """See `exporter.devices.run_self_test`; here it runs on the device."""
        arguments = [str(bundle.absolute() / "run.py"), *SELF_TEST]
        return printed_self_test(self.run(arguments, "self-test", str(bundle)), str(bundle))

    def count(
        self, bundle: Path, variants: Mapping[str, str]
    ) -> tuple[dict[str, dict[str, int]], int, tuple[str, ...]]:
        """Runs each variant on the bundle's first sample, with the plugin attached.

        Args:
            bundle: its folder.
            variants: model files by variant.

        Returns:
            By variant, instructions of one inference by class: the fewest of several, less what marking costs. Then
            the batch size, and what a reader must know before trusting the counts.
        """
        self._build_plugin()
        models = [f"{name}={model}" for name, model in variants.items()]
        arguments = [str(GUEST / "count.py"), str(bundle.absolute()), *models]
        printed = self.run(arguments, "counted run", str(bundle), plugin="./instructions.so,out=counts.jsonl")
        counted = msgspec.json.decode(printed, type=_Counted)
        with (self._folder / "counts.jsonl").open("rb") as lines:
            shots = [msgspec.json.decode(line, type=_Snapshot) for line in lines]
        spans = _spans({shot.tag: shot for shot in shots}, counted.pairs)
        marking = _least(spans[""])
        counts = {
            name: {one: count - marking[one] for one, count in _least(spans[name]).items()} for name in variants
        }
        return counts, counted.batch, tuple(flag for name in variants for flag in _flags(name, spans[name]))

    def run(self, arguments: Sequence[str], what: str, where: str, *, plugin: str | None = None) -> bytes:
        """Runs Python on the device and returns what it printed.

        Raises:
            BundleError, MissingError, InputError: as the bundle's runner says by its exit code.
            StageError: it ended otherwise.
        """
        command = ["qemu-aarch64", "-cpu", self._cpu, "-L", str(self._prefix)]
        command += ["-plugin", plugin] if plugin else []
        # The environment is the device's, not that of this process: PYTHONPATH or LD_PRELOAD would mislead the guest.
        environment = {
            "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": f"/{WHEELS}", "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip
        settings = [flag for name, value in environment.items() for flag in ("-E", f"{name}={value}")]
        python = str(self._prefix / "usr/bin" / self._python)
        try:
            done = subprocess.run(
                [*command, *settings, python, "-B", *arguments],
                cwd=self._folder,
                env={"PATH": os.environ.get("PATH", os.defpath)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StageError(
                f"the bundle's {what} did not end within {SECONDS} s under emulation", where=where
            ) from error
        if done.returncode == 0:
            return done.stdout
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise runner_failed(f"{what} on an emulated {self._cpu}", where, done.returncode, words)

    def _build_plugin(self) -> None:
        command = ["gcc", "-O2", "-shared", "-fPIC", "-o", "instructions.so", str(GUEST / "instructions.c")]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MissingError(
                "the emulator's plugin cannot be compiled",
                where=str(GUEST / "instructions.c"),
                why=shorten(done.stderr, 600),
                hint="apt-get install gcc libc6-dev",
            )


def emulator() -> str:
    """Name and version of the emulator that is installed here."""
    said = subprocess.run(["qemu-aarch64", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\S+)", said)
    return f"qemu-aarch64 {found[1] if found else 'of unknown version'}"


def _spans(
    shots: Mapping[int, _Snapshot], pairs: Mapping[str, Sequence[tuple[int, int]]]
) -> dict[str, list[tuple[dict[str, int], int]]]:
    """For each variant and inference: instructions of the thread that called it by class, and those of all others."""
    return {
        name: [
            (
                {kind: shots[last].counts[kind] - count for kind, count in shots[first].counts.items()},
                shots[last].others - shots[first].others,
            )
            for first, last in tags
        ]
        for name, tags in pairs.items()
    }


def _least(spans: Sequence[tuple[dict[str, int], int]]) -> dict[str, int]:
    """The inference with the fewest instructions: waiting for a lock or growing the heap only ever adds some."""
    return min((counts for counts, _ in spans), key=lambda counts: counts["total"])


def _flags(variant: str, spans: Sequence[tuple[dict[str, int], int]]) -> list[str]:
    totals, others = [counts["total"] for counts, _ in spans], min(beside for _, beside in spans)
    flags = [f"other threads ran {others} instructions beside an inference ({variant})"] if others else []
    if max(totals) > (1 + STEADY) * min(totals):
        flags.append(f"counts differ from one inference to the next: {min(totals)} to {max(totals)} ({variant})")
    return flags
