"""What merging brings: two fine-tunes against their members, two teachers' student, and four heads on one trunk.

    python benchmarks/merge.py

Builds the plans of the examples (without latency profiles), then times the stack against one of its members, both
float, interleaved in this process. Writes benchmarks/results/merge.md.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "merge.md"
ROUNDS = 1500


def build(plan: Path, output: Path, *sets: str) -> dict[str, Any]:
    """Build a plan's cpu bundle and give its document."""
    command = [sys.executable, "-m", "exporter", "build", str(plan), "--output", str(output), "--json"]
    command += ["--no-profile", "--progress", "none", "--target", "cpu"]
    for one in sets:
        command += ["--set", one]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr)
    (document,) = json.loads(done.stdout)["targets"]
    return document


def float_file(document: dict[str, Any]) -> Path:
    """The float ONNX file of a bundle."""
    return Path(document["bundle"]) / "variants" / "fp32" / "model.onnx"


def ratio(first: Path, second: Path) -> tuple[float, float]:
    """Median latencies in ms of two files, one thread, batch 1, run in turn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(str(path), options) for path in (first, second)]
    with np.load(ROOT / "calibration_data" / "fashion_mnist" / "evaluation.npz") as arrays:
        images = arrays["image"][:64, None].astype(np.float32) / 255
    times: list[list[int]] = [[], []]
    for index in range(ROUNDS):
        feed = {"image": images[index % 64 : index % 64 + 1]}
        for place, session in enumerate(sessions):
            begin = time.perf_counter_ns()
            session.run(None, feed)
            times[place].append(time.perf_counter_ns() - begin)
    one, other = (statistics.median(part[100:]) / 1e6 for part in times)
    return one, other


def main() -> None:
    """Build, compare and write the table."""
    examples = ROOT / "examples"
    lines = ["# Merging", "", f"`python benchmarks/merge.py`, {os.cpu_count()} cores, one thread, one seed.", ""]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        lines += ["| model | accuracy on all ten classes |", "|---|---|"]
        for name in ("merge_two_tasks", "ensemble_to_student"):
            document = build(examples / name / "plan.toml", output)
            lines += [f"| {name}: {entry['name']} | {entry['metric']:.4f} |" for entry in document["history"]]
        stack = build(examples / "stack_heads" / "plan.toml", output)
        alone = output / "alone.toml"
        source = json.dumps(str(examples / "fashion_mnist" / "model.py") + ":small_resnet")
        weights = json.dumps(str(examples / "stack_heads" / "kind.safetensors"))
        data = json.dumps(str(ROOT / "calibration_data" / "fashion_mnist" / "calibration.npz"))
        alone.write_text(
            f"schema = 1\nname = 'alone'\n[model]\nsource = {source}\nweights = {weights}\nargs = {{ width = 8 }}\n"
            "[model.inputs.image]\ndtype = 'float32'\nshape = ['batch', 1, 28, 28]\n"
            "preprocess = { data_layout = 'HW', layout = 'CHW', channel_order = 'GRAY', "
            "scale = 0.00392156862745098 }\n"
            f"[calibration]\ndata = {data}\nignore = ['labels']\n[targets.cpu]\n"
        )
        one = build(alone, output)
        files = float_file(one), float_file(stack)
        sizes = [path.stat().st_size for path in files]
        latencies = ratio(*files)
    lines += ["", "| float, batch 1 | bytes | ms (median, run in turn) |", "|---|---|---|"]
    for name, size, latency in zip(("one model", "four heads on its trunk"), sizes, latencies, strict=True):
        lines.append(f"| {name} | {size:,} | {latency:.3f} |")
    lines.append(f"| ratio | {sizes[1] / sizes[0]:.3f}x | {latencies[1] / latencies[0]:.3f}x |")
    RESULT.write_text("\n".join(lines) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
