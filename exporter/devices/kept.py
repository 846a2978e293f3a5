"""Environments that are made once and kept in the store."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time

from exporter.devices.environments import make_environment, python_of
from exporter.errors import MissingError
from exporter.events import Emit, StepFailed, StepFinished, StepStarted
from exporter.store import Store, stage_key
from exporter.target_api import EnvironmentNeed


def kept_python(store: Store, need: EnvironmentNeed, emit: Emit) -> str:
    """The interpreter of an environment that holds what is needed and nothing else, made on first use.

    Another Python, or other requirements, make another environment. Two exporters that want the same one make it
    once, and one that was not finished is never used.

    Raises:
        MissingError: no fitting Python is here, or a package cannot be had.
    """
    base, version = _interpreter(need)
    parts = {"requirements": need.requirements, "python": version, "machine": platform.machine()}
    key = stage_key("environment", 1, parts)
    step, begun = f"environment for {need.name}", time.perf_counter()
    emit(StepStarted(step=step))
    try:
        stored = store.get_or_build("environment", key, lambda folder: make_environment(folder, base, need))
    except Exception:
        emit(StepFailed(step=step))
        raise
    emit(StepFinished(step=step, cached=stored.cached, seconds=time.perf_counter() - begun, key=key))
    return python_of(stored.folder)


def _interpreter(need: EnvironmentNeed) -> tuple[str, str]:
    """(path, version) of a Python that there are wheels for: this one, else the newest other on PATH."""
    here = sys.version_info[:2]
    if need.oldest <= here and (need.newest is None or here <= need.newest):
        return sys.executable, platform.python_version()
    major, newest = need.newest or here
    names = [f"python{major}.{minor}" for minor in range(newest, need.oldest[1] - 1, -1)]
    for name in names:
        path = shutil.which(name)
        # What is on PATH under that name may be a shim that starts nothing.
        if path is not None and (version := _version_of(path)) is not None:
            return path, version
    first, last = (names[index].removeprefix("python") for index in (-1, 0))
    wheels = f"Python {first}" if first == last else f"Python {first} to {last}"
    raise MissingError(
        f"no environment for {need.name} can be made here",
        why=f"it has wheels for {wheels}; this is Python {here[0]}.{here[1]}, and no other was found",
        hint=f"install Python {last}, so that `{names[0]}` starts it",
    )


def _version_of(python: str) -> str | None:
    done = subprocess.run(
        [python, "-I", "-c", "import platform; print(platform.python_version())"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() if done.returncode == 0 else None
