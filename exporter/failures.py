"""The end of a failed command: a user's error printed as it is, our bug with a log that can be sent."""

from __future__ import annotations

import platform
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from exporter.errors import ExporterError
from exporter.store import default_root

DISTRIBUTIONS = ("edge-exporter", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "click", "msgspec")


def report(error: Exception) -> int:
    """Prints an error on stderr and returns the exit code."""
    if isinstance(error, ExporterError):
        first, *rest = error.lines()
        sys.stderr.write("\n".join([f"error: {first}", *rest]) + "\n")
        return error.exit_code
    log = _write_log(error)
    words = " ".join(f"{type(error).__name__}: {error}".split())
    sys.stderr.write(f"error: a bug in edge-exporter: {words}\n  hint:  please report it with the log: {log}\n")
    return 1


def _write_log(error: Exception) -> Path | str:
    lines = [
        f"python {platform.python_version()} on {platform.platform()}",
        *(f"{name} {_version(name)}" for name in DISTRIBUTIONS),
        "arguments: " + " ".join(sys.argv[1:]),
        "",
        "".join(traceback.format_exception(error)),
    ]
    text = "\n".join(lines)
    try:
        folder = default_root() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        path.write_text(text, encoding="utf-8")
    except OSError:
        return f"(no log could be written)\n{text}"
    return path


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
