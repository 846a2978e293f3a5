"""The int8 files of a model, in ONNX: calibrated, quantized, their biases corrected where the scheme says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter.artifacts import Coverage, Lint, QuantScheme, TensorSpec, canonical
from exporter.pipeline.job import Job
from exporter.pipeline.linting import for_arm, lints_for
from exporter.pipeline.results import FloatModel, Int8Model, load_json
from exporter.pipeline.steps import versions
from exporter.store import Stored
from exporter.target_api import Int8File, SchemeNeed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

Inputs = tuple[TensorSpec, ...]
CORRECTED_SAMPLES = 128
"""Samples that biases are corrected on: means settle long before ranges do."""


def int8_model(
    job: Job, inputs: Inputs, float_model: FloatModel, wanted: SchemeNeed, base: QuantScheme, samples: int
) -> Int8Model:
    """A QDQ file, made with the calibration data.

    Args:
        job: the build.
        inputs: of the model.
        float_model: what is quantized.
        wanted: what the target asks for.
        base: the plan's scheme, which `wanted` changes.
        samples: calibration samples, for the progress bar.
    """
    scheme = msgspec.structs.replace(base, **wanted.changes)
    return quantized(job, inputs, float_model, wanted, scheme, samples)


def quantized(
    job: Job, inputs: Inputs, float_model: FloatModel, wanted: SchemeNeed, scheme: QuantScheme, samples: int
) -> Int8Model:
    """A QDQ file with this very scheme; see `int8_model`."""
    calibrated = _calibrate(job, inputs, float_model, scheme, samples)
    # Of files with unsigned activations onnxruntime makes the same everywhere: those of all targets are one.
    arm = for_arm(wanted.requires) and scheme.activations == "int8"

    def build(folder: Path) -> None:
        from exporter.quantize import PREPARED, correct_biases, lint, quantize_calibrated

        model = folder / "model.onnx"
        coverage = quantize_calibrated(calibrated.folder, model, scheme=scheme)
        if scheme.correct_biases:
            correct_biases(calibrated.folder / PREPARED, model, _few(job, inputs))
        (folder / "coverage.json").write_bytes(canonical(coverage))
        found = lint(calibrated.folder, model, scheme=scheme, coverage=coverage, samples=samples, arm=arm)
        (folder / "lints.json").write_bytes(canonical(found))

    parts = {
        "calibrated": calibrated.content,
        "scheme": scheme,
        "arm": arm,
        "versions": versions("onnxruntime", "onnx"),
        # Only what the biases are corrected with is not in what calibration left.
        "data": [inputs, job.calibration_parts()] if scheme.correct_biases else None,
    }
    stored = job.steps.stored("quantize", 1, parts, build, label=f"quantize ({scheme.label})")
    lints = lints_for(load_json(stored.folder / "lints.json", tuple[Lint, ...]), wanted.requires)
    from exporter.quantize import PREPARED

    return Int8Model(
        file=_int8_file(wanted, stored, scheme),
        content=stored.content,
        wanted=wanted,
        prepared=calibrated.folder / PREPARED,
        lints=lints,
    )


def dynamic_model(job: Job, float_model: FloatModel, base: QuantScheme) -> Int8Model:
    """A file whose weights are int8 and whose ranges are taken at run time."""
    # Sums of bytes saturate on some CPUs whoever chose the ranges; what calibration decides does not matter here.
    scheme = QuantScheme(
        per_channel=base.per_channel, reduce_range=True, exclude=base.exclude, ops=base.ops, dynamic=True
    )

    def build(folder: Path) -> None:
        from exporter.quantize import quantize_dynamic

        coverage = quantize_dynamic(float_model.path, folder / "model.onnx", scheme=scheme)
        (folder / "coverage.json").write_bytes(canonical(coverage))

    parts = {"model": float_model.content, "scheme": scheme, "versions": versions("onnxruntime", "onnx")}
    stored = job.steps.stored("quantize-dynamic", 1, parts, build, label=f"quantize ({scheme.label})")
    wanted = SchemeNeed(name="int8-dynamic")
    return Int8Model(file=_int8_file(wanted, stored, scheme), content=stored.content, wanted=wanted)


def _calibrate(job: Job, inputs: Inputs, float_model: FloatModel, scheme: QuantScheme, samples: int) -> Stored:
    """What the tensors looked like on the calibration data; observers that need the same share it."""
    label = "calibrate"
    histogram = scheme.needs_histogram

    def build(folder: Path) -> None:
        from exporter.quantize import calibrate

        calibrate(
            float_model.path,
            folder,
            histogram=histogram,
            symmetric=scheme.symmetric_activations,
            equalized=scheme.equalize,
            batches=job.calibration_batches(inputs),
            progress=job.steps.progress(label),
            jobs=job.steps.jobs,
        )

    parts = {
        "model": float_model.content,
        "inputs": inputs,
        **job.calibration_parts(),
        "histogram": histogram,
        "symmetric": scheme.symmetric_activations,
        "equalized": scheme.equalize,
        "versions": versions("onnxruntime", "onnx"),
    }
    total = -(-samples // job.calibration().batch_size)
    return job.steps.stored("calibrate", 1, parts, build, label=label, total=total)


def _few(job: Job, inputs: Inputs) -> Iterator[Arrays]:
    """The first calibration samples."""
    return islice(job.calibration_batches(inputs), -(-CORRECTED_SAMPLES // job.calibration().batch_size))


def _int8_file(wanted: SchemeNeed, stored: Stored, scheme: QuantScheme) -> Int8File:
    return Int8File(
        name=wanted.name,
        path=stored.folder / "model.onnx",
        scheme=scheme,
        coverage=load_json(stored.folder / "coverage.json", Coverage),
        requires=wanted.requires,
        specialises=wanted.specialises,
    )
