"""An arm64 userland, unpacked and not installed: Debian's Python, and the real aarch64 wheels of a runtime."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from exporter.artifacts import RuntimeNeed
from exporter.errors import MissingError, shorten
from exporter.store import Store, stage_key

PACKAGES = ("python3", "libstdc++6")
WHEELS = "opt/wheels"
"""Where the wheels are unpacked; the emulated Python gets it as PYTHONPATH."""
TOOLS = {"qemu-aarch64": "qemu-user", "gcc": "gcc", "apt-get": "apt", "dpkg-deb": "dpkg"}
"""Programs by the Debian package that brings them."""
INSTALL_SECONDS = 1800
APT_CONF = """\
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Dir::State "{apt}";
Dir::State::status "{apt}/status";
Dir::State::lists "{apt}/lists";
Dir::Cache "{apt}";
Dir::Cache::archives "{apt}/archives";
Dir::Etc::preferencesparts "/dev/null";
"""
"""A package state of its own: the machine's sources and keys are used, its installed packages are not touched."""


def check_tools() -> None:
    """Raises MissingError when a program that emulating needs is not installed, with the command that brings all."""
    missing = {package: tool for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if missing:
        raise MissingError(
            f"emulated devices need {', '.join(missing.values())}",
            why="not on PATH; emulating works on Debian 12 and systems with its packages",
            hint=f"apt-get install {' '.join(missing)}",
        )


def userland(store: Store, runtime: RuntimeNeed) -> Path:
    """The folder of an arm64 userland with a bundle's requirements; made on first use, then kept in the store.

    The versions are those installed here where they meet the requirements, so that what is compared with this
    machine is the architecture and nothing else.

    Raises:
        MissingError: a program, Debian's arm64 packages or an aarch64 wheel cannot be had.
    """
    check_tools()
    pins = pinned(runtime.requirements)
    key = stage_key("arm64-userland", 1, {"packages": PACKAGES, "wheels": pins})

    def build(folder: Path) -> None:
        unpack_packages(folder, PACKAGES)
        unpack_wheels(folder, pins)
        _compile(folder)

    return store.get_or_build("arm64-userland", key, build).folder


def guest_python(root: Path) -> Path:
    """The userland's interpreter, as in `usr/bin/python3.11`."""
    found = [path for path in (root / "usr/bin").glob("python3.*") if re.fullmatch(r"python3\.\d+", path.name)]
    if len(found) != 1:
        raise MissingError(
            "the arm64 packages brought no Python", where=str(root), hint="`edge-exporter cache clear`"
        )
    return found[0]


def pinned(requirements: Sequence[str]) -> list[str]:
    """Requirements with the version that is installed here, where there is one that meets them."""
    from packaging.requirements import Requirement

    pins = []
    for line in requirements:
        requirement = Requirement(line)
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = ""
        meets = installed and requirement.specifier.contains(installed, prereleases=True)
        pins.append(f"{requirement.name}=={installed}" if meets else line)
    return pins


def unpack_packages(root: Path, packages: Sequence[str]) -> None:
    """Downloads Debian's arm64 packages, and what they depend on, and unpacks them into a folder.

    Raises:
        MissingError: they cannot be had here.
    """
    apt = root / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    conf = apt / "apt.conf"
    conf.write_text(APT_CONF.format(apt=apt), encoding="utf-8")
    environment = {**os.environ, "APT_CONFIG": str(conf), "LC_ALL": "C"}
    _call(["apt-get", "-qq", "update"], "read the lists of arm64 packages", environment)
    # The lists of an unreachable archive are no error to apt-get update; the missing packages then are.
    _call(
        ["apt-get", "-qq", "--yes", "--download-only", "install", *packages],
        f"fetch {', '.join(packages)} for arm64",
        environment,
    )
    for package in sorted((apt / "archives").glob("*.deb")):
        _call(["dpkg-deb", "--extract", str(package), str(root)], f"unpack {package.name}", environment)
    shutil.rmtree(apt)
    for unused in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var"):
        shutil.rmtree(root / unused, ignore_errors=True)


def unpack_wheels(root: Path, pins: Sequence[str]) -> None:
    """Downloads aarch64 wheels for the folder's own Python and C library, and unpacks them.

    Raises:
        MissingError: they cannot be had here.
    """
    python = guest_python(root).name.removeprefix("python")
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(_glibc_minor(root), 16, -1)]
    _call(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check",
            "--no-input", "--root-user-action=ignore", "--target", str(root / WHEELS), "--only-binary=:all:",
            "--implementation=cp", f"--python-version={python}", *platforms, "--platform=manylinux2014_aarch64",
            *pins,
        ],
        f"fetch aarch64 wheels of {', '.join(pins)}",
        dict(os.environ),
    )  # fmt: skip


def _compile(root: Path) -> None:
    """Compiles modules to bytecode here, where this Python writes what the userland's reads: emulated, it is slow."""
    if guest_python(root).name != f"python{sys.version_info.major}.{sys.version_info.minor}":
        return
    unused = r"/(tests?|idlelib|lib2to3|quantization|transformers|tools)/"
    folders = [str(root / "usr/lib" / guest_python(root).name), str(root / WHEELS)]
    # Hashes instead of times, and unchecked: the folder is moved, and changes no more. Its exit code tells of
    # modules that do not compile, which are those that nobody imports.
    command = [sys.executable, "-m", "compileall", "-q", "-x", unused, "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*command, *folders], stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _glibc_minor(root: Path) -> int:
    """The 36 of glibc 2.36, out of the library's own banner."""
    library = (root / "lib/aarch64-linux-gnu/libc.so.6").read_bytes()
    found = re.search(rb"GNU C Library \([^)]*\) stable release version 2\.(\d+)", library)
    if found is None:
        raise MissingError("the arm64 C library does not say its version", where=str(root))
    return int(found[1])


def _call(command: list[str], purpose: str, environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MissingError(f"could not {purpose} within {INSTALL_SECONDS} s") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace")
        raise MissingError(
            f"could not {purpose}",
            why=shorten(words[-1500:], 600),
            hint="are the package index and Debian's archive reachable from here?",
        )
