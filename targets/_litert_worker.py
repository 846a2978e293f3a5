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
from targets._litert_jobs import FAILED, STATIC, ConversionJob, Failure, Program, VariantJob, read_job
from targets._tflite_names import give_names, placeholder
from targets._tflite_schemes import Ranges, read_ranges, reasons_for
from targets._tflite_signature import mend_signature

SIGNATURE = "serving_default"


class Samples:
    """Calibration samples of an npz file, read again on each pass: the quantizer makes two."""

    def __init__(self, path: str) -> None:
        self._archive = np.load(path, allow_pickle=False)
        self._keys: dict[str, dict[str, str]] = {}
        for key in self._archive.files:
            sample, _, name = key.partition("/")
            self._keys.setdefault(sample, {})[name] = key

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[dict[str, NDArray[np.generic]]]:
        for names in self._keys.values():
            yield {name: self._archive[key] for name, key in names.items()}


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
    """Writes the ranges of all tensors.

    The quantizer's own calibration is a moving average that clips; the extremes themselves are taken unless the plan
    says otherwise.
    """
    calibrator, recipe = library("ai_edge_quantizer.calibrator"), library("ai_edge_quantizer.recipe")
    recipe_manager = library("ai_edge_quantizer.recipe_manager")
    qsv_utils = library("ai_edge_quantizer.utils.qsv_utils")
    samples = Samples(str(job.calibration))
    update = {"minmax": qsv_utils.min_max_update, "moving-average": qsv_utils.moving_average_update}[job.observer]
    rules = recipe_manager.RecipeManager()
    rules.load_quantization_recipe(recipe.static_wi8_ai8())
    observing = calibrator.Calibrator(job.float_file, num_threads=1, qsv_update_func=update)
    observing.calibrate({SIGNATURE: samples}, rules)
    found = observing.get_model_qsvs()
    if not found:
        raise ValueError(f"calibration saw no tensor in {len(samples)} samples")
    plain = {
        tensor: {side: np.asarray(value).tolist() for side, value in one.items()} for tensor, one in found.items()
    }
    Path(job.ranges).write_text(json.dumps(plain), encoding="utf-8")


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
    for name in reasons_for(float_file, variant.left, ranges):
        # The quantizer finds an operator by the names of its results, each followed by a semicolon.
        rules.add_quantization_config(f"^{re.escape(name)};", operators.ALL_SUPPORTED, algorithm_key="no_quantize")
    worker = quantizer.Quantizer(str(float_file), rules.get_quantization_recipe())
    result = worker.quantize(
        as_arrays(ranges) if ranges else None, enable_progress_bar=False, enable_progress_report=False
    )
    result.export_model(variant.file)
    real = variant.precision in STATIC and not variant.integer_io
    mend_signature(float_file, Path(variant.file), real=real)


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
    if job.calibration is not None:
        with begin("calibrate"):
            calibrate(job)
    ranges = read_ranges(Path(job.ranges))
    for variant in job.variants:
        with begin(f"quantize to {variant.precision}"):
            quantize(float_file, variant, ranges if variant.precision in STATIC else {})
            # A file that the runtime crashes on must end this process, and not the build.
            library("ai_edge_litert.interpreter").Interpreter(variant.file, num_threads=1).allocate_tensors()


if __name__ == "__main__":
    main()
