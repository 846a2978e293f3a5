"""Virtual environments with nothing but what is asked for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from exporter.errors import MissingError, shorten
from exporter.target_api import EnvironmentNeed

INSTALL_SECONDS = 1800
GROUPS = os.name == "posix"
MISLEADING = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV")
"""Variables through which one environment sees into another."""
ELSEWHERE = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER")
"""Variables that make pip install into another place than the environment that it is called for."""
NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(\[[^]]*\])?\s*(?:[<>=!~]|$)")
"""A requirement that names a package, whatever its version."""
PROOF = "import sys; from importlib.metadata import version; print([version(name) for name in sys.argv[1:]])"


def make_environment(folder: Path, base: str, need: EnvironmentNeed, *, kept: bool = True) -> None:
    """Makes a virtual environment and installs what is needed into it.

    Args:
        folder: where it goes; it may be moved afterwards.
        base: the interpreter that it is made of.
        need: what for.
        kept: it is used many times, so that all modules are compiled once.

    Raises:
        MissingError: the environment or a package cannot be had.
    """
    # To put another pip into it takes longer than most of what is installed; this one's works for the same Python.
    pip = [sys.executable, "-P", "-m", "pip", "--python", python_of(folder)]
    venv = ["-I", "-m", "venv", "--without-pip", str(folder)]
    if base != sys.executable or find_spec("pip") is None:
        pip = [python_of(folder), "-m", "pip"]
        venv.remove("--without-pip")
    _call([base, *venv], "make a virtual environment", "is Python's venv module installed?")
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-input"]
    if not kept:
        install.append("--no-compile")
    # A complete list is taken at its word: what it leaves out is known not to be used.
    alone = ["--no-deps", "--only-binary=:all:"] if need.complete else []
    what = f"{need.name} with what it needs" if need.complete else ", ".join(need.requirements)
    _call(
        [*pip, *install, *alone, *need.requirements],
        f"install {what}",
        "is a package index reachable from here?",
    )
    names = [found[1] for one in need.requirements if (found := NAMED.match(one))]
    _call(
        [python_of(folder), "-I", "-c", PROOF, *names],
        f"find {', '.join(names)} in the environment that pip installed into",
        "does pip's configuration (`pip config list`) send packages elsewhere, as `target` and `prefix` do?",
    )


def python_of(folder: Path) -> str:
    """The interpreter of an environment."""
    return str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python")


def clean_environment() -> dict[str, str]:
    """This process's variables, without those that would lead another interpreter to this one's packages."""
    return {name: value for name, value in os.environ.items() if name not in (*MISLEADING, *ELSEWHERE)}


def _call(command: list[str], purpose: str, hint: str) -> None:
    # In a group of its own, because pip starts another pip, which is to end with it.
    with subprocess.Popen(
        command, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, process_group=0 if GROUPS else None,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=INSTALL_SECONDS)
        except subprocess.TimeoutExpired as error:
            _end(process)
            raise MissingError(f"could not {purpose} within {INSTALL_SECONDS} s", hint=hint) from error
        except BaseException:
            _end(process)
            raise
    if process.returncode != 0:
        words = (err or out).decode(errors="replace").strip()
        # pip tells at last what it came to, after the warnings of each try.
        last = words.splitlines()[-1] if words else f"exit code {process.returncode}"
        raise MissingError(f"could not {purpose}", why=shorten(last, 600), hint=hint)


def _end(process: subprocess.Popen[bytes]) -> None:
    if GROUPS:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
