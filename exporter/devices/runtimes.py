"""The runtimes that a bundle runs on, each in an environment of its own that is made once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.artifacts import Manifest
from exporter.devices.kept import kept_python
from exporter.devices.local import LocalBundle, LocalDevice
from exporter.errors import InputError, closest
from exporter.events import Emit
from exporter.store import Store
from exporter.target_api import EnvironmentNeed

RUNNER_PYTHON = (3, 9)
"""The oldest Python that a bundle's runner runs on."""
SHORT = {"litert": "ai-edge-litert"}
"""What people call a runtime, where that is not its distribution."""


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


def runtime_named(manifest: Manifest, name: str) -> EnvironmentNeed:
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
    return EnvironmentNeed(
        name=distribution,
        requirements=requirements[distribution],
        oldest=_release(need.python) if distribution == need.name else RUNNER_PYTHON,
        newest=_release(newest) if newest else None,
    )


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
