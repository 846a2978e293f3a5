"""x86-64 servers and desktops: ONNX in float and static int8, on onnxruntime's CPU provider."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import msgspec

from exporter.artifacts import RuntimeNeed, Tolerance
from exporter.errors import InputError, MissingError
from exporter.onnx_export import onnx_session, opset_for_runtime
from exporter.quantize import int8_tolerance
from exporter.target_api import ConvertRequest, Need, Payload, SchemeNeed, Target, TargetOptions, VariantFile
from targets import _onnxruntime

if TYPE_CHECKING:
    from exporter.target_api import Arrays, Session

OPENVINO = "openvino"
OPENVINO_RUNTIME = Path(__file__).parent / "runner" / "openvino_runtime.py"
SUFFIX = f"-{OPENVINO}"
"""Of the names of variants that run on OpenVINO."""
NEED = RuntimeNeed(name=OPENVINO, minimum="2026.4", requirements=("openvino>=2026.4,<2027", "numpy>=1.21,<3"))
INT8 = {
    "any": SchemeNeed(name="int8"),
    "vnni": SchemeNeed(
        name="int8-vnni",
        changes={"reduce_range": False},
        requires=("avx512_vnni|avx_vnni",),
        specialises="int8",
    ),
    "u8u8": SchemeNeed(name="int8-u8u8", changes={"weights": "uint8", "reduce_range": False}),
    # Of the suffix: OpenVINO alone runs it, whose matrix products are faster without zero points. onnxruntime has
    # slow kernels for signed activations on x86.
    "symmetric": SchemeNeed(
        name=f"int8-symmetric{SUFFIX}",
        changes={"weights": "int8", "activations": "int8", "symmetric_activations": True},
    ),
}


class CpuOptions(TargetOptions, frozen=True, kw_only=True):
    """`[targets.cpu]`: keys of the cpu target alone.

    Attributes:
        min_runtime: oldest onnxruntime that the bundle must run on; decides opset and IR version.
        int8: the int8 files to make: `any` for every CPU; `vnni` with 8-bit weights for CPUs that sum products
            of bytes in 32 bits, which the runner picks there; `u8u8` with unsigned weights, exact everywhere too,
            often slower than `any` and more accurate; `symmetric` with signed activations around zero, for OpenVINO
            alone. By default `any`, and of transformers `symmetric` too where OpenVINO is among the runtimes and the
            file passes the gate.
        runtimes: runtimes to run the files on; with `openvino` each file but a dynamic one becomes a second variant,
            which is tested, judged and measured there.
    """

    min_runtime: str = "1.19"
    int8: Annotated[tuple[Literal["any", "vnni", "u8u8", "symmetric"], ...], msgspec.Meta(min_length=1)] | None = None
    runtimes: tuple[Literal["onnxruntime", "openvino"], ...] = ("onnxruntime",)


class CpuTarget:
    """The cpu target; see `exporter.target_api.Target`."""

    name = "cpu"
    version = 2
    summary = "x86-64: ONNX fp32 and static int8 (u8s8) on onnxruntime"
    options_type = CpuOptions
    defaults: Mapping[str, Mapping[str, Any]] = {
        # Sums of u8 x s8 products saturate on x86 CPUs without VNNI. 7-bit weights cannot, so that one file gives the
        # same answers on every x86 CPU, at the same speed.
        "quantize": {"activations": "uint8", "weights": "int8", "reduce_range": True}
    }
    distributions = ("onnxruntime", OPENVINO)

    def missing(self, options: TargetOptions) -> tuple[str, str] | None:
        """Nothing beyond the exporter's own dependencies is needed."""
        return None

    def requires(self, options: TargetOptions) -> Need:
        """The newest opset that the minimum runtime knows, and the int8 files that the plan asks for."""
        chosen = cast(CpuOptions, options)
        minimum = chosen.min_runtime
        if "onnxruntime" not in chosen.runtimes:
            raise InputError(
                "onnxruntime is what the other runtimes are compared with",
                where="targets.cpu.runtimes",
                hint='write `runtimes = ["onnxruntime", "openvino"]`',
            )
        if OPENVINO in chosen.runtimes and find_spec(OPENVINO) is None:
            raise MissingError(
                "openvino cannot be imported",
                where="targets.cpu.runtimes",
                hint="pip install 'edge-exporter[openvino]'",
            )
        opset, ir_version = opset_for_runtime(minimum)
        return Need(
            opset=opset,
            ir_version=ir_version,
            runtime=f"onnxruntime {minimum}",
            int8=_int8_files(chosen),
            dynamic=True,
        )

    def convert(self, request: ConvertRequest, options: TargetOptions, folder: Path) -> tuple[VariantFile, ...]:
        """Copies the ONNX files: onnxruntime runs them as they are."""
        variants = [_by_name(variant) for variant in _onnxruntime.copied(request, folder)]
        if OPENVINO in cast(CpuOptions, options).runtimes:
            variants += [
                _on_openvino(one, folder) for one in variants if one.runtime != OPENVINO and not _is_dynamic(one)
            ]
        return tuple(variants)

    def payload(self, options: TargetOptions) -> Payload:
        """The onnxruntime runner."""
        chosen = cast(CpuOptions, options)
        others = [(NEED, OPENVINO_RUNTIME)] if OPENVINO in chosen.runtimes else []
        return _onnxruntime.payload(chosen.min_runtime, others=others)

    def open_session(self, model: Path, *, simulated: bool) -> Session:
        """Opens the model in onnxruntime, one thread, or in OpenVINO when it is a variant for that."""
        if model.parent.name.endswith(SUFFIX) and not simulated:
            from targets.runner import openvino_runtime

            return openvino_runtime.open_session(str(model), 1).run
        return onnx_session(model, simulated=simulated)

    def tolerance(self, variant: VariantFile, model: Path, expected: Arrays) -> dict[str, Tolerance]:
        """One int8 step for quantized variants, rounding for float ones."""
        if variant.scheme is None:
            return _onnxruntime.float_tolerance(expected)
        return int8_tolerance(model, expected)


def _int8_files(options: CpuOptions) -> tuple[SchemeNeed, ...]:
    """What the plan asks for, or what suits the runtimes."""
    fast = OPENVINO in options.runtimes
    if options.int8 is None:
        return (INT8["any"], msgspec.structs.replace(INT8["symmetric"], offered=True)) if fast else (INT8["any"],)
    if "symmetric" in options.int8 and not fast:
        raise InputError(
            "`symmetric` makes an int8 file for OpenVINO, which is not among the runtimes",
            where="targets.cpu.int8",
            hint='write `runtimes = ["onnxruntime", "openvino"]`, or leave `symmetric` out',
        )
    return tuple(INT8[kind] for kind in dict.fromkeys(options.int8))


def _by_name(variant: VariantFile) -> VariantFile:
    """A file that is made for OpenVINO alone is a variant for that."""
    return msgspec.structs.replace(variant, runtime=OPENVINO) if variant.name.endswith(SUFFIX) else variant


def _is_dynamic(variant: VariantFile) -> bool:
    return variant.scheme is not None and variant.scheme.dynamic


def _on_openvino(variant: VariantFile, folder: Path) -> VariantFile:
    """The same file as a variant for OpenVINO."""
    name = f"{variant.name}{SUFFIX}"
    special = f"{variant.specialises}{SUFFIX}" if variant.specialises else None
    main = f"{name}/{_onnxruntime.MODEL}"
    other = msgspec.structs.replace(variant, name=name, main=main, runtime=OPENVINO, specialises=special)
    return _onnxruntime.place(folder / variant.main, folder, other)


TARGET: Target = CpuTarget()
