"""torch program -> float .tflite -> quantized .tflite, as a process: `python -m targets._litert_worker JOB`.

The libraries that do it are heavy, slow to import and noisy, and a crash in them must not end a build.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.artifacts import canonical
from targets._litert_jobs import FAILED, RUN, STATIC, ConversionJob, Failure, Program, VariantJob, read_job
from targets._tflite import operators as operators_of
from targets._tflite import read_model
from targets._tflite_anchor import anchored, remove_anchor
from targets._tflite_biases import fit_biases
from targets._tflite_kept import Ranges, masked_tensors
from targets._tflite_names import give_names, placeholder
from targets._tflite_ranges import observe
from targets._tflite_schemes import read_ranges, reasons_for
from targets._tflite_signature import mend_signature
from targets.runner.tflite_runtime import open_session

SIGNATURE = "serving_default"


def samples_of(path: str) -> Iterator[dict[str, NDArray[np.generic]]]:
    """Calibration samples of an npz file, one after the other."""
    with np.load(path, allow_pickle=False) as archive:
        names: dict[str, dict[str, str]] = {}
        for key in archive.files:
            sample, _, name = key.partition("/")
            names.setdefault(sample, {})[name] = key
        for keys in names.values():
            yield {name: archive[key] for name, key in keys.items()}


@contextmanager
def stage(folder: Path, telling: int, what: str) -> Iterator[None]:
    """Tells the parent what begins, and leaves it a library's exception as a file; the traceback is for the log."""
    os.write(telling, f"{what}\n".encode())
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        failure = Failure(stage=what, kind=type(error).__name__, message=str(error)[:20_000])
        (folder / FAILED).write_bytes(canonical(failure))
        sys.exit(1)


def convert_float(job: Program, path: Path) -> None:
    """Writes the float file, with the user's names.

    torch takes identifiers only as names of arguments, so that the converter sees made-up ones.
    """
    import torch

    program = torch.export.load(job.file)
    litert_torch = library("litert_torch")

    class Named(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.training = False

        def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self.inner(*(tensors[placeholder("input", index)] for index in range(len(job.inputs))))
            return {placeholder("output", index): tensor for index, tensor in enumerate(found)}

    module: Any = Named(program.module(check_guards=False))
    example = {
        placeholder("input", index): torch.zeros(shape, dtype=getattr(torch, dtype))
        for index, (_, dtype, shape) in enumerate(job.inputs)
    }
    if job.channels_last:
        module, example = channels_last(module, example, job)
    if job.pixels:
        module, example = from_pixels(module, example, job)
    litert_torch.convert(module, sample_kwargs=example).export(str(path))
    give_names(path, [name for name, _, _ in job.inputs], job.outputs)


def channels_last(module: Any, example: dict[str, Any], job: Program) -> tuple[Any, dict[str, Any]]:
    """The module with NHWC inputs, and an example of them: the converter folds the transposition where it can."""
    import torch

    moved = [
        placeholder("input", index) for index, (name, _, _) in enumerate(job.inputs) if name in job.channels_last
    ]

    class ChannelsLast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module
            self.training = False

        def forward(self, **tensors: torch.Tensor) -> Any:
            return self.inner(**{k: v.permute(0, 3, 1, 2) if k in moved else v for k, v in tensors.items()})

    shown = {k: v.permute(0, 2, 3, 1).contiguous() if k in moved else v for k, v in example.items()}
    return ChannelsLast(), shown


def from_pixels(module: Any, example: dict[str, Any], job: Program) -> tuple[Any, dict[str, Any]]:
    """The module with inputs that are bytes, and an example of them; the values are computed in float."""
    import torch

    names = {name: placeholder("input", index) for index, (name, _, _) in enumerate(job.inputs)}
    given = {names[one.name]: one for one in job.pixels}

    class Pixels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module
            for name, one in given.items():
                # A constant that is as wide as the channels stays what it is; they are last here.
                self.register_buffer(f"{name}_factor", torch.tensor(one.factor))
                self.register_buffer(f"{name}_offset", torch.tensor(one.offset))
            self.training = False

        def forward(self, **tensors: torch.Tensor) -> Any:
            for name, one in given.items():
                factor, offset = getattr(self, f"{name}_factor"), getattr(self, f"{name}_offset")
                values = tensors[name].to(torch.float32) * factor + offset
                tensors[name] = values.permute(0, 3, 1, 2) if one.layout == "CHW" else values
            return self.inner(**tensors)

    shown = dict(example)
    for name, one in given.items():
        pixels = shown[name].permute(0, 2, 3, 1).contiguous() if one.layout == "CHW" else shown[name]
        shown[name] = pixels.to(torch.uint8)
    return Pixels(), shown


def calibrate(job: ConversionJob) -> None:
    """Writes the ranges of all tensors."""
    samples = samples_of(str(job.calibration))
    found = observe(Path(job.float_file), samples, average=job.observer == "moving-average")
    if not found:
        raise ValueError("there are no samples to calibrate with")
    Path(job.ranges).write_text(json.dumps(found), encoding="utf-8")


def as_arrays(ranges: Ranges) -> dict[str, Any]:
    """Ranges as the quantizer takes them."""
    return {
        tensor: {side: np.asarray(value, np.float32) for side, value in one.items()} for tensor, one in ranges.items()
    }


def quantize(float_file: Path, variant: VariantJob, ranges: Ranges) -> None:
    """Writes one quantized file; `ranges` are there where it is a static one."""
    qtyping, quantizer = library("ai_edge_quantizer.qtyping"), library("ai_edge_quantizer.quantizer")
    recipe, recipe_manager = library("ai_edge_quantizer.recipe"), library("ai_edge_quantizer.recipe_manager")
    operators = qtyping.TFLOperationName
    rules = recipe_manager.RecipeManager()
    if variant.precision == "float16":
        rules.add_quantization_config(
            ".*",
            operators.ALL_SUPPORTED,
            qtyping.OpQuantizationConfig(
                weight_tensor_config=qtyping.TensorQuantizationConfig(
                    num_bits=16, dtype=qtyping.TensorDataType.FLOAT
                ),
                compute_precision=qtyping.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            ),
            algorithm_key="float_casting",
        )
    else:
        recipes = {
            "int8": recipe.static_wi8_ai8,
            "int16x8": recipe.static_wi8_ai16,
            "dynamic-int8": recipe.dynamic_wi8_afp32,
        }
        rules.load_quantization_recipe(recipes[variant.precision]())
    kinds = list(variant.left.types)
    if variant.precision in STATIC and not variant.integer_io:
        kinds += ["INPUT", "OUTPUT"]
    known = {operator.value for operator in operators}
    for kind in kinds:
        if kind in known:  # What the quantizer does not know stays float without being told.
            rules.add_quantization_config(".*", operators(kind), algorithm_key="no_quantize")
    reasons = reasons_for(float_file, variant.left, ranges)
    for one in operators_of(float_file):
        if one.name in reasons and one.kind in known:
            # The quantizer finds an operator by the names of its results, each followed by a semicolon; and the
            # graph's output, which it takes for an operator too, by those of all outputs.
            rules.add_quantization_config(
                f"^{re.escape(one.name)};", operators(one.kind), algorithm_key="no_quantize"
            )
    model = read_model(float_file)
    if variant.precision == "int8":
        fit_biases(model, ranges)
    worker = quantizer.Quantizer(anchored(model), rules.get_quantization_recipe())
    result = worker.quantize(
        as_arrays(ranges) if ranges else None, enable_progress_bar=False, enable_progress_report=False
    )
    result.export_model(variant.file)
    remove_anchor(Path(variant.file))
    real = variant.precision in STATIC and not variant.integer_io
    mend_signature(float_file, Path(variant.file), real=real, masked=masked_tensors(float_file, ranges))


def try_out(file: str, calibration: str | None) -> None:
    """Runs a file once: one that the runtime crashes on must end this process, and not the build.

    Args:
        file: it.
        calibration: samples, of which the first is taken; zeros where there are none.
    """
    session = open_session(file, 1)
    sample: dict[str, NDArray[np.generic]] | None = None
    if calibration is not None:
        sample = next(samples_of(calibration), None)
    session.run(
        sample or {name: np.zeros([int(one) for one in shape], dtype) for name, dtype, shape in session.inputs()}
    )


def library(name: str) -> Any:
    """One of the converter's or quantizer's modules: untyped, and imported when it is needed."""
    return importlib.import_module(name)


def main() -> None:
    """Runs one job."""
    job_file = Path(sys.argv[1])
    begin = partial(stage, job_file.parent, int(sys.argv[2]))
    job = read_job(job_file.read_bytes())
    float_file = Path(job.float_file)
    if job.program is not None:
        with begin("convert"):
            convert_float(job.program, float_file)
        with begin(f"{RUN} float32"):
            try_out(job.float_file, job.calibration)
    if job.calibration is not None:
        with begin("calibrate"):
            calibrate(job)
    ranges = read_ranges(Path(job.ranges))
    for variant in job.variants:
        with begin(f"quantize to {variant.precision}"):
            quantize(float_file, variant, ranges if variant.precision in STATIC else {})
        with begin(f"{RUN} {variant.precision}"):
            try_out(variant.file, job.calibration)


if __name__ == "__main__":
    main()
