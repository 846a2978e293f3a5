"""What merging brings: every method on two fine-tunes of one base, and four heads on one trunk.

    python benchmarks/merge.py

Builds a plan with a variant for each method, and that of `examples/stack_heads`, without latency profiles; then times
the stack against one of its members, both float, interleaved in this process. Writes benchmarks/results/merge.md, in
some minutes on one core.
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
LABELLED = 'labels = "labels"'
METHODS = {
    "average": 'method = "average"',
    "slerp": 'method = "slerp"',
    "greedy-soup": f'method = "greedy-soup"\n{LABELLED}',
    "task-arithmetic": 'method = "task-arithmetic"',
    "ties": 'method = "ties"',
    "dare": 'method = "dare"',
    "fisher": 'method = "fisher"',
    "regmean": 'method = "regmean"',
    "average, 20 searched": f'method = "average"\nsearch = 20\n{LABELLED}',
    "task-arithmetic, 20 searched": f'method = "task-arithmetic"\nsearch = 20\n{LABELLED}',
    "ties, 20 searched": f'method = "ties"\nsearch = 20\n{LABELLED}',
    "regmean, 20 searched": f'method = "regmean"\nsearch = 20\n{LABELLED}',
    "fuse: mean of logits": 'method = "fuse"\nby = "mean"',
    "fuse: mean of probabilities": 'method = "fuse"\nby = "probabilities"',
    "fuse: vote": 'method = "fuse"\nby = "vote"',
    "fuse: max": 'method = "fuse"\nby = "max"',
    "fuse: learned": f'method = "fuse"\nby = "learned"\n{LABELLED}',
    "transfer: mean of teachers": 'method = "transfer"',
    "transfer: surest teacher": 'method = "transfer"\nteaching = { fuse = "confidence", temperature = 2.0 }',
}
"""Values of [merge]."""


def build(plan: Path, output: Path, *sets: str) -> list[dict[str, Any]]:
    """Build a plan's cpu bundles and give their documents."""
    command = [sys.executable, "-m", "exporter", "build", str(plan), "--output", str(output), "--json"]
    command += ["--no-profile", "--progress", "none", "--target", "cpu"]
    for one in sets:
        command += ["--set", one]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)["targets"]


def built(plan: Path, output: Path, *sets: str) -> dict[str, Any]:
    """The cpu bundle of a plan without variants."""
    (document,) = build(plan, output, *sets)
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


def methods(output: Path) -> list[str]:
    """Every method on the two fine-tunes of `examples/merge_two_tasks`, in one plan with a variant for each."""
    two_tasks = ROOT / "examples" / "merge_two_tasks"
    base, tops, rest = (json.dumps(str(two_tasks / f"{name}.safetensors")) for name in ("base", "tops", "rest"))
    text = model_plan("methods", "evaluation")
    for index, merge in enumerate(METHODS.values()):
        start = f"model = {{ weights = {base} }}\n" if "transfer" in merge else ""
        own = "" if '"fuse"' in merge or "transfer" in merge else f"base = {base}\n"
        text += f"[[variants]]\nname = 'method-{index}'\n{start}[variants.merge]\n{merge}\n{own}accept = 'worse'\n"
        text += "".join(f"[[variants.merge.models]]\nweights = {weights}\n" for weights in (tops, rest))
    plan = output / "methods.toml"
    plan.write_text(text)
    documents = build(plan, output, "quantize.enabled=false", "gate.max_relative_loss=1.0")
    lines = ["| model | accuracy on all ten classes | MMAC |", "|---|---|---|"]
    for entry in documents[0]["history"][:-1]:
        lines.append(f"| {entry['name']} | {entry['metric']:.4f} | {entry['cost']['macs'] / 1e6:.2f} |")
    for name, document in zip(METHODS, documents, strict=True):
        entry = document["history"][-1]
        lines.append(f"| {name} | {entry['metric']:.4f} | {entry['cost']['macs'] / 1e6:.2f} |")
    return lines


def stacked(output: Path) -> list[str]:
    """Four heads on one trunk against one of them."""
    alone = output / "alone.toml"
    weights = json.dumps(str(ROOT / "examples" / "stack_heads" / "kind.safetensors"))
    alone.write_text(model_plan("alone", "").replace("args =", f"weights = {weights}\nargs ="))
    files = (
        float_file(built(alone, output)),
        float_file(built(ROOT / "examples" / "stack_heads" / "plan.toml", output)),
    )
    sizes = [path.stat().st_size for path in files]
    latencies = ratio(*files)
    lines = ["| float, batch 1 | bytes | ms (median, run in turn) |", "|---|---|---|"]
    for name, size, latency in zip(("one model", "four heads on its trunk"), sizes, latencies, strict=True):
        lines.append(f"| {name} | {size:,} | {latency:.3f} |")
    return [*lines, f"| ratio | {sizes[1] / sizes[0]:.3f}x | {latencies[1] / latencies[0]:.3f}x |"]


def model_plan(name: str, evaluation: str) -> str:
    """A plan of the small network, without weights."""
    folder = ROOT / "calibration_data" / "fashion_mnist"
    calibration, held_out = (json.dumps(str(folder / f"{part}.npz")) for part in ("calibration", "evaluation"))
    source = json.dumps(str(ROOT / "examples" / "fashion_mnist" / "model.py") + ":small_resnet")
    judged = f"[evaluation]\ndata = {held_out}\nlabels = 'labels'\nbatch_size = 100\n" if evaluation else ""
    return (
        f"schema = 1\nname = '{name}'\n[model]\nsource = {source}\nargs = {{ width = 8 }}\noutputs = ['logits']\n"
        "[model.inputs.image]\ndtype = 'float32'\nshape = ['batch', 1, 28, 28]\n"
        "preprocess = { data_layout = 'HW', layout = 'CHW', channel_order = 'GRAY', scale = 0.00392156862745098 }\n"
        f"[calibration]\ndata = {calibration}\nignore = ['labels']\n{judged}[targets.cpu]\n"
    )


def main() -> None:
    """Build, compare and write the tables."""
    lines = ["# Merging", "", f"`python benchmarks/merge.py`, {os.cpu_count()} cores, one thread, one seed.", ""]
    with tempfile.TemporaryDirectory() as folder:
        lines += methods(Path(folder))
        lines += [
            "",
            "2,000 test images: differences of a point are noise. What is searched or learned goes by the labels of "
            "the 256 calibration images; everything else sees no label.",
            "",
            *stacked(Path(folder)),
        ]
    RESULT.write_text("\n".join(lines) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
