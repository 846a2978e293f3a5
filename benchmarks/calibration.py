"""Calibration against onnxruntime's own calibrators: seconds and peak memory, ResNet-18 at 224x224.

Every run is a process of its own, in turn, one thread each; ratios are taken within one run of this script.

Usage: python benchmarks/calibration.py [--rounds 1] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from corpus.results import put_row  # noqa: E402

BATCH = 8
OURS = {"minmax": False, "histogram": True, "histogram, 2 jobs": True}
THEIRS = ("MinMax", "Percentile", "Entropy")
CASES = (
    *((kind, 128) for kind in (*OURS, *THEIRS)),
    *((kind, count) for kind in ("histogram", "histogram, 2 jobs") for count in (64, 1024)),
)


def main() -> None:
    """Measures everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "MODEL", "IMAGES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, model, count = arguments.child
        print(json.dumps(_child(kind, Path(model), int(count))))
        return
    seen: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        model = _prepared(Path(folder))
        for _ in range(arguments.rounds):
            for case in CASES:
                seen[case].append(_measure(case, model))
    date = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    for (kind, count), runs in seen.items():
        seconds, megabytes = (statistics.median(column) for column in zip(*runs, strict=True))
        row = {"name": _name(kind, count), "date": date, "rounds": arguments.rounds, "images": count}
        write(arguments.output, row | {"seconds": seconds, "megabytes": megabytes})
        print(f"{row['name']}: {seconds:.2f} s, {megabytes:.0f} MB", flush=True)


def _name(kind: str, count: int) -> str:
    return f"{'edge-exporter' if kind in OURS else 'onnxruntime'} {kind}, {count} images"


def write(folder: Path, row: dict[str, Any]) -> None:
    """Puts a row into both files."""
    put_row(
        folder,
        "calibration",
        row,
        [_name(*case) for case in CASES],
        "Calibration of ResNet-18 at 224x224",
        f"Medians over the rounds; batches of {BATCH}; each line is a process of its own, all in turn, and its peak "
        "memory is that of the process, with all processes of several jobs added up.",
        table,
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| observer | rounds | seconds | peak MB |", "|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['name']} | {row['rounds']} | {row['seconds']:.2f} | {row['megabytes']:,.0f} |")
    return "\n".join([*lines, ""])


def _prepared(folder: Path) -> Path:
    import torch
    from resnet18 import resnet18

    from exporter.quantize.prepare import prepare

    program = torch.onnx.export(
        resnet18().eval(),
        (torch.zeros(2, 3, 224, 224),),
        dynamo=True,
        input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    program.save(str(folder / "float.onnx"))
    prepare(folder / "float.onnx", folder / "prepared.onnx", large=False)
    return folder / "prepared.onnx"


def _measure(case: tuple[str, int], model: Path) -> tuple[float, float]:
    command = [sys.executable, __file__, "--child", case[0], str(model), str(case[1])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes


def _batches(count: int) -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    for _ in range(count // BATCH):
        yield {"x": random.standard_normal((BATCH, 3, 224, 224), np.float32)}


def _child(kind: str, model: Path, count: int) -> tuple[float, float]:
    """Seconds of one calibration without imports, and the peak resident MB of the process."""
    run = _ours(kind, model) if kind in OURS else _theirs(kind, model)
    started = time.perf_counter()
    run(count)
    seconds = time.perf_counter() - started
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    # Processes that calibrate have memory of their own, the largest of which counts for each.
    others = 2 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if kind.endswith("jobs") else 0
    return seconds, (int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) + others) / 1024


def _ours(kind: str, model: Path):
    import onnx

    from exporter.quantize.coverage import quantizable_ops
    from exporter.quantize.streaming import observe, tensors_to_observe

    tensors = tensors_to_observe(onnx.load(model, load_external_data=False), quantizable_ops(), symmetric=False)
    wanted = dict.fromkeys(tensors.values())
    jobs = 2 if kind.endswith("jobs") else 1
    return lambda count: observe(
        model, wanted, _batches(count), histogram=OURS[kind], progress=lambda done: None, jobs=jobs
    )


def _theirs(kind: str, model: Path):
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    from exporter.quantize.coverage import quantizable_ops

    def run(count: int) -> None:
        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.left = _batches(count)

            def get_next(self):
                return next(self.left, None)

        calibrator = create_calibrator(
            model,
            sorted(quantizable_ops()),
            augmented_model_path=str(model.with_name("augmented.onnx")),
            calibrate_method=getattr(CalibrationMethod, kind),
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()

    return run


if __name__ == "__main__":
    main()
