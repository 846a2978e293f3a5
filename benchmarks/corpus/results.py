"""Rows of a benchmark in a JSON file and a Markdown page: a table for each machine, with command and versions."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]
VERSIONS = ("torch", "onnx", "onnxruntime", "numpy")


def put_row(
    folder: Path, name: str, row: Row, order: Iterable[str], title: str, text: str, table: Callable[[list[Row]], str]
) -> None:
    """Puts a row into NAME.json and NAME.md, in place of the one that has its name and was made on such a machine.

    Args:
        folder: where both files are.
        name: of the files and of the script that makes them.
        row: with `name` and `date`.
        order: names of all rows.
        title: of the page.
        text: what the page says above the tables.
        table: the rows of one machine as Markdown.
    """
    path = folder / f"{name}.json"
    places = {place: index for index, place in enumerate(order)}
    kept = json.loads(path.read_text())["rows"] if path.is_file() else []
    row = {**row, "machine": _machine(), "versions": _versions()}
    rows = [one for one in kept if (one["name"], one["machine"]) != (row["name"], row["machine"])]
    rows = sorted((one for one in [*rows, row] if one["name"] in places), key=lambda one: places[one["name"]])
    command = f"python benchmarks/{name}.py"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
    parts = [f"# {title}\n\n`{command}`. {text}\n"]
    for machine in sorted({one["machine"] for one in rows}):
        own = [one for one in rows if one["machine"] == machine]
        parts.append(f"## {machine}\n\n{_made(own)}\n\n{table(own)}")
    (folder / f"{name}.md").write_text("\n".join(parts))


def _made(rows: list[Row]) -> str:
    """When rows were made, and with which versions."""
    first, last = min(one["date"] for one in rows), max(one["date"] for one in rows)
    texts = {", ".join(f"{one} {number}" for one, number in row["versions"].items()) for row in rows}
    return f"Rows made from {first} to {last} with {'; or '.join(sorted(texts))}."


def _machine() -> str:
    return f"{platform.machine()}, {_cpu()}, {os.cpu_count()} cores, 1 thread used"


def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS} | {"python": platform.python_version()}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    vnni = "with VNNI" if any("vnni" in flag for flag in flags) else "without VNNI"
    return f"{names[0]} {vnni}" if names else platform.processor()
