"""A case through edge-exporter's command line, as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from corpus.case import Case


class BuildError(Exception):
    """The command's own message."""


def write_plan(case: Case, name: str, folder: Path) -> Path:
    """Plan and data files of a case; nothing in it is about quantization but the gate's rule."""
    np.savez(folder / "calibration.npz", **case.calibration)
    np.savez(folder / "evaluation.npz", **case.evaluation)
    model: dict[str, Any] = {"source": case.source}
    if case.weights is not None:
        model["weights"] = str(case.weights)
    if case.shapes:
        model["inputs"] = {input_: {"shape": shape} for input_, shape in case.shapes.items()}
    evaluation: dict[str, Any] = {"data": "evaluation.npz", "batch_size": case.batch}
    if case.labelled:
        evaluation |= {"labels": "labels", "metric": case.metric}
    plan = {
        "schema": 1,
        "name": name,
        "model": model,
        "calibration": {"data": "calibration.npz", "batch_size": case.batch},
        "evaluation": evaluation,
        "gate": {"max_relative_loss": 0.01} if case.labelled else {"min_top1_agreement": 0.99},
        "targets": {"cpu": {}},
    }
    path = folder / "plan.toml"
    path.write_text(tomli_w.dumps(plan))
    return path


def build(plan: Path, *options: str, python: Path | None = None) -> dict[str, Any]:
    """What `build --json` says of the plan's target; `python` runs it, by default this process's.

    Raises:
        BuildError: the build failed.
    """
    command = [
        str(python or sys.executable), "-m", "exporter", "build", str(plan), "--output", str(plan.parent / "bundles"),
        "--progress", "none", "--json", *options,
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if ended.returncode:
        raise BuildError(f"exit {ended.returncode}: {_message(ended.stdout, ended.stderr)}")
    found: dict[str, Any] = json.loads(ended.stdout)["targets"][0]
    return found


def variant_file(bundle: Path, name: str) -> Path:
    """Main file of a bundle's variant."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    return bundle / next(one["main"] for one in manifest["variants"] if one["name"] == name)


def _message(stdout: str, stderr: str) -> str:
    try:
        error = json.loads(stdout)["error"]
        return "; ".join(str(part) for part in error.values() if part) if isinstance(error, dict) else str(error)
    except (ValueError, KeyError):
        return " ".join(stderr.split())[-600:]
