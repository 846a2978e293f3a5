"""A fresh environment made from a bundle's own requirements."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from exporter.artifacts import RuntimeNeed
from exporter.errors import MissingError, shorten

INSTALL_SECONDS = 1800


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
    requirements = list(
        dict.fromkeys(
            _pin(line, runtime) if minimum else line for runtime in runtimes for line in runtime.requirements
        )
    )
    with TemporaryDirectory(prefix="edge-exporter-env-") as folder:
        python = str(Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        _call([sys.executable, "-m", "venv", folder], "make a virtual environment")
        _call(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
            f"install {', '.join(requirements)}",
        )
        yield python


def _pin(requirement: str, runtime: RuntimeNeed) -> str:
    name = re.split(r"[<>=!~ ]", requirement, maxsplit=1)[0]
    return f"{name}=={runtime.minimum}.*" if name == runtime.name else requirement


def _call(command: list[str], purpose: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=INSTALL_SECONDS, check=False
    )
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace")
        raise MissingError(
            f"could not {purpose}", why=shorten(words[-1500:], 600), hint="is a package index reachable from here?"
        )
