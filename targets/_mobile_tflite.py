"""The .tflite files of the mobile target: which are made, how they are asked for, and what was written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter.artifacts import QuantScheme
from exporter.target_api import ConvertRequest, TensorForm, VariantFile
from targets import _litert, _tflite
from targets._litert import Base
from targets._litert_jobs import STATIC, VariantJob
from targets._tflite_schemes import Left, check_left, checked_scheme, left_of, read_ranges, reasons_for

if TYPE_CHECKING:
    from targets._litert_jobs import Precision
    from targets.mobile import MobileOptions

LITERT = "ai-edge-litert"
MODEL = "model.tflite"
NAMES: Mapping[Precision, str] = {
    "float32": "fp32", "float16": "fp16", "int8": "int8", "int16x8": "int16x8", "dynamic-int8": "dynamic"
}  # fmt: skip
OLDER = "tflite-runtime"
HYBRID = "what it computes of int8 weights beside float activations is far from what it should be"
ONNX2TF = "onnx2tf"
DYNAMIC: Precision = "dynamic-int8"
QUANTIZED = ("int8", "int16x8", DYNAMIC)
PRODUCTS = ("BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
RANGES = "ranges.json"


def convert(
    request: ConvertRequest, options: MobileOptions, channels_last: tuple[str, ...], folder: Path
) -> tuple[VariantFile, ...]:
    """Writes the float file and all others that are asked for, or offered."""
    scheme = checked_scheme(request.quantize) if request.quantize is not None else None
    chosen, base = precisions(options, scheme, offered=request.offered), base_of(folder)
    jobs = tuple(_job(folder, one, options, scheme) for one in chosen)
    left = left_of(options.exclude, scheme)
    if options.converter == ONNX2TF:
        _from_onnx(request, request.form, base.float_file)
        check_left(base.float_file, left)
        _litert.quantize(request, base, jobs)
    elif left == Left():
        _litert.convert(request, base, jobs, channels_last)
        _compare(request, base.float_file, request.tolerance, _litert.WHERE, _litert.HINT)
    else:
        # What the plan names is looked for before minutes go into calibrating and quantizing.
        _litert.convert(request, base, (), channels_last)
        check_left(base.float_file, left)
        _compare(request, base.float_file, request.tolerance, _litert.WHERE, _litert.HINT)
        _litert.quantize(request, base, jobs)
    asked = precisions(options, scheme, offered=())
    made = (_variant(folder, base, one, scheme, options, offered=one not in asked) for one in chosen)
    return (_float_variant(folder), *made)


def form_of(options: MobileOptions) -> TensorForm:
    """Files hold 32-bit integers where the model has 64, and images in the layout that the plan asks for."""
    return TensorForm(types={"int64": "int32"}, channels_last=options.layout == "NHWC")


def _from_onnx(request: ConvertRequest, form: TensorForm, path: Path) -> None:
    """Writes the float file from the ONNX file, and compares the two on real inputs."""
    from targets import _onnx2tf

    assert request.python is not None, "asked for by `requires`"
    request.tell("convert the ONNX file")
    _onnx2tf.convert(request.float_model, request.signature, form, request.python, path)
    _compare(request, path, _onnx2tf.TOLERANCE, _onnx2tf.WHERE, _onnx2tf.HINT)


def _compare(request: ConvertRequest, path: Path, tolerance: float, where: str, hint: str) -> None:
    """Compares a float file with the ONNX file on real inputs."""
    from exporter.onnx_export import onnx_session
    from targets._float_check import check
    from targets.runner.tflite_runtime import open_session

    if request.examples is None:
        return
    request.tell("compare with the ONNX file")
    check(
        onnx_session(request.float_model), open_session(str(path), 1).run, request.examples(),
        tolerance=tolerance, where=where, hint=hint,
    )  # fmt: skip


def requantize(
    made: Path, variant: VariantFile, scheme: QuantScheme, options: MobileOptions, folder: Path
) -> VariantFile:
    """Writes a variant again, from the float file and the ranges that `convert` left."""
    base = base_of(made)
    precision = next(one for one, name in NAMES.items() if name == variant.name)
    _litert.requantize(base, (_job(folder, precision, options, scheme),))
    return _variant(folder, base, precision, scheme, options, offered=variant.offered)


def precisions(
    options: MobileOptions, scheme: QuantScheme | None, *, offered: tuple[str, ...]
) -> tuple[Precision, ...]:
    """What is made beside float32: the plan's variants, and offered ones, as far as the scheme lets them be."""
    if scheme is None:
        return tuple(one for one in dict.fromkeys(options.variants) if one == "float16")
    ranged = [DYNAMIC if scheme.dynamic and one in STATIC else one for one in options.variants]
    return tuple(dict.fromkeys((*ranged, *((DYNAMIC,) if "dynamic" in offered else ()))))


def base_of(folder: Path) -> Base:
    """What a conversion leaves in its folder."""
    return Base(float_file=folder / NAMES["float32"] / MODEL, ranges=folder / RANGES)


def _left(options: MobileOptions, scheme: QuantScheme | None) -> Left:
    """What stays in float: what the plan says, and what the quantizer would make wrong."""
    from targets._onnx2tf import STAYS_FLOAT

    asked = left_of(options.exclude, scheme)
    return msgspec.structs.replace(asked, unfit=STAYS_FLOAT) if options.converter == ONNX2TF else asked


def _job(folder: Path, precision: Precision, options: MobileOptions, scheme: QuantScheme | None) -> VariantJob:
    return VariantJob(
        precision=precision,
        file=str(folder / NAMES[precision] / MODEL),
        integer_io=options.io == "integer" and precision in STATIC,
        left=_left(options, scheme) if precision in QUANTIZED else Left(),
    )


def _float_variant(folder: Path) -> VariantFile:
    main = f"{NAMES['float32']}/{MODEL}"
    return VariantFile(
        name=NAMES["float32"], main=main, runtime=LITERT, precision="float32", edges=_tflite.edges(folder / main)
    )


def _variant(
    folder: Path,
    base: Base,
    precision: Precision,
    scheme: QuantScheme | None,
    options: MobileOptions,
    *,
    offered: bool,
) -> VariantFile:
    """What was written, with what is integer in it."""
    main = f"{NAMES[precision]}/{MODEL}"
    coverage = None
    if precision in QUANTIZED:
        ranges = read_ranges(base.ranges) if precision in STATIC else {}
        reasons = reasons_for(base.float_file, _left(options, scheme), ranges)
        coverage = _tflite.coverage(folder / main, dynamic=precision == DYNAMIC, left=reasons)
    return VariantFile(
        name=NAMES[precision],
        main=main,
        runtime=LITERT,
        precision=precision,
        scheme=scheme if precision == "int8" else None,
        coverage=coverage,
        edges=_tflite.edges(folder / main),
        offered=offered,
        not_on={OLDER: HYBRID} if precision == DYNAMIC else {},
    )
