"""numpy, the runtime, and the CPUs and threads that they get."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

from .bundle import HERE, Bundle, other_runtimes, release
from .faults import BAD_INPUT, BROKEN, MISSING, Fault, brief


class Engine(NamedTuple):
    """numpy and the runtimes' modules, and how models are opened in them.

    `runtime` runs every variant but those that name one of `others`.
    """

    numpy: Any
    runtime: Any
    threads: int
    affinity: tuple[int, ...] | None
    others: Mapping[str, Any] = {}

    def runtime_of(self, variant: Mapping[str, Any]) -> Any:
        """The module that runs a variant."""
        return self.others.get(variant["runtime"], self.runtime)

    def open(self, bundle: Bundle, name: str) -> Any:
        """Opens a variant; a model that the runtime refuses is a broken bundle."""
        model, runtime = bundle.variants[name]["main"], self.runtime_of(bundle.variants[name])
        try:
            return runtime.open_session(str(HERE / model), self.threads, self.affinity)
        except runtime.RuntimeMissing as error:
            raise Fault(MISSING, str(error), error.command) from error
        except Exception as error:  # the runtime's own exception types are unknown here
            raise Fault(BROKEN, f"{model} cannot be opened: {brief(error)}") from error

    def facts(self, variants: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Name, version and provider of the runtime, numpy's version, and versions of others that variants use."""
        others = {}
        used = {variant["runtime"] for variant in variants}
        for name, runtime in self.others.items():
            with suppress(runtime.RuntimeMissing):
                if name in used:
                    others[name] = runtime.version()
        return {
            "others": others,
            "name": self.runtime.NAME,
            "version": self.runtime.version(),
            "provider": self.runtime.provider(),
            "numpy": str(self.numpy.__version__),
        }


def located(bundle: Bundle, wanted: str | None) -> Bundle:
    """The bundle, with the runtime that works here where some variant is not right on every one of them."""
    if not any(variant.get("not_on") for variant in bundle.variants.values()):
        return bundle
    runtime = _runtime(bundle, wanted)
    try:
        return bundle._replace(here=runtime.NAME)
    except runtime.RuntimeMissing:  # `start` says what to do
        return bundle


def start(bundle: Bundle, threads: int, affinity: tuple[int, ...] | None, wanted: str | None = None) -> Engine:
    """Imports numpy and the runtime; where one of several was asked for, it must be the one that works here.

    Raises:
        Fault: one is missing or too old; the hint is the command that brings it.
    """
    needed = bundle.manifest["runtime"]
    requirements = HERE / f"requirements-{needed['name']}.txt"
    command = f'python -m pip install -r "{requirements}"'
    try:
        import numpy
    except ImportError as error:
        raise Fault(MISSING, f"numpy cannot be imported: {brief(error)}{_old_system(needed)}", command) from error
    runtime = _runtime(bundle, wanted)
    try:
        version = runtime.version()
    except runtime.RuntimeMissing as error:
        raise Fault(MISSING, f"{error}{_old_system(needed)}", error.command) from error
    if wanted not in (None, runtime.NAME):
        message = f"{runtime.NAME} {version} is what works here, and {wanted} was asked for"
        raise Fault(MISSING, message, f'python -m pip install -r "{HERE / f"requirements-{wanted}.txt"}"')
    if needed["name"] == runtime.NAME and release(version) < release(needed["minimum"]):
        message = f"{needed['name']} {version} is older than {needed['minimum']}, which this bundle needs"
        raise Fault(MISSING, message, command.replace("install", "install --upgrade"))
    others = {name: _module(f"runtime_{name}") for name in other_runtimes(bundle)}
    return Engine(numpy, runtime, threads, affinity, others)


def delegation_of(session: Any) -> dict[str, Any] | None:
    """What a delegate inside the runtime computes; None where the runtime has none."""
    return session.delegation() if hasattr(session, "delegation") else None


def _runtime(bundle: Bundle, wanted: str | None) -> Any:
    """The module of the main runtime, which knows several and takes the one that was asked for."""
    runtime = _module(bundle.module)
    if wanted is not None and hasattr(runtime, "ask_for"):
        runtime.ask_for(wanted)
    return runtime


def _module(name: str) -> Any:
    try:
        return import_module(f"{__name__.rpartition('.')[0]}.{name}")
    except (OSError, SyntaxError, ImportError, ValueError) as error:
        raise Fault(BROKEN, f"{name}.py cannot be loaded: {brief(error)}") from error


def _old_system(needed: dict[str, Any]) -> str:
    """Says so where wheels cannot be installed, or do not load, because the C library is too old for them."""
    wanted, (kind, found) = needed.get("glibc"), platform.libc_ver()
    if wanted is None or kind != "glibc" or release(found) >= release(wanted):
        return ""
    return f"; the newest wheels of {needed['name']} need glibc {wanted}, and this system has {found}"


def limit_threads(threads: int) -> None:
    """Bounds the thread pools that numpy and the runtime start of their own; only before they are imported."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)


def pin(cpus: Sequence[int] | None) -> None:
    """Keeps this process, and the threads and processes it starts, on some CPUs."""
    if cpus is None:
        return
    wanted = f"--affinity {','.join(map(str, cpus))}"
    if not hasattr(os, "sched_setaffinity"):
        raise Fault(BAD_INPUT, f"{wanted}: this system cannot pin a process to CPUs", "leave --affinity out")
    allowed = os.sched_getaffinity(0)
    # The kernel drops CPUs that it does not have and pins to the rest without a word.
    if not set(cpus) <= allowed:
        raise Fault(BAD_INPUT, f"{wanted}: the CPUs here are {','.join(map(str, sorted(allowed)))}")
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise Fault(BAD_INPUT, f"{wanted}: {brief(error)}") from error
