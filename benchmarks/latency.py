"""Our default variant against other ways to int8: onnxruntime, NNCF with OpenVINO, and LiteRT; one thread.

Ours is what a plan with both runtimes of the cpu target chooses.

Random weights and inputs with fixed seeds: nothing is said of accuracy. All forms of a network run in turn in one
process. OpenVINO and LiteRT are installed into environments under --folder.

Usage: python benchmarks/latency.py [--only NAME ...] [--folder FOLDER]
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

import numpy as np
import tomli_w

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from corpus.building import BuildError, build, variant_file  # noqa: E402
from corpus.packages import environment  # noqa: E402
from corpus.results import put_row  # noqa: E402

IMAGE, TOKENS = (3, 224, 224), (128, 384)
NETS = {
    "resnet18": (HERE / "resnet18.py", IMAGE),
    "mobilenet_v2": (HERE / "corpus" / "big_nets.py", IMAGE),
    "resnet50": (HERE / "corpus" / "big_nets.py", IMAGE),
    "encoder": (HERE / "corpus" / "big_nets.py", TOKENS),
}
FORMS = ("float", "ours", "onnxruntime", "nncf+openvino", "litert")
SAMPLES = 16
GOAL = 1.05


def main() -> None:
    """Races the networks that were asked for and writes the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", action="append", choices=list(NETS), metavar="NAME", help=", ".join(NETS))
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "edge-exporter-benchmarks")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each race")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["EDGE_EXPORTER_CACHE"] = str(arguments.folder / "store")
    os.environ["PYTHONPATH"] = os.pathsep.join((str(HERE), str(HERE.parent)))
    for name in arguments.only or NETS:
        try:
            row = _row(name, arguments.folder, arguments.seconds)
        except (BuildError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", None) or str(error)
            row = {"error": told.strip().splitlines()[-1][:600]}
        row |= {"name": name, "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"}
        write(arguments.output, row)
        print(f"{name}: {row.get('error') or row['ms']}", flush=True)


def _row(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    work = folder / "latency" / name
    work.mkdir(parents=True, exist_ok=True)
    source, shape = NETS[name]
    data = work / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((SAMPLES, *shape), np.float32))
    python = environment("openvino", folder)
    told = build(_plan(name, source, data, work, "cpu"), "--set", "profile.max_seconds=8", python=python)
    bundle, default = Path(told["bundle"]), told["default"]
    job: dict[str, Any] = {
        "data": str(data),
        "folder": str(work),
        "float": str(variant_file(bundle, told["variants"][0]["name"])),
        "ours": str(variant_file(bundle, default["variant"])),
        "ours_runtime": next(one["runtime"] for one in told["variants"] if one["name"] == default["variant"]),
        "transformer": name == "encoder",
        "seconds": seconds,
    }
    job |= _litert(name, source, data, work, folder)
    (work / "job.json").write_text(json.dumps(job))
    command = [str(python), "-m", "corpus.rivals", str(work / "job.json")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return row | {"default": default["variant"], "why": default["why"]}


def _litert(name: str, source: Path, data: Path, work: Path, folder: Path) -> dict[str, str]:
    """The int8 .tflite that the `mobile` target makes, with the converter's own quantizer."""
    python = environment("litert", folder)
    try:
        plan = _plan(name, source, data, work, "mobile")
        told = build(plan, "--no-profile", python=python)
        variant = next(one["name"] for one in told["variants"] if one["precision"] == "int8")
        path = variant_file(Path(told["bundle"]), variant)
    except (BuildError, StopIteration) as error:
        return {"litert_failure": str(error) or "no int8 variant was made"}
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    return {"litert": str(path), "litert_packages": str(site)}


def _plan(name: str, source: Path, data: Path, work: Path, target: str) -> Path:
    plan: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "model": {"source": f"{source}:{name}"},
        "calibration": {"data": str(data), "batch_size": 4},
        "evaluation": {"data": str(data), "batch_size": 4},
        "gate": {"min_sqnr_db": 0.0},  # Random weights: latency alone is of interest.
        "targets": {target: {"runtimes": ["onnxruntime", "openvino"]} if target == "cpu" else {}},
    }
    if target == "mobile":
        plan["export"] = {"batch": 1}
    path = work / f"{target}.toml"
    path.write_text(tomli_w.dumps(plan))
    return path


def write(folder: Path, row: dict[str, Any]) -> None:
    """Puts a row into both files."""
    put_row(
        folder,
        "latency",
        row,
        NETS,
        "Latency of int8 forms",
        "Medians in ms, batch 1, all forms of a network in turn in one process. The ratio is the median over the "
        f"rounds of ours by the fastest other; the goal is at most {GOAL}.",
        table,
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, with what could not be made below it."""
    header = ("network", *FORMS, "our default", "ours / best other", "goal")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    notes = []
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['name']} |" + " - |" * (len(header) - 2) + " failed |")
            notes.append(f"- {row['name']}: {row['error']}")
            continue
        times = [f"{row['ms'][form]:.2f}" if form in row["ms"] else "-" for form in FORMS]
        met = "met" if row["ratio"] <= GOAL else "missed"
        cells = [row["name"], *times, row["default"], f"{row['ratio']:.2f} ({row['best']})", met]
        lines.append("| " + " | ".join(cells) + " |")
        notes += [f"- {row['name']}: no {form}: {why}" for form, why in row["failures"].items()]
    return "\n".join([*lines, "", *notes, ""])


if __name__ == "__main__":
    main()
