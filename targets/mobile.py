"""Phones: .tflite in float and int8 on LiteRT, converted from torch without TensorFlow; or ORT format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from exporter.artifacts import NodeDamage, QuantScheme, RuntimeNeed, Tolerance
from exporter.errors import InputError, MissingError
from exporter.onnx_export import onnx_session, opset_for_runtime
from exporter.target_api import ConvertRequest, Need, OperatorFacts, Payload, Target, TargetOptions, VariantFile
from targets import _arm64, _mobile_ort, _mobile_tflite, _onnx2tf, runner_files
from targets._handover import app_guide
from targets._litert_jobs import STATIC
from targets._mobile_tflite import LITERT, OLDER, ONNX2TF, PRODUCTS, QUANTIZED, form_of

if TYPE_CHECKING:
    from exporter.target_api import Arrays, Session

RUNTIME = Path(__file__).parent / "runner" / "tflite_runtime.py"
MINIMUM = "2.3"
TFLITE = ".tflite"
ONNX_SOURCE = (
    '`[targets.mobile] converter = "onnx2tf"` converts it, in an environment with TensorFlow that is made on '
    'first use; `format = "ort"` takes it as it is, for onnxruntime; or give the torch model as source'
)
TFLITE_KEYS = ("converter", "variants", "io", "layout", "exclude", "runtimes")
REFERENCE_RUNTIME = "1.19"
"""The onnxruntime that the ONNX file is made for, which only serves as a check of the model here."""


class MobileOptions(TargetOptions, frozen=True, kw_only=True):
    """`[targets.mobile]`: keys of the mobile target alone.

    Attributes:
        format: `tflite`, for LiteRT; or `ort`, onnxruntime's own format, optimized ahead of time for ARM, with the
            int8 files of the arm target.
        converter: of .tflite files: `litert-torch`, from the torch program; or `onnx2tf`, from the ONNX file, which
            may be a ready one, in an environment of its own.
        min_runtime: with `ort`, the oldest onnxruntime that the bundle must run on.
        variants: what to build beside float32. `int8` and `int16x8` (int8 weights, int16 activations) take ranges
            from calibration data; `dynamic-int8` has int8 weights and takes ranges of activations at run time;
            `float16` halves the weights.
        io: what the files of static variants take and give: real numbers, or the integers themselves.
        layout: of float inputs with four axes.
        exclude: operator types (as `FULLY_CONNECTED`) that static and dynamic variants leave in float.
        runtimes: what the build measures latency on; `tflite-runtime`, LiteRT's predecessor, in an environment of its
            own, where one can be made.
    """

    format: Literal["tflite", "ort"] = "tflite"
    converter: Literal["litert-torch", "onnx2tf"] = "litert-torch"
    min_runtime: str | None = None
    variants: tuple[Literal["float16", "int8", "int16x8", "dynamic-int8"], ...] = ("int8",)
    io: Literal["float", "integer"] = "float"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    exclude: tuple[str, ...] = ()
    runtimes: tuple[Literal["litert", "tflite-runtime"], ...] = ("litert",)


class MobileTarget:
    """The mobile target; see `exporter.target_api.Target`."""

    name = "mobile"
    version = 4
    summary = "Android, iOS: .tflite fp32 and static int8 (s8s8) on LiteRT, or ORT format on onnxruntime"
    options_type = MobileOptions
    products = PRODUCTS
    defaults: Mapping[str, Mapping[str, Any]] = {"quantize": {"activations": "int8", "weights": "int8"}}
    untimed = (
        "LiteRT's Python package times no operators; on a phone its benchmark_model does, with "
        "--enable_op_profiling=true (the bundle's README.md shows how to run it)"
    )
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
        """The torch program, or a Python to convert the ONNX file with, and calibration data.

        Raises:
            InputError: an option that does not act with the format.
        """
        wanted = cast(MobileOptions, options)
        check_options(wanted)
        if wanted.format == "ort":
            return _arm64.need(minimum_of(wanted))
        opset, ir_version = opset_for_runtime(REFERENCE_RUNTIME)
        from_onnx = wanted.converter == ONNX2TF
        return Need(
            opset=opset,
            ir_version=ir_version,
            runtime=f"onnxruntime {REFERENCE_RUNTIME}",
            int8=(),
            program=not from_onnx,
            fixed=from_onnx,
            otherwise=ONNX_SOURCE,
            environment=_onnx2tf.ENVIRONMENT if from_onnx else None,
            calibration=True,
            ranges=any(one in STATIC for one in wanted.variants),
            form=form_of(wanted),
            dynamic=True,
            pixels=not from_onnx,
        )

    def convert(self, request: ConvertRequest, options: TargetOptions, folder: Path) -> tuple[VariantFile, ...]:
        """Runs the converter and the quantizer in a process of their own; or optimizes the ONNX files for ARM."""
        wanted = cast(MobileOptions, options)
        if wanted.format == "ort":
            return _mobile_ort.convert(request, folder)
        moved = tuple(spec.name for spec in request.signature.inputs if request.form.moves(spec))
        return _mobile_tflite.convert(request, wanted, moved, folder)

    def requantize(
        self, made: Path, variant: VariantFile, scheme: QuantScheme, options: TargetOptions, folder: Path
    ) -> VariantFile:
        """Runs the quantizer alone, in a process of its own, on the float file and the ranges that are there."""
        return _mobile_tflite.requantize(made, variant, scheme, cast(MobileOptions, options), folder)

    def damage(self, made: Path, model: Path, batches: Iterable[Arrays]) -> tuple[NodeDamage, ...]:
        """Feeds each operator's integer form with the float file's activations."""
        from targets._tflite_damage import operator_damage

        return operator_damage(_mobile_tflite.base_of(made).float_file, model, batches)

    def operators(self, float_model: Path, model: Path, batches: Iterable[Arrays]) -> tuple[OperatorFacts, ...]:
        """Reads the operators off the file, and feeds each as `damage` does; LiteRT alone is enough for that."""
        if find_spec("ai_edge_litert") is None:
            raise MissingError(
                f"{LITERT} cannot be imported",
                why="it reads and runs .tflite files",
                hint=f"pip install 'edge-exporter[mobile]', or '{LITERT}>={MINIMUM},<3' to look at bundles alone",
            )
        from targets._tflite_operators import operator_facts

        return operator_facts(float_model, model, batches)

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
                alternatives={OLDER: ("tflite-runtime==2.14.0", "numpy>=1.23,<2")},
                newest_python={OLDER: "3.11"},
            ),
            beside=(OLDER,) if OLDER in wanted.runtimes else (),
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
    if "litert" not in options.runtimes:
        raise InputError(
            "litert is what the other runtime is compared with",
            where="targets.mobile.runtimes",
            hint='write `runtimes = ["litert", "tflite-runtime"]`',
        )
    if idle:
        raise InputError(
            f"{', '.join(idle)} {'does' if len(idle) == 1 else 'do'} nothing with format = '{options.format}'",
            where="; ".join(f"targets.mobile.{name}" for name in idle),
            why=takes,
            hint=f"remove {'it' if len(idle) == 1 else 'them'}, or choose another `format`",
        )


TARGET: Target = MobileTarget()
