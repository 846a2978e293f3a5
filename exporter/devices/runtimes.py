"""The runtimes that a bundle runs on, each in an environment of its own that is made once and kept."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from exporter.artifacts import Manifest
from exporter.devices.environments import make_environment, python_of
from exporter.devices.local import LocalBundle, LocalDevice
from exporter.errors import InputError, MissingError, closest
from exporter.events import Emit, StepFailed, StepFinished, StepStarted
from exporter.store import Store, stage_key

RUNNER_PYTHON = (3, 9)
"""The oldest Python that a bundle's runner runs on."""
SHORT = {"litert": "ai-edge-litert"}
"""What people call a runtime, where that is not its distribution."""


class BundleRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """One of the runtimes that a bundle runs on.

    Attributes:
        name: its distribution.
        requirements: for pip.
        oldest: Python that the runner, or the runtime's wheels, need.
        newest: newest Python that wheels exist for; None where not known.
    """

    name: str
    requirements: tuple[str, ...]
    oldest: tuple[int, int]
    newest: tuple[int, int] | None


class RuntimeDevice(LocalDevice):
    """This machine, with one of the bundle's runtimes in an environment of its own.

    Args:
        runtime: what the user calls it.
        store: keeps the environment.
    """

    def __init__(self, runtime: str, store: Store) -> None:
        self._runtime = runtime
        self._store = store

    @contextmanager
    def prepared(self, bundle: Path, manifest: Manifest, emit: Emit) -> Iterator[LocalBundle]:
        """The bundle where it stands, and an environment that is made when it is not there yet.

        Raises:
            InputError: the bundle runs on no such runtime.
            MissingError: the environment cannot be made here.
        """
        runtime = runtime_named(manifest, self._runtime)
        yield LocalBundle(bundle, manifest, kept_python(self._store, runtime, emit), runtime.name)


def runtime_named(manifest: Manifest, name: str) -> BundleRuntime:
    """The runtime of a bundle that a user's word stands for.

    Raises:
        InputError: the bundle runs on no such runtime.
    """
    need, distribution = manifest.runtime, SHORT.get(name, name)
    requirements = {need.name: need.requirements, **need.alternatives}
    requirements |= {other.name: other.requirements for other in manifest.other_runtimes}
    if distribution not in requirements:
        short = {known: word for word, known in SHORT.items()}
        words = [short.get(known, known) for known in requirements]
        raise InputError(
            f"the bundle does not run on '{name}'{closest(name, words)}",
            where=f"{manifest.name} for {manifest.target}",
            hint=f"it runs on: {', '.join(words)}",
        )
    newest = need.newest_python.get(distribution)
    return BundleRuntime(
        name=distribution,
        requirements=requirements[distribution],
        oldest=_release(need.python) if distribution == need.name else RUNNER_PYTHON,
        newest=_release(newest) if newest else None,
    )


def kept_python(store: Store, runtime: BundleRuntime, emit: Emit) -> str:
    """The interpreter of an environment that holds one runtime and numpy, made on first use and kept in the store.

    Another Python, or other requirements, make another environment. Two exporters that want the same one make it
    once, and one that was not finished is never used.

    Raises:
        MissingError: no fitting Python is here, or a package cannot be had.
    """
    base, version = _interpreter(runtime)
    parts = {"requirements": runtime.requirements, "python": version, "machine": platform.machine()}
    key = stage_key("environment", 1, parts)
    step, begun = f"environment for {runtime.name}", time.perf_counter()
    emit(StepStarted(step=step))
    try:
        stored = store.get_or_build(
            "environment", key, lambda folder: make_environment(folder, base, runtime.requirements)
        )
    except Exception:
        emit(StepFailed(step=step))
        raise
    emit(StepFinished(step=step, cached=stored.cached, seconds=time.perf_counter() - begun, key=key))
    return python_of(stored.folder)


def _interpreter(runtime: BundleRuntime) -> tuple[str, str]:
    """(path, version) of a Python that the runtime has wheels for: this one, else the newest other on PATH."""
    here = sys.version_info[:2]
    if runtime.oldest <= here and (runtime.newest is None or here <= runtime.newest):
        return sys.executable, platform.python_version()
    major, newest = runtime.newest or here
    names = [f"python{major}.{minor}" for minor in range(newest, runtime.oldest[1] - 1, -1)]
    for name in names:
        path = shutil.which(name)
        # What is on PATH under that name may be a shim that starts nothing.
        if path is not None and (version := _version_of(path)) is not None:
            return path, version
    first, last = (names[index].removeprefix("python") for index in (-1, 0))
    raise MissingError(
        f"no environment for {runtime.name} can be made here",
        why=f"it has wheels for Python {first} to {last}; this is Python {here[0]}.{here[1]}, and no other was found",
        hint=f"install Python {last}, so that `{names[0]}` starts it",
    )


def _version_of(python: str) -> str | None:
    done = subprocess.run(
        [python, "-I", "-c", "import platform; print(platform.python_version())"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() if done.returncode == 0 else None


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
