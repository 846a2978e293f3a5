"""Phones: .tflite in float and int8 on LiteRT, converted from torch without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import msgspec

from exporter.artifacts import QuantScheme, RuntimeNeed, Tolerance
from exporter.errors import InputError
from exporter.onnx_export import opset_for_runtime
from exporter.target_api import ConvertRequest, Need, Payload, Target, TargetOptions, TensorForm, VariantFile
from targets import runner_files

if TYPE_CHECKING:
    from exporter.target_api import Arrays, Session
    from targets._litert_jobs import Precision

RUNTIME = Path(__file__).parent / "runner" / "tflite_runtime.py"
LITERT = "ai-edge-litert"
MINIMUM = "2.3"
MODEL = "model.tflite"
NAMES: Mapping[Precision, str] = {"float32": "fp32", "int8": "int8"}
OBSERVERS = ("minmax", "moving-average")
REFERENCE_RUNTIME = "1.19"
"""The onnxruntime that the ONNX file is made for, which only serves as a check of the model here."""


class MobileOptions(TargetOptions, frozen=True, kw_only=True):
    """`[targets.mobile]`: keys of the mobile target alone.

    Attributes:
        variants: precisions to build beside float32.
    """

    variants: Annotated[tuple[Literal["int8"], ...], msgspec.Meta(min_length=1)] = ("int8",)


class MobileTarget:
    """The mobile target; see `exporter.target_api.Target`."""

    name = "mobile"
    version = 1
    summary = "Android, iOS: .tflite fp32 and static int8 (s8s8) on LiteRT"
    options_type = MobileOptions
    defaults: Mapping[str, Mapping[str, Any]] = {"quantize": {"activations": "int8", "weights": "int8"}}
    distributions = ("litert-torch", "ai-edge-quantizer", LITERT, "litert-converter", "torch")

    def missing(self) -> tuple[str, str] | None:
        """The converter, the quantizer and the runtime are an extra: they are large."""
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
        """The torch program and calibration data; files hold 32-bit integers where torch has 64."""
        opset, ir_version = opset_for_runtime(REFERENCE_RUNTIME)
        return Need(
            opset=opset,
            ir_version=ir_version,
            runtime=f"onnxruntime {REFERENCE_RUNTIME}",
            int8=(),
            program=True,
            calibration=True,
            form=TensorForm(types={"int64": "int32"}),
        )

    def convert(self, request: ConvertRequest, options: TargetOptions, folder: Path) -> tuple[VariantFile, ...]:
        """Runs the converter and the quantizer in a process of their own."""
        from targets import _litert, _tflite

        scheme = _scheme(request.quantize) if request.quantize is not None else None
        wanted: tuple[Precision, ...] = cast(MobileOptions, options).variants if scheme is not None else ()
        precisions: tuple[Precision, ...] = ("float32", *wanted)
        _litert.convert(request, precisions, {one: folder / NAMES[one] / MODEL for one in precisions})
        made = [VariantFile(name="fp32", main=f"fp32/{MODEL}", runtime=LITERT, precision="float32")]
        for precision in wanted:
            main = f"{NAMES[precision]}/{MODEL}"
            made.append(
                VariantFile(
                    name=NAMES[precision],
                    main=main,
                    runtime=LITERT,
                    precision=precision,
                    scheme=scheme,
                    coverage=_tflite.coverage(folder / main, dynamic=False),
                )
            )
        return tuple(made)

    def payload(self, options: TargetOptions) -> Payload:
        """The runner for LiteRT and tflite-runtime, and the requirements that bring the former."""
        return Payload(
            files=runner_files(RUNTIME),
            runtime=RuntimeNeed(
                name=LITERT, minimum=MINIMUM, requirements=(f"{LITERT}>={MINIMUM},<3", "numpy>=1.23,<3")
            ),
        )

    def open_session(self, model: Path, *, simulated: bool) -> Session:
        """Opens the model in LiteRT, one thread; files are made for every CPU, so that none is simulated."""
        del simulated
        from targets.runner.tflite_runtime import open_session

        return open_session(str(model), 1).run

    def tolerance(self, variant: VariantFile, model: Path, expected: Arrays) -> dict[str, Tolerance]:
        """One integer step for quantized variants, rounding for float ones."""
        from targets import _tflite

        return _tflite.tolerance(model, expected, quantized=variant.scheme is not None)


def _scheme(asked: QuantScheme) -> QuantScheme:
    """What the quantizer does of what `[quantize]` asks.

    Raises:
        InputError: it cannot do it.
    """
    wrong = []
    if asked.observer not in OBSERVERS:
        wrong.append(f"observer = '{asked.observer}' (it has {' and '.join(OBSERVERS)})")
    if asked.activations != "int8" or asked.weights != "int8":
        wrong.append(f"activations = '{asked.activations}', weights = '{asked.weights}' (both are int8)")
    wrong += ["per_channel = false"] if not asked.per_channel else []
    wrong += ["symmetric_activations = true"] if asked.symmetric_activations else []
    wrong += ["reduce_range = true"] if asked.reduce_range else []
    wrong += ["exclude, which names ONNX nodes"] if asked.exclude else []
    if wrong:
        raise InputError(
            f"the quantizer of .tflite files cannot do {'; '.join(wrong)}",
            where="[quantize]",
            hint="say what mobile is to do in a table of its own, [targets.mobile.quantize]",
        )
    return asked


TARGET: Target = MobileTarget()
