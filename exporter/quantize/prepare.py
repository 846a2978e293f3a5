"""What a float graph needs before onnxruntime quantizes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import StageError, shorten

if TYPE_CHECKING:
    import onnx

BIAS = 2
"""Index of a Gemm's bias among its inputs."""


def prepare(model: Path, prepared: Path, large: bool) -> None:
    """Folds constants and BatchNorm and infers shapes, which the quantizer relies on.

    Symbolic shape inference does not know every operator; without it the quantizer still works, with fewer shapes.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    for skip_symbolic in (False, True):
        try:
            quant_pre_process(
                model, prepared, skip_symbolic_shape=skip_symbolic, auto_merge=True, save_as_external_data=large
            )
        except Exception as error:
            if skip_symbolic:
                raise StageError(
                    "onnxruntime could not prepare the model for quantization",
                    where=model.name,
                    why=shorten(f"{type(error).__name__}: {error}"),
                ) from error
        else:
            break
    _flatten_biases(prepared, large)


def _flatten_biases(path: Path, large: bool) -> None:
    """Gives every Gemm a bias of shape (N,), where a fused MatMul and Add left (1, N).

    Both mean the same to Gemm; onnxruntime's quantizer takes one value a channel from the bias and fails on a row.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    changed = False
    for node in model.graph.node:
        if node.op_type != "Gemm" or len(node.input) <= BIAS or node.input[BIAS] not in initializers:
            continue
        bias = initializers[node.input[BIAS]]
        if len(bias.dims) == 2 and bias.dims[0] == 1:
            flat = numpy_helper.from_array(
                numpy_helper.to_array(bias).reshape(-1), _free_name(bias.name, initializers)
            )
            initializers[flat.name] = flat
            model.graph.initializer.append(flat)
            node.input[BIAS] = flat.name
            changed = True
    if changed:
        onnx.save(model, path, save_as_external_data=large)


def _free_name(name: str, taken: dict[str, onnx.TensorProto]) -> str:
    while name in taken:
        name += "_flat"
    return name
