"""The end of a failed command: a user's error printed as it is, our bug with a log that can be sent."""

from __future__ import annotations

import json
import platform
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from exporter.errors import ExporterError, PartialError, RegressionError, printable
from exporter.store import default_root

DISTRIBUTIONS = ("edge-exporter", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "click", "msgspec")


def report(error: Exception, *, as_json: bool) -> int:
    """Prints an error on stderr, with `as_json` also as the one document on stdout, and returns the exit code."""
    if isinstance(error, ExporterError):
        told = error
        code = error.exit_code
    else:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        told = ExporterError(
            f"a bug in edge-exporter: {words}", hint=f"please report it with the log: {_write_log(error)}"
        )
        code = 1
    first, *rest = told.lines()
    sys.stderr.write(printable("\n".join([f"error: {first}", *rest])) + "\n")
    # Both come after their document, which has the failures in it.
    if as_json and not isinstance(error, (PartialError, RegressionError)):
        sys.stdout.write(json.dumps(error_document(told, code), indent=2, ensure_ascii=False) + "\n")
    return code


def error_document(error: ExporterError, code: int) -> dict[str, Any]:
    """An error as JSON."""
    facts = {"what": error.what, "where": error.where, "why": error.why, "hint": error.hint}
    return {"schema": 1, "exit_code": code, "error": facts}


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
