"""Functions that targets running onnxruntime share."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import RuntimeNeed, Tolerance
from exporter.masks import rounding_of, unmasked
from exporter.target_api import ConvertRequest, Payload, VariantFile
from targets import runner_files

if TYPE_CHECKING:
    from exporter.target_api import Arrays

MODEL = "model.onnx"
RUNTIME = Path(__file__).parent / "runner" / "onnxruntime_runtime.py"
FLOAT_RELATIVE = {2: 4e-3, 4: 1e-4, 8: 1e-4}
"""Floats on another CPU differ by rounding and by the order of sums: far below this share of the largest value.

By the bytes of the output's type: a half has a thousandth for its last digit.
"""


def payload(
    minimum: str,
    *,
    machine: str | None = None,
    glibc: str | None = None,
    others: Sequence[tuple[RuntimeNeed, Path]] = (),
) -> Payload:
    """The runner for onnxruntime and the requirements that bring it.

    Args:
        minimum: oldest onnxruntime.
        machine: see `RuntimeNeed`.
        glibc: see `RuntimeNeed`.
        others: further runtimes that some variants run on, and their modules.
    """
    more = {f"runtime_{runtime.name}.py": module for runtime, module in others}
    return Payload(
        files={**runner_files(RUNTIME), **more},
        others=tuple(runtime for runtime, _ in others),
        runtime=RuntimeNeed(
            name="onnxruntime",
            minimum=minimum,
            requirements=(f"onnxruntime>={minimum},<2", "numpy>=1.21,<3"),
            machine=machine,
            glibc=glibc,
        ),
    )


def float_precision(model: Path) -> tuple[str, str]:
    """Name and precision of a float model by the type that most of its weights have, as in (`fp32`, `float32`)."""
    import onnx

    sizes = {onnx.TensorProto.FLOAT: 0, onnx.TensorProto.FLOAT16: 0, onnx.TensorProto.DOUBLE: 0}
    for tensor in onnx.load(model, load_external_data=False).graph.initializer:
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += math.prod(tensor.dims)
    widest = max(sizes, key=lambda kind: sizes[kind])
    return {
        onnx.TensorProto.FLOAT: ("fp32", "float32"),
        onnx.TensorProto.FLOAT16: ("fp16", "float16"),
        onnx.TensorProto.DOUBLE: ("fp64", "float64"),
    }[widest]


def float_tolerance(expected: Arrays, *, relative: float | None = None) -> dict[str, Tolerance]:
    """Self-test tolerance of float outputs: a small share of the largest value; integers must be equal.

    Args:
        expected: values by output.
        relative: that share, where an output's type does not tell with which precision it was computed.
    """
    import numpy as np

    tolerances = {}
    for name, values in expected.items():
        if not np.issubdtype(values.dtype, np.floating):
            tolerances[name] = Tolerance(atol=0.0)
            continue
        real = np.abs(unmasked(values))
        largest = float(real.max()) if real.size else 0.0
        share = relative or FLOAT_RELATIVE[values.dtype.itemsize]
        tolerances[name] = Tolerance(atol=share * max(largest, 1e-6), rtol=rounding_of(values))
    return tolerances


def copied(request: ConvertRequest, folder: Path) -> list[VariantFile]:
    """Copies the float ONNX file and the int8 ones, each into a folder of its own."""
    name, precision = float_precision(request.float_model)
    variants = [place(request.float_model, folder, VariantFile(
        name=name, main=f"{name}/{MODEL}", runtime="onnxruntime", precision=precision,
    ))]  # fmt: skip
    variants += [place(made.path, folder, VariantFile(
        name=made.name, main=f"{made.name}/{MODEL}", runtime="onnxruntime", precision="int8",
        scheme=made.scheme, coverage=made.coverage, requires=made.requires, specialises=made.specialises,
    )) for made in request.int8]  # fmt: skip
    return variants


def place(model: Path, folder: Path, variant: VariantFile) -> VariantFile:
    """Copies a model, with its external data file when it has one, to where the variant wants it."""
    destination = folder / variant.main
    destination.parent.mkdir(parents=True)
    for file in model.parent.iterdir():
        if file.name == model.name or file.name.startswith(model.name + "."):
            shutil.copyfile(file, destination.parent / file.name.replace(model.name, MODEL, 1))
    return variant
