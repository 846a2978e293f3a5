"""A fresh environment made from a bundle's own requirements, which is thrown away."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from exporter.artifacts import RuntimeNeed
from exporter.devices.environments import make_environment, python_of
from exporter.target_api import EnvironmentNeed


@contextmanager
def isolated_python(runtimes: Sequence[RuntimeNeed], *, minimum: bool) -> Iterator[str]:
    """Makes a virtual environment with nothing but the bundle's requirements, and removes it afterwards.

    Args:
        runtimes: requirements of the bundle.
        minimum: install the oldest runtime that the bundle claims to run on instead of the newest.

    Yields:
        The environment's interpreter.

    Raises:
        MissingError: the environment or a package cannot be had.
    """
    requirements = tuple(
        dict.fromkeys(
            _pin(line, runtime) if minimum else line for runtime in runtimes for line in runtime.requirements
        )
    )
    with TemporaryDirectory(prefix="edge-exporter-env-") as folder:
        need = EnvironmentNeed(name=runtimes[0].name, requirements=requirements)
        make_environment(Path(folder), sys.executable, need, kept=False)
        yield python_of(Path(folder))


def _pin(requirement: str, runtime: RuntimeNeed) -> str:
    name = re.split(r"[<>=!~ ]", requirement, maxsplit=1)[0]
    return f"{name}=={runtime.minimum}.*" if name == runtime.name else requirement
