"""Reading back what an ONNX file says of its inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from exporter.artifacts import Dim, DType, Signature, TensorSpec
from exporter.errors import StageError

if TYPE_CHECKING:
    import onnx


def read_signature(path: Path) -> Signature:
    """Inputs and outputs of an ONNX file; weights are not read.

    Raises:
        StageError: an element type that is not supported.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    return Signature(
        inputs=tuple(_spec(value) for value in graph.input if value.name not in stored),
        outputs=tuple(_spec(value) for value in graph.output),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        known = dim.HasField("dim_value")
        shape.append(int(dim.dim_value) if known else dim.dim_param or f"{value.name}_axis{axis}")
    return TensorSpec(name=value.name, dtype=_dtype(tensor.elem_type, value.name), shape=tuple(shape))


def _dtype(code: int, name: str) -> DType:
    from onnx import helper

    wanted = str(helper.tensor_dtype_to_np_dtype(code))
    for known in get_args(DType):
        if known == wanted:
            found: DType = known
            return found
    raise StageError(f"the exported tensor '{name}' has the element type {wanted}, which is not supported")
