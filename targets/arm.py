"""64-bit ARM boards with Linux: ONNX in float and static int8, on onnxruntime's CPU provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from exporter.artifacts import Tolerance
from exporter.onnx_export import onnx_session, opset_for_runtime
from exporter.quantize import int8_tolerance
from exporter.target_api import ConvertRequest, Need, Payload, SchemeNeed, Target, TargetOptions, VariantFile
from targets import _onnxruntime

if TYPE_CHECKING:
    from exporter.target_api import Arrays, Session

MACHINE = "aarch64"
GLIBC = "2.28"
FP16 = "fp16"
ORT_MODEL = "model.ort"
STAND_INS = "stand-ins"
FP16_RELATIVE = 2e-2
"""Where one core rounds to half after each operator and another after each sum, a chain of operators differs by this
share of the largest value."""
INT8 = (
    # ARM cores add products of bytes in 32 bits, so that weights may use all 8 bits. `asimd` is on every 64-bit ARM
    # core and on no other: x86, which adds some of these products in 16 bits, must neither judge nor run the files.
    SchemeNeed(
        name="int8",
        changes={"activations": "uint8", "weights": "int8", "reduce_range": False},
        requires=("asimd",),
    ),
    # With dot products onnxruntime's kernels for signed activations execute the least. Their range stays asymmetric:
    # a symmetric one leaves a Relu as an operator of its own, and half of the steps unused.
    SchemeNeed(
        name="int8-dotprod",
        changes={"activations": "int8", "weights": "int8", "reduce_range": False, "symmetric_activations": False},
        requires=("asimddp",),
        specialises="int8",
    ),
)


class ArmOptions(TargetOptions, frozen=True, kw_only=True):
    """`[targets.arm]`: keys of the arm target alone.

    Attributes:
        min_runtime: oldest onnxruntime that the bundle must run on; decides opset and IR version.
        fp16: also make a half-precision variant, for cores that compute in it (`asimdhp`, as on a Raspberry Pi 5).
        format: of the other variants: `onnx`, or `ort`, onnxruntime's own, optimized ahead of time for ARM.
    """

    min_runtime: str = "1.19"
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

    def missing(self) -> tuple[str, str] | None:
        """Nothing beyond the exporter's own dependencies is needed."""
        return None

    def requires(self, options: TargetOptions) -> Need:
        """The newest opset that the minimum runtime knows, and one int8 file for each kind of core."""
        minimum = cast(ArmOptions, options).min_runtime
        opset, ir_version = opset_for_runtime(minimum)
        return Need(opset=opset, ir_version=ir_version, runtime=f"onnxruntime {minimum}", int8=INT8)

    def convert(self, request: ConvertRequest, options: TargetOptions, folder: Path) -> tuple[VariantFile, ...]:
        """Copies the ONNX files, or optimizes them for ARM, and makes the half-precision one when it is asked for."""
        variants = _onnxruntime.copied(request, folder)
        if cast(ArmOptions, options).format == "ort":
            variants = [_optimized(variant, folder) for variant in variants]
        if cast(ArmOptions, options).fp16 and variants[0].name != FP16:
            variants.append(_half(request.float_model, folder))
        return tuple(variants)

    def payload(self, options: TargetOptions) -> Payload:
        """The onnxruntime runner."""
        return _onnxruntime.payload(cast(ArmOptions, options).min_runtime, machine=MACHINE, glibc=GLIBC)

    def open_session(self, model: Path, *, simulated: bool) -> Session:
        """Opens the model in onnxruntime, one thread."""
        return onnx_session(model, simulated=simulated)

    def tolerance(self, variant: VariantFile, model: Path, expected: Arrays) -> dict[str, Tolerance]:
        """One int8 step for quantized variants, rounding for float ones."""
        if variant.scheme is not None:
            return int8_tolerance(model, expected)
        return _onnxruntime.float_tolerance(expected, relative=FP16_RELATIVE if variant.name == FP16 else None)


def _optimized(variant: VariantFile, folder: Path) -> VariantFile:
    """Turns a variant's ONNX file into ORT format for ARM; an int8 one's stays as what simulates it elsewhere."""
    import onnxruntime

    model = folder / variant.main
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(model.with_name(ORT_MODEL))
    options.add_session_config_entry("session.save_model_format", "ORT")
    # x86 would turn signed activations into unsigned ones, and lay floats out for its own vectors: ARM wants neither.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    onnxruntime.InferenceSession(
        str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
    )
    kept = f"{STAND_INS}/{variant.name}/{_onnxruntime.MODEL}" if variant.scheme is not None else None
    if kept is not None:
        (folder / kept).parent.mkdir(parents=True)
    for file in (one for one in model.parent.iterdir() if one.name.startswith(_onnxruntime.MODEL)):
        if kept is not None:
            file.rename((folder / kept).with_name(file.name))
        else:
            file.unlink()
    main = f"{PurePosixPath(variant.main).parent}/{ORT_MODEL}"
    return msgspec.structs.replace(variant, main=main, stand_in=kept)


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
