"""Guest instructions of a small CNN on emulated ARM devices, against the table beside this file.

usage: python benchmarks/arm_instructions.py [--update]

Instructions are not latency: a table of them finds a runtime, a target or a scheme that began to execute more code,
and says nothing about what that costs on a board.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

TABLE = Path(__file__).with_suffix(".json")
DEVICES = ("pi4", "pi5")
ALLOWED = 0.02
"""Relative difference of the total that the gate allows."""


def write_cnn(path: Path) -> None:
    """Writes a CNN with plain, depthwise and pointwise convolutions: x [batch, 3, 32, 32] -> y [batch, 10]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    shapes = {
        "w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 1, 3, 3), "w3": (32, 16, 1, 1), "b3": (32,),
        "w4": (64, 32, 3, 3), "b4": (64,), "w5": (10, 64), "b5": (10,),
    }  # fmt: skip
    weights = [
        # Rounded to few bits, so that the file is the same wherever it is written.
        numpy_helper.from_array(np.round(random.uniform(-1, 1, shape) * 64).astype(np.float32) / 128, name)
        for name, shape in shapes.items()
    ]
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], name="stem", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c1"], ["r1"], name="relu1"),
        node("Conv", ["r1", "w2"], ["c2"], name="depthwise", pads=[1] * 4, group=16),
        node("Relu", ["c2"], ["r2"], name="relu2"),
        node("Conv", ["r2", "w3", "b3"], ["c3"], name="pointwise"),
        node("Relu", ["c3"], ["r3"], name="relu3"),
        node("Conv", ["r3", "w4", "b4"], ["c4"], name="wide", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c4"], ["r4"], name="relu4"),
        node("GlobalAveragePool", ["r4"], ["p"], name="pool"),
        node("Flatten", ["p"], ["f"], name="flatten"),
        node("Gemm", ["f", "w5", "b5"], ["y"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small_cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


def write_data(path: Path) -> None:
    """Writes calibration data for the CNN."""
    np.savez(path, x=np.random.default_rng(1).normal(size=(32, 3, 32, 32)).astype(np.float32))


def key(runtime: Any, model_digest: str) -> str:
    """What a row of the table is for: the runtime's version, and the float model that all variants were made from."""
    return f"{runtime.name} {runtime.version}, model {model_digest[:16]}"


def differences(counted: dict[str, dict[str, int]], known: dict[str, dict[str, int]]) -> list[str]:
    """One line for each variant and device whose total is not within what is allowed of the table's."""
    lines = []
    for device, totals in counted.items():
        for variant in sorted({*totals, *known.get(device, {})}):
            now, before = totals.get(variant), known.get(device, {}).get(variant)
            if now is None or before is None:
                lines.append(f"{device}, {variant}: {now} where the table has {before}")
            elif abs(now / before - 1) > ALLOWED:
                lines.append(f"{device}, {variant}: {now} instructions where the table has {before}")
    return lines


def measure(folder: Path) -> tuple[str, dict[str, dict[str, int]]]:
    """Builds the bundle and counts it on every device: the row's key, and totals by device and variant."""
    from exporter.bundle import read_manifest
    from exporter.cli import run
    from exporter.devices import EmulatedDevice
    from exporter.store import Store, default_root

    write_cnn(folder / "cnn.onnx")
    write_data(folder / "calib.npz")
    model, data, output = (str(folder / name) for name in ("cnn.onnx", "calib.npz", "bundles"))
    options = ["--target", "arm", "--set", "targets.arm.fp16=true", "--output", output]
    if run(["build", model, "--calib", data, *options]) != 0:
        sys.exit("the bundle could not be built")
    (bundle,) = Path(output).iterdir()
    manifest = read_manifest(bundle)
    counted, row = {}, ""
    for name in DEVICES:
        profile = EmulatedDevice(name, f"emulated:{name}", Store(default_root())).profile(bundle, manifest)
        counted[name] = {one.variant: one.guest_instructions["total"] for one in profile.variants}
        row = key(profile.runtime, manifest.model.digest)
    return row, counted


def main(*, update: bool) -> int:
    """Prints what is counted beside what the table says; returns the exit code."""
    table = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        row, counted = measure(Path(folder))
    known = table.get(row, {})
    print(row)
    for device, totals in counted.items():
        for variant, total in totals.items():
            print(f"  {device}  {variant:<14} {total:>10,}  table {known.get(device, {}).get(variant, '-')}")
    if update:
        TABLE.write_text(json.dumps({**table, row: counted}, indent=2) + "\n")
        return 0
    found = differences(counted, known)
    print("\n".join(found) or "all within the table's totals")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(update="--update" in sys.argv[1:]))
