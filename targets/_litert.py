"""Starts the process that converts and quantizes, and says what its failures mean."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from exporter.artifacts import canonical
from exporter.errors import DataError, StageError, shorten
from exporter.target_api import ConvertRequest, unheard
from targets._litert_jobs import FAILED, RUN, STATIC, ConversionJob, Failure, Program, VariantJob
from targets._warm import warm_process

if TYPE_CHECKING:
    from exporter.target_api import Arrays

MODULE = "targets._litert_worker"
QUANTIZER = ("ai_edge_quantizer.quantizer", "ai_edge_litert.tools.flatbuffer_utils")
CONVERTER = ("torch", "litert_torch", *QUANTIZER)
"""What the process imports; the libraries behind it take seconds."""
SECONDS = 4 * 3600
OTHERWISE = (
    'replace it in the model; `[targets.mobile] format = "ort"` takes the ONNX file as it is, and `--target cpu` '
    "leaves the target out"
)
ODD_FLOATS = {"f64": "float64", "f16": "float16", "bf16": "bfloat16"}
"""What the converter calls them."""
WHERE = "convert to .tflite (litert-torch)"
HINT = (
    "the converter writes an operator as something else (resizing by a factor that is no whole number, for one): "
    f"{OTHERWISE}; or raise `[export] tolerance` if this is rounding"
)
STAGES = {"convert": "write the float .tflite"}
"""What the user reads of a stage, where that is not its name."""


class Base(NamedTuple):
    """What quantized files are made from.

    Attributes:
        float_file: the float .tflite.
        ranges: what its tensors reach on the calibration data; not there where no file needed it.
    """

    float_file: Path
    ranges: Path


def convert(
    request: ConvertRequest, base: Base, variants: tuple[VariantJob, ...], channels_last: tuple[str, ...]
) -> None:
    """Writes .tflite files.

    Args:
        request: the program and the calibration samples.
        base: where to write the float file, and ranges where a variant needs them.
        variants: quantized files to write.
        channels_last: inputs that become NHWC.

    Raises:
        StageError: a library cannot do it, or its process ended otherwise.
        DataError: there are no calibration samples.
    """
    if request.program is None:
        raise StageError("there is no torch program to convert", hint="give a torch model as source")
    program = Program(
        file=str(request.program),
        inputs=tuple((spec.name, spec.dtype, _fixed(spec.shape)) for spec in request.signature.inputs),
        outputs=tuple(spec.name for spec in request.signature.outputs),
        channels_last=channels_last,
        pixels=request.pixels,
    )
    _make(request, base, variants, program)


def quantize(request: ConvertRequest, base: Base, variants: tuple[VariantJob, ...]) -> None:
    """Writes quantized files from a float one that is there, and the ranges that they need.

    Args:
        request: the calibration samples.
        base: the float file, and where to write ranges.
        variants: files to write.

    Raises:
        StageError: the quantizer cannot do it, or its process ended otherwise.
        DataError: there are no calibration samples.
    """
    _make(request, base, variants, None)


def _make(request: ConvertRequest, base: Base, variants: tuple[VariantJob, ...], program: Program | None) -> None:
    with tempfile.TemporaryDirectory(prefix="edge-exporter-litert-") as name:
        folder = Path(name)
        calibration = None
        if any(variant.precision in STATIC for variant in variants):
            calibration = folder / "calibration.npz"
            _write_samples(request, calibration)
        _run(
            folder,
            ConversionJob(
                float_file=str(base.float_file),
                program=program,
                ranges=str(base.ranges),
                calibration=str(calibration) if calibration else None,
                observer="moving-average" if request.quantize and request.quantize.observer != "minmax" else "minmax",
                variants=variants,
            ),
            request.tell,
        )


def requantize(base: Base, variants: tuple[VariantJob, ...]) -> None:
    """Writes quantized files from what an earlier conversion left.

    Raises:
        StageError: the quantizer cannot do it, or its process ended otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="edge-exporter-litert-") as name:
        _run(
            Path(name),
            ConversionJob(float_file=str(base.float_file), ranges=str(base.ranges), variants=variants),
        )


def _fixed(shape: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(int(size) for size in shape)


def _write_samples(request: ConvertRequest, path: Path) -> None:
    """Calibration samples, in batches of the files' fixed size."""
    import zipfile

    import numpy as np

    count = 0
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_STORED, allowZip64=True) as archive:
        for count, arrays in enumerate(_samples(request), start=1):
            for name, values in arrays.items():
                with archive.open(f"{count:08d}/{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asarray(values), allow_pickle=False)
    if not count:
        raise DataError(
            "there are no calibration samples",
            where="[calibration]",
            why="ranges are measured on real inputs, and none are ever made up",
            hint="give at least as many samples as the model's fixed batch holds",
        )


def _samples(request: ConvertRequest) -> Iterator[Arrays]:
    return request.calibration() if request.calibration is not None else iter(())


def _run(folder: Path, job: ConversionJob, tell: Callable[[str], None] = unheard) -> None:
    for file in (job.float_file, *(variant.file for variant in job.variants)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_bytes(canonical(job))
    environment = {**os.environ, "LITERT_TORCH_SHOW_PROGRESS": "n", "PYTHONHASHSEED": "0"}

    told = ["start"]

    def said(stage: str) -> None:
        told.append(stage)
        tell(STAGES.get(stage, stage))

    try:
        code = warm_process(os.getpid()).run(
            MODULE, [str(folder / "job.json")], imports=QUANTIZER if job.program is None else CONVERTER,
            folder=folder, environment=environment, seconds=SECONDS, tell=said,
        )  # fmt: skip
    except TimeoutError as error:
        raise StageError(f"the converter did not end within {SECONDS // 3600} hours") from error
    if code == 0:
        return
    failed = folder / FAILED
    if failed.is_file():
        raise _meaning(msgspec.json.decode(failed.read_bytes(), type=Failure))
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    if told[-1].startswith(RUN) and code != -9:
        raise StageError(
            f"LiteRT crashes on the {told[-1].removeprefix(RUN).strip()} file",
            where=f"{told[-1]} (ai-edge-litert)",
            why=f"its process ended with {ending}: one of its kernels cannot do what the file asks of it",
            hint="leave that variant out of `[targets.mobile] variants`, or operators in float with its `exclude`; "
            "the end of the process's output is in the run log (`-v` shows it)",
        )
    raise StageError(
        f"the converter's process ended with {ending}",
        where=f"{told[-1]} (litert-torch, ai-edge-quantizer, ai-edge-litert)",
        why="killed, perhaps for want of memory" if code == -9 else "it crashed and left no message",
        hint="the end of its output is in the run log (`-v` shows it); earlier steps are kept for the next build",
    )


def _meaning(failure: Failure) -> StageError:
    """What a library raised, in the user's terms."""
    lacking = re.search(r"(?:Lowering not found|No lowering|not.{0,20}lower\w*)\W+([\w.:]+)", failure.message)
    if failure.stage == "convert" and lacking is not None:
        return StageError(
            f"the operator {lacking[1]} has no .tflite form in the converter",
            where="convert (litert-torch)",
            why=shorten(failure.message),
            hint=OTHERWISE,
        )
    illegal = re.search(r"failed to legalize operation '(?:tfl\.)?([\w.]+)'", failure.message)
    if failure.stage == "convert" and illegal is not None:
        wide = [name for kind, name in ODD_FLOATS.items() if re.search(rf"\b(?:\w*x)?{kind}>", failure.message)]
        return StageError(
            f"the operator {illegal[1]} has no .tflite form for what it takes",
            where="convert (litert-torch)",
            why=f"it computes in {', '.join(wide)}" if wide else shorten(failure.message),
            hint="give the model in float32: `.float()` in its factory, and data of that type" if wide else OTHERWISE,
        )
    if failure.stage == "convert" and "complex<" in failure.message:
        return StageError(
            "complex numbers have no .tflite form in the converter",
            where="convert (litert-torch)",
            why=shorten(failure.message),
            hint=f"compute with real and imaginary parts, or {OTHERWISE}",
        )
    unseen = re.search(r"quantization parameters for tensor: (.+?)\.? Error: ", failure.message)
    if unseen is not None:
        return StageError(
            f"calibration saw nothing of the tensor '{unseen[1]}'",
            where=f"{failure.stage} (ai-edge-quantizer)",
            why=shorten(failure.message),
            hint="leave operators of its type in float with `[targets.mobile] exclude`",
        )
    if failure.stage == "calibrate" and "Tensor data is null" in failure.message:
        return StageError(
            "the quantizer cannot calibrate a file that has a tensor which nothing uses",
            where="calibrate (ai-edge-quantizer)",
            why="it asks for the values of every tensor, and that one gets none; an LSTM has one in its first step",
            hint='`[targets.mobile] variants = ["dynamic-int8"]` needs no calibration; from torch (litert-torch) and '
            'with `format = "ort"` there are no such tensors',
        )
    if failure.stage.startswith(RUN):
        precision = failure.stage.removeprefix(RUN).strip()
        missing = re.search(r"Didn't find op for builtin opcode '(\w+)'", failure.message)
        return StageError(
            f"LiteRT cannot run the {precision} file" + (f": it has no operator {missing[1]}" if missing else ""),
            where=f"{failure.stage} (ai-edge-litert)",
            why=shorten(failure.message),
            hint=OTHERWISE
            if precision == "float32"
            else "leave that variant out of `[targets.mobile] variants`, or operators in float with its `exclude`",
        )
    where = {"convert": WHERE}.get(failure.stage, f"{failure.stage} (ai-edge-quantizer)")
    return StageError(
        f"the model cannot be made a .tflite file: {failure.kind}",
        where=where,
        why=shorten(next((line for line in failure.message.splitlines() if line.strip()), failure.kind)),
        hint="the library's own words are in the run log (`-v` shows it)",
    )
