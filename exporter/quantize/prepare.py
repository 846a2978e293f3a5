"""What a float graph needs before onnxruntime quantizes it."""

from __future__ import annotations

import tempfile
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import StageError, shorten
from exporter.quantize.equalize import equalize
from exporter.quantize.opset import raised
from exporter.quantize.sharing import share_weights

if TYPE_CHECKING:
    import onnx

PREPARED = "prepared.onnx"
SINGLE_FILE_LIMIT = 1_900_000_000
"""Protobuf ends at 2 GB; above this the weights go to a file beside the model."""
BIAS = 2
"""Index of a Gemm's bias among its inputs."""


def prepare(model: Path, prepared: Path, *, large: bool, equalized: bool = False) -> None:
    """Folds constants and BatchNorm and infers shapes, which the quantizer relies on; `large`: keep weights outside.

    Symbolic shape inference does not know every operator; without it the quantizer still works, with fewer shapes.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    for skip_symbolic in (False, True):
        try:
            quant_pre_process(
                model, prepared, skip_symbolic_shape=skip_symbolic, auto_merge=True, save_as_external_data=large
            )
        except OSError:  # The disk, which a second try would only meet again.
            raise
        except Exception as error:
            if skip_symbolic:
                raise StageError(
                    "onnxruntime could not prepare the model for quantization",
                    where=model.name,
                    why=shorten(f"{type(error).__name__}: {error}"),
                ) from error
        else:
            break
    _tidy(prepared, large=large, equalized=equalized)


def prepare_float(model: Path, folder: Path, *, equalized: bool) -> Path:
    """Writes prepared.onnx, what a float model is quantized from, into a folder.

    Args:
        model: float ONNX file.
        folder: where to write.
        equalized: even out channels between neighbouring layers.
    """
    prepared = folder / PREPARED
    large = is_large(model)
    with tempfile.TemporaryDirectory(dir=folder, prefix="raised-") as place:
        source = model if large else raised(model, Path(place))
        prepare(source, prepared, large=large, equalized=equalized)
    return prepared


def is_large(model: Path) -> bool:
    """Whether a model's weights must lie in a file beside it."""
    return model.stat().st_size + external_size(model) > SINGLE_FILE_LIMIT


def external_size(model: Path) -> int:
    """Bytes of the files beside a model that hold its weights."""
    return sum(file.stat().st_size for file in model.parent.glob(f"{model.name}.*"))


def rewrite(model: onnx.ModelProto, path: Path) -> None:
    """Writes a file anew, with weights beside it where they were there."""
    import onnx

    external = external_size(path) > 0
    for file in path.parent.glob(f"{path.name}.*"):
        file.unlink()  # onnx would write behind what is there.
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")


def _tidy(path: Path, *, large: bool, equalized: bool) -> None:
    """Names nodes that have no name, so that each can be left in float, flattens biases and shares equal weights."""
    import onnx

    model = onnx.load(path)
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = _free_name(f"{node.op_type}_{index}", taken)
            taken.add(node.name)
    _flatten_biases(model)
    if equalized:
        equalize(model)
    # Last: evening out channels changes the weights of one node alone.
    share_weights(model)
    onnx.save(model, path, save_as_external_data=large)


def _flatten_biases(model: onnx.ModelProto) -> None:
    """Gives every Gemm a bias of shape (N,), where a fused MatMul and Add left (1, N).

    Both mean the same to Gemm; onnxruntime's quantizer takes one value a channel from the bias and fails on a row.
    """
    from onnx import numpy_helper

    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
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


def _free_name(name: str, taken: Container[str]) -> str:
    while name in taken:
        name += "_"
    return name
