"""Real models in int8: plain onnxruntime with its defaults, and edge-exporter, both against float.

Each model is a row of `results/accuracy.json` and `results/accuracy.md`; a run replaces the rows that it makes.
Packages that bring the models are installed into an environment under --folder.

Usage: python benchmarks/accuracy.py [--only NAME ...] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from corpus import CASES  # noqa: E402
from corpus.packages import environment  # noqa: E402
from corpus.results import put_row  # noqa: E402
from corpus.table import table  # noqa: E402


def main() -> None:
    """Makes the rows that were asked for, one process each, and writes the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", action="append", choices=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "edge-exporter-benchmarks")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    python = environment("corpus", arguments.folder)
    for name in arguments.only or CASES:
        row = _row(python, name, arguments.folder)
        write(arguments.output, row)
        print(f"{name}: {row.get('error') or 'done in {} s'.format(row['seconds'])}", flush=True)


def _row(python: Path, name: str, folder: Path) -> dict[str, Any]:
    variables = {
        "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent))),
        "OMP_NUM_THREADS": "1",
        "EDGE_EXPORTER_CACHE": str(folder / "store"),
    }
    command = [str(python), "-m", "corpus.one", name, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["no message"]
        row: dict[str, Any] = {"name": name, "error": lines[-1][:600]}
    else:
        row = json.loads(ended.stdout.splitlines()[-1])
    return row | {"date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"}


def write(folder: Path, row: dict[str, Any]) -> None:
    """Puts a row into both files."""
    put_row(
        folder,
        "accuracy",
        row,
        CASES,
        "Real models in int8",
        "Plain is onnxruntime's `quantize_static` with one scale for each tensor and min-max; ours is the default "
        "plan with the gate at 1 %. dB is SQNR against the float file. Latency is a ratio to float, the median of "
        "rounds in which float, plain and ours run in turn.",
        table,
    )


if __name__ == "__main__":
    main()
