"""A runtime that is not installed, and the command that brings it."""

from __future__ import annotations

import sys
from pathlib import Path


class RuntimeMissing(Exception):
    """A runtime does not work here; `command` brings it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.command = install_command(name)


def install_command(name: str) -> str:
    """The pip command that brings a runtime: the bundle's requirements file where there is one."""
    path = Path(__file__).resolve().parent / f"requirements-{name}.txt"
    wanted = f'-r "{path}"' if path.is_file() else name
    return f"{Path(sys.executable).name or 'python'} -m pip install {wanted}"
