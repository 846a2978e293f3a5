"""A small CNN with two outputs, and one target with what it is handed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from support import quadrant_onnx

from exporter.artifacts import TensorSpec
from exporter.target_api import ConvertRequest, Target, VariantFile

IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8))
OUTPUTS = (
    TensorSpec(name="scores", dtype="float32", shape=("batch", 4)),
    TensorSpec(name="best", dtype="int64", shape=("batch",)),
)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One target and what it is handed."""

    target: Target
    request: ConvertRequest
    images: NDArray[np.float32]

    def convert(self, folder: Path, **changes: Any) -> tuple[VariantFile, ...]:
        """Converts into a new folder, with some artifacts replaced."""
        folder.mkdir()
        request = msgspec.structs.replace(self.request, **changes)
        return self.target.convert(request, self.target.options_type(), folder)

    def reference(self) -> dict[str, NDArray[Any]]:
        """What the float model answers, on onnxruntime."""
        from exporter.onnx_export import onnx_session

        return onnx_session(self.request.float_model)({"image": self.images})


def write_cnn(path: Path, *, opset: int = 17, ir_version: int = 8, external: bool = False) -> None:
    """Writes a CNN with a float and an integer output: image [batch, 1, 8, 8] -> scores [batch, 4], best [batch]."""
    import onnx
    from onnx import TensorProto, helper

    model = quadrant_onnx(opset=opset, ir_version=ir_version)
    model.graph.node.append(helper.make_node("ArgMax", ["scores"], ["best"], name="argmax", axis=1, keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["batch"]))
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
