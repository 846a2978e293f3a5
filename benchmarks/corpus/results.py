"""Rows of a benchmark in a JSON file and a Markdown page, with the command, the machine and the versions."""

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
    """Puts a row into NAME.json and NAME.md, in place of the one with its name.

    Args:
        folder: where both files are.
        name: of the files and of the script that makes them.
        row: with `name` and `date`.
        order: names of all rows.
        title: of the page.
        text: what the page says above the table.
        table: the rows as Markdown.
    """
    path = folder / f"{name}.json"
    rows = {one["name"]: one for one in json.loads(path.read_text())["rows"]} if path.is_file() else {}
    rows[row["name"]] = row
    ordered = [rows[one] for one in order if one in rows]
    facts = _about(f"python benchmarks/{name}.py")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "rows": ordered}, indent=1) + "\n")
    told = ", ".join(f"{one} {number}" for one, number in facts["versions"].items())
    first, last = min(one["date"] for one in ordered), max(one["date"] for one in ordered)
    (folder / f"{name}.md").write_text(
        f"# {title}\n\n`{facts['command']}` on {facts['machine']}; {told}; rows made from {first} to {last}.\n\n"
        f"{text}\n\n{table(ordered)}"
    )


def _about(command: str) -> dict[str, Any]:
    """Command, machine and versions, for the head of a table."""
    return {
        "command": command,
        "machine": f"{platform.machine()}, {_cpu()}, {os.cpu_count()} cores, 1 thread used",
        "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    vnni = "with VNNI" if any("vnni" in flag for flag in flags) else "without VNNI"
    return f"{names[0]} {vnni}" if names else platform.processor()
