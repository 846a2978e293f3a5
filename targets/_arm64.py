"""What boards and phones with 64-bit ARM cores share on onnxruntime: which int8 files, and ORT format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import msgspec

from exporter.onnx_export import opset_for_runtime
from exporter.target_api import ConvertRequest, Need, Payload, SchemeNeed, VariantFile
from targets import _onnxruntime

MACHINE = "aarch64"
GLIBC = "2.28"
MIN_RUNTIME = "1.19"
ORT_MODEL = "model.ort"
STAND_INS = "stand-ins"
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


def need(minimum: str) -> Need:
    """The newest opset that the minimum runtime knows, and one int8 file for each kind of core."""
    opset, ir_version = opset_for_runtime(minimum)
    return Need(opset=opset, ir_version=ir_version, runtime=f"onnxruntime {minimum}", int8=INT8)


def payload(minimum: str) -> Payload:
    """The onnxruntime runner, for 64-bit ARM."""
    return _onnxruntime.payload(minimum, machine=MACHINE, glibc=GLIBC)


def ort_files(request: ConvertRequest, folder: Path) -> list[VariantFile]:
    """The float file and the int8 ones in ORT format, optimized ahead of time for ARM."""
    return [_optimized(variant, folder) for variant in _onnxruntime.copied(request, folder)]


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


def write_required_operators(models: Sequence[Path], path: Path) -> None:
    """Writes what a reduced build of onnxruntime needs to run these files: operators, and the types used with them.

    Args:
        models: in ORT format.
        path: the configuration for onnxruntime's `--include_ops_by_config`.
    """
    import onnxruntime
    from onnxruntime.tools.ort_format_model import create_config_from_models

    with TemporaryDirectory(prefix="edge-exporter-operators-") as folder:
        written = Path(folder) / path.name
        create_config_from_models(list(models), written, enable_type_reduction=True)
        # Its own heading names files where they lie just now.
        lines = [line for line in written.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    heading = f"# Operators and types of these files in ORT format, by onnxruntime {onnxruntime.__version__}"
    path.write_text("\n".join((heading, *lines, "")), encoding="utf-8")
