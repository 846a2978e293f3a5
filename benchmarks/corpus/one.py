"""One row of the table: a case through both tools, in a process of its own.

Usage: python -m corpus.one NAME FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corpus import plain, prepare
from corpus.building import BuildError, build, variant_file, write_plan
from corpus.case import Case
from corpus.racing import median, race, ratio

Row = dict[str, Any]


@dataclass(frozen=True)
class Ours:
    """What the exporter made: the folder of the bundle, and what it says of it."""

    bundle: Path
    told: Row
    failure: str = ""

    @property
    def int8(self) -> Row | None:
        """The default variant where it is int8, else the fastest int8 one that was measured, else the first."""
        found = [one for one in self.told["variants"] if one["precision"] != "float32"]
        ratios = {one["variant"]: one["ratio"] for one in self.told["profile"].get("comparisons", ())}
        chosen = self.told["default"]["variant"]
        order = sorted(found, key=lambda one: (one["name"] != chosen, ratios.get(one["name"], 1e9)))
        return order[0] if order else None


def main(name: str, folder: Path) -> Row:
    """Prepares, builds, quantizes the plain way, evaluates both and races them."""
    begun = time.monotonic()
    case = prepare(name, folder / "weights")
    work = folder / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    ours = _ours(write_plan(case, name, work))
    float_file = variant_file(ours.bundle, ours.told["variants"][0]["name"])
    reference = plain.outputs(float_file, case)
    row: Row = {
        "name": name,
        "task": case.task,
        "metric": case.shown,
        "note": case.note,
        "float": plain.score(case, reference, reference),
        "size_float": float_file.stat().st_size,
        "failure": ours.failure,
        "default": ours.told["default"]["variant"],
        "why": ours.told["default"]["why"],
    }
    files = {"float": float_file}
    try:
        files["plain"] = plain.quantized(float_file, case.calibration, case.batch, work / "plain.onnx")
        row["plain"] = _side(case, files["plain"], reference)
    except Exception as error:
        row["plain"] = {"failure": f"{type(error).__name__}: {error}"[:300]}
        files.pop("plain", None)
    if (variant := ours.int8) is not None:
        files["ours"] = variant_file(ours.bundle, variant["name"])
        row["ours"] = _side(case, files["ours"], reference) | {
            "variant": variant["name"],
            "repairs": variant["repairs"],
            "lints": [lint["kind"] for lint in variant["lints"]],
            "eligible": (variant["coverage"] or {}).get("eligible"),
            "quantized": (variant["coverage"] or {}).get("quantized"),
        }
    _timed(row, files, case)
    row["seconds"] = round(time.monotonic() - begun)
    return row


def _ours(plan: Path) -> Ours:
    try:
        told = build(plan)
        return Ours(Path(told["bundle"]), told)
    except BuildError as error:
        told = build(plan, "--set", "quantize.enabled=false", "--no-profile")
        return Ours(Path(told["bundle"]), told, failure=str(error))


def _side(case: Case, path: Path, reference: plain.Arrays) -> Row:
    found = plain.outputs(path, case)
    signal = sum(float(np.square(array, dtype=np.float64).sum()) for array in reference.values())
    noise = sum(float(np.square(found[name].astype(np.float64) - array).sum()) for name, array in reference.items())
    return {
        "value": plain.score(case, found, reference),
        "sqnr_db": round(10 * float(np.log10(signal / noise)), 1) if noise else None,
        "size": path.stat().st_size,
    }


def _timed(row: Row, files: dict[str, Path], case: Case) -> None:
    feeds = {name: array[:1] for name, array in case.evaluation.items() if name != "labels"}
    sessions = {name: plain.session(path) for name, path in files.items()}
    timings = race({name: lambda one=one: one.run(None, feeds) for name, one in sessions.items()})
    row["float_ms"] = median(timings, "float")
    row["rounds"] = len(timings["float"])
    for name in files:
        if name != "float":
            row[name] |= {"ratio": ratio(timings, name, "float"), "ms": median(timings, name)}
    # The default is what a device runs: the float file where int8 brought nothing.
    if "plain" in files:
        chosen = "ours" if "ours" in files and row["default"] == row["ours"]["variant"] else "float"
        row["speed_kept"] = ratio(timings, "plain", chosen)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
