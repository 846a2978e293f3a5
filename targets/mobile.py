"""Phones: .tflite in float and int8 on LiteRT, converted from torch without TensorFlow; or ORT format."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from exporter.artifacts import QuantScheme, RuntimeNeed, Tolerance
from exporter.errors import InputError
from exporter.onnx_export import onnx_session, opset_for_runtime
from exporter.target_api import ConvertRequest, Need, Payload, Target, TargetOptions, TensorForm, VariantFile
from targets import _arm64, _mobile_ort, runner_files
from targets._handover import app_guide
from targets._litert_jobs import STATIC, VariantJob

if TYPE_CHECKING:
    from exporter.target_api import Arrays, Session
    from targets._litert_jobs import Precision

RUNTIME = Path(__file__).parent / "runner" / "tflite_runtime.py"
LITERT = "ai-edge-litert"
MINIMUM = "2.3"
MODEL = "model.tflite"
TFLITE = ".tflite"
NAMES: Mapping[Precision, str] = {
    "float32": "fp32", "float16": "fp16", "int8": "int8", "int16x8": "int16x8", "dynamic-int8": "dynamic"
}  # fmt: skip
QUANTIZED = ("int8", "int16x8", "dynamic-int8")
TFLITE_KEYS = ("variants", "io", "layout", "exclude")
OBSERVERS = ("minmax", "moving-average")
REFERENCE_RUNTIME = "1.19"
"""The onnxruntime that the ONNX file is made for, which only serves as a check of the model here."""


class MobileOptions(TargetOptions, frozen=True, kw_only=True):
    """`[targets.mobile]`: keys of the mobile target alone.

    Attributes:
        format: `tflite`, for LiteRT; or `ort`, onnxruntime's own format, optimized ahead of time for ARM, with the
            int8 files of the arm target.
        min_runtime: with `ort`, the oldest onnxruntime that the bundle must run on.
        variants: what to build beside float32. `int8` and `int16x8` (int8 weights, int16 activations) take ranges
            from calibration data; `dynamic-int8` has int8 weights and takes ranges of activations at run time;
            `float16` halves the weights.
        io: what the files of static variants take and give: real numbers, or the integers themselves.
        layout: of float inputs with four axes.
        exclude: operator types (as `FULLY_CONNECTED`) that static and dynamic variants leave in float.
    """

    format: Literal["tflite", "ort"] = "tflite"
    min_runtime: str | None = None
    variants: tuple[Literal["float16", "int8", "int16x8", "dynamic-int8"], ...] = ("int8",)
    io: Literal["float", "integer"] = "float"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    exclude: tuple[str, ...] = ()


class MobileTarget:
    """The mobile target; see `exporter.target_api.Target`."""

    name = "mobile"
    version = 1
    summary = "Android, iOS: .tflite fp32 and static int8 (s8s8) on LiteRT, or ORT format on onnxruntime"
    options_type = MobileOptions
    defaults: Mapping[str, Mapping[str, Any]] = {"quantize": {"activations": "int8", "weights": "int8"}}
    distributions = ("litert-torch", "ai-edge-quantizer", LITERT, "litert-converter", "torch", "onnxruntime")

    def missing(self, options: TargetOptions) -> tuple[str, str] | None:
        """The converter, the quantizer and the runtime of .tflite files are an extra: they are large."""
        if cast(MobileOptions, options).format == "ort":
            return None
        wanted = {"litert_torch": "litert-torch", "ai_edge_quantizer": "ai-edge-quantizer", "ai_edge_litert": LITERT}
        absent = [distribution for module, distribution in wanted.items() if find_spec(module) is None]
        if not absent:
            return None
        return (
            f"{', '.join(absent)} cannot be imported",
            "pip install 'edge-exporter[mobile]' (the converter has wheels for Linux on x86-64 and macOS on arm64; "
            "build there, bundles run on other machines)",
        )

    def requires(self, options: TargetOptions) -> Need:
        """The torch program and calibration data; files hold 32-bit integers where torch has 64.

        Raises:
            InputError: an option that does not act with the format.
        """
        wanted = cast(MobileOptions, options)
        check_options(wanted)
        if wanted.format == "ort":
            return _arm64.need(minimum_of(wanted))
        opset, ir_version = opset_for_runtime(REFERENCE_RUNTIME)
        return Need(
            opset=opset,
            ir_version=ir_version,
            runtime=f"onnxruntime {REFERENCE_RUNTIME}",
            int8=(),
            program=True,
            calibration=True,
            form=form_of(wanted),
        )

    def convert(self, request: ConvertRequest, options: TargetOptions, folder: Path) -> tuple[VariantFile, ...]:
        """Runs the converter and the quantizer in a process of their own; or optimizes the ONNX files for ARM."""
        from targets import _litert

        wanted = cast(MobileOptions, options)
        if wanted.format == "ort":
            return _mobile_ort.convert(request, folder)
        scheme = _scheme(request.quantize) if request.quantize is not None else None
        asked = [one for one in dict.fromkeys(wanted.variants) if one == "float16" or scheme is not None]
        precisions: tuple[Precision, ...] = ("float32", *asked)
        jobs = tuple(
            VariantJob(
                precision=one,
                file=str(folder / NAMES[one] / MODEL),
                integer_io=wanted.io == "integer" and one in STATIC,
                exclude=wanted.exclude if one in QUANTIZED else (),
            )
            for one in precisions
        )
        moved = [spec.name for spec in request.signature.inputs if form_of(wanted).moves(spec)]
        _litert.convert(request, jobs, tuple(moved))
        check_excluded(Path(jobs[0].file), wanted.exclude)
        return tuple(_variant(folder, one, scheme, wanted) for one in precisions)

    def payload(self, options: TargetOptions) -> Payload:
        """The runner for LiteRT and tflite-runtime, and the requirements that bring the former; or onnxruntime's."""
        wanted = cast(MobileOptions, options)
        if wanted.format == "ort":
            return _mobile_ort.payload(minimum_of(wanted))
        return Payload(
            files=runner_files(RUNTIME),
            runtime=RuntimeNeed(
                name=LITERT,
                minimum=MINIMUM,
                requirements=(f"{LITERT}>={MINIMUM},<3", "numpy>=1.23,<3"),
                python="3.10",
                # Its last release, built against numpy 1.
                alternatives={"tflite-runtime": ("tflite-runtime==2.14.0", "numpy>=1.23,<2")},
                newest_python={"tflite-runtime": "3.11"},
            ),
            guide=app_guide,
        )

    def open_session(self, model: Path, *, simulated: bool) -> Session:
        """Opens the model, one thread; .tflite files are made for every CPU, so that none is simulated."""
        if model.suffix != TFLITE:
            return onnx_session(model, simulated=simulated)
        from targets.runner.tflite_runtime import open_session

        return open_session(str(model), 1).run

    def tolerance(self, variant: VariantFile, model: Path, expected: Arrays) -> dict[str, Tolerance]:
        """One integer step for quantized variants, rounding for float ones."""
        from targets import _tflite

        if model.suffix != TFLITE:
            return _mobile_ort.tolerance(variant, model, expected)
        return _tflite.tolerance(model, expected, quantized=variant.precision in QUANTIZED)


def minimum_of(options: MobileOptions) -> str:
    """The oldest onnxruntime of a bundle in ORT format."""
    return options.min_runtime or _arm64.MIN_RUNTIME


def check_options(options: MobileOptions) -> None:
    """Raises InputError for what does not act with the format, all keys at once."""
    if options.format == "tflite":
        idle = ["min_runtime"] if options.min_runtime is not None else []
        takes = "tflite files run on any LiteRT of the bundle's requirements"
    else:
        plain = MobileOptions()
        idle = [name for name in TFLITE_KEYS if getattr(options, name) != getattr(plain, name)]
        takes = "ORT format holds float and static int8 ONNX for ARM, in the model's own layout and types"
    if idle:
        raise InputError(
            f"{', '.join(idle)} {'does' if len(idle) == 1 else 'do'} nothing with format = '{options.format}'",
            where="; ".join(f"targets.mobile.{name}" for name in idle),
            why=takes,
            hint=f"remove {'it' if len(idle) == 1 else 'them'}, or choose another `format`",
        )


def check_excluded(float_file: Path, exclude: tuple[str, ...]) -> None:
    """Raises InputError when the plan excludes operators that the model does not have."""
    from targets import _tflite

    kinds = _tflite.kinds(float_file) if exclude else set()
    if unknown := set(exclude) - kinds:
        raise InputError(
            f"the model has no operator {', '.join(sorted(unknown))}",
            where="[targets.mobile] exclude",
            hint=f"its operators: {', '.join(sorted(kinds))}",
        )


def form_of(options: MobileOptions) -> TensorForm:
    """Files hold 32-bit integers where torch has 64, and images in the layout that the plan asks for."""
    return TensorForm(types={"int64": "int32"}, channels_last=options.layout == "NHWC")


def _variant(folder: Path, precision: Precision, scheme: QuantScheme | None, options: MobileOptions) -> VariantFile:
    """What was written, with what is integer in it."""
    from targets import _tflite

    main = f"{NAMES[precision]}/{MODEL}"
    coverage = None
    if precision in QUANTIZED:
        coverage = _tflite.coverage(folder / main, dynamic=precision == "dynamic-int8", excluded=options.exclude)
    return VariantFile(
        name=NAMES[precision],
        main=main,
        runtime=LITERT,
        precision=precision,
        scheme=scheme if precision == "int8" else None,
        coverage=coverage,
        edges=_tflite.edges(folder / main),
    )


def _scheme(asked: QuantScheme) -> QuantScheme:
    """What the quantizer does of what `[quantize]` asks.

    Raises:
        InputError: it cannot do it.
    """
    able = QuantScheme(activations="int8", observer=asked.observer)
    wrong = [
        f"{name} = {getattr(asked, name)!r}"
        for name in QuantScheme.__struct_fields__
        if getattr(asked, name) != getattr(able, name)
    ]
    if asked.observer not in OBSERVERS:
        wrong.append(f"observer = '{asked.observer}'")
    if wrong:
        raise InputError(
            f"the quantizer of .tflite files cannot do {', '.join(wrong)}",
            where="[quantize]",
            why=f"weights are int8, one scale a channel; activations int8; observers {' or '.join(OBSERVERS)}",
            hint="say what mobile is to do in [targets.mobile.quantize]; `variants` and `exclude` in "
            "[targets.mobile] choose dynamic int8, and operators that stay float",
        )
    return able


TARGET: Target = MobileTarget()
