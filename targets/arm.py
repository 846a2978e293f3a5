"""64-bit ARM boards with Linux: ONNX in float and static int8, on onnxruntime's CPU provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from exporter.artifacts import Tolerance
from exporter.onnx_export import onnx_session
from exporter.quantize import int8_tolerance
from exporter.target_api import ConvertRequest, Need, Payload, Target, TargetOptions, VariantFile
from targets import _arm64, _onnxruntime

if TYPE_CHECKING:
    from exporter.target_api import Arrays, Session

FP16 = "fp16"
FP16_RELATIVE = 2e-2
"""Where one core rounds to half after each operator and another after each sum, a chain of operators differs by this
share of the largest value."""


class ArmOptions(TargetOptions, frozen=True, kw_only=True):
    """`[targets.arm]`: keys of the arm target alone.

    Attributes:
        min_runtime: oldest onnxruntime that the bundle must run on; decides opset and IR version.
        fp16: also make a half-precision variant, for cores that compute in it (`asimdhp`, as on a Raspberry Pi 5).
        format: of the other variants: `onnx`, or `ort`, onnxruntime's own, optimized ahead of time for ARM.
    """

    min_runtime: str = _arm64.MIN_RUNTIME
    fp16: bool = False
    format: Literal["onnx", "ort"] = "onnx"


class ArmTarget:
    """The arm target; see `exporter.target_api.Target`."""

    name = "arm"
    version = 1
    summary = "aarch64 Linux: ONNX fp32 and static int8 (u8s8, s8s8 with dot products) on onnxruntime"
    options_type = ArmOptions
    defaults: Mapping[str, Mapping[str, Any]] = {"quantize": {"activations": "uint8", "weights": "int8"}}
    distributions = ("onnxruntime",)

    def missing(self, options: TargetOptions) -> tuple[str, str] | None:
        """Nothing beyond the exporter's own dependencies is needed."""
        return None

    def requires(self, options: TargetOptions) -> Need:
        """The newest opset that the minimum runtime knows, and one int8 file for each kind of core."""
        return _arm64.need(cast(ArmOptions, options).min_runtime)

    def convert(self, request: ConvertRequest, options: TargetOptions, folder: Path) -> tuple[VariantFile, ...]:
        """Copies the ONNX files, or optimizes them for ARM, and makes the half-precision one when it is asked for."""
        make = _arm64.ort_files if cast(ArmOptions, options).format == "ort" else _onnxruntime.copied
        variants = make(request, folder)
        if cast(ArmOptions, options).fp16 and variants[0].name != FP16:
            variants.append(_half(request.float_model, folder))
        return tuple(variants)

    def payload(self, options: TargetOptions) -> Payload:
        """The onnxruntime runner."""
        return _arm64.payload(cast(ArmOptions, options).min_runtime)

    def open_session(self, model: Path, *, simulated: bool) -> Session:
        """Opens the model in onnxruntime, one thread."""
        return onnx_session(model, simulated=simulated)

    def tolerance(self, variant: VariantFile, model: Path, expected: Arrays) -> dict[str, Tolerance]:
        """One int8 step for quantized variants, rounding for float ones."""
        if variant.scheme is not None:
            return int8_tolerance(model, expected)
        return _onnxruntime.float_tolerance(expected, relative=FP16_RELATIVE if variant.name == FP16 else None)


def _half(model: Path, folder: Path) -> VariantFile:
    """Writes the model with half-precision weights and arithmetic; inputs and outputs keep their types.

    Always as ONNX: optimized ahead of time on a machine without half-precision kernels, it would stay in float.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    variant = VariantFile(
        name=FP16, main=f"{FP16}/{_onnxruntime.MODEL}", runtime="onnxruntime", precision="float16",
        requires=("fphp", "asimdhp"),
    )  # fmt: skip
    converted = convert_float_to_float16(onnx.load(model), keep_io_types=True)  # type: ignore[no-untyped-call]
    path = folder / variant.main
    path.parent.mkdir(parents=True)
    external = model.with_name(f"{model.name}.data").is_file()
    onnx.save(converted, path, save_as_external_data=external, location=f"{path.name}.data")
    return variant


TARGET: Target = ArmTarget()
