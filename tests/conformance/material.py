"""A small CNN with two outputs, as ONNX and in torch, and one target with what it is handed."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from support import quadrant_onnx

from exporter.artifacts import TensorSpec
from exporter.target_api import ConvertRequest, Need, Target, VariantFile

IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8))
OUTPUTS = (
    TensorSpec(name="scores", dtype="float32", shape=("batch", 4)),
    TensorSpec(name="best", dtype="int64", shape=("batch",)),
)


TORCH = '''\
"""The CNN in torch, with the weights that the ONNX file has."""

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        kernel = np.abs(np.random.default_rng(0).normal(size=(8, 1, 3, 3))).astype(np.float32)
        self.kernel = nn.Parameter(torch.from_numpy(kernel))
        self.head = nn.Parameter(torch.eye(4).repeat(1, 8))

    def forward(self, image):
        found = nn.functional.avg_pool2d(torch.relu(nn.functional.conv2d(image, self.kernel, padding=1)), 4)
        scores = nn.functional.linear(torch.flatten(found, 1), self.head)
        return {"scores": scores, "best": scores.argmax(1)}


def make():
    return Net()
'''


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One target and what it is handed."""

    target: Target
    request: ConvertRequest
    images: NDArray[np.float32]
    made: tuple[VariantFile, ...] = ()
    folder: Path = Path()

    def answers(self, model: Path) -> dict[str, NDArray[Any]]:
        """What a model file answers to the images, which are run one by one where the batch is fixed."""
        session = self.target.open_session(model, simulated=False)
        if not self.need.program:
            return dict(session({"image": self.images}))
        single = [session({"image": image[None]}) for image in self.images]
        return {name: np.concatenate([one[name] for one in single]) for name in single[0]}

    @property
    def need(self) -> Need:
        """What the target asks for by default."""
        return self.target.requires(self.target.options_type())

    def convert(self, folder: Path, **changes: Any) -> tuple[VariantFile, ...]:
        """Converts into a new folder, with some artifacts replaced."""
        folder.mkdir()
        request = msgspec.structs.replace(self.request, **changes)
        return self.target.convert(request, self.target.options_type(), folder)

    def reference(self) -> dict[str, NDArray[Any]]:
        """What the float model answers, on onnxruntime."""
        from exporter.onnx_export import onnx_session

        return onnx_session(self.request.float_model)({"image": self.images})


def fixed_batch(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """The same tensors with a batch of 1."""
    return tuple(msgspec.structs.replace(spec, shape=(1, *spec.shape[1:])) for spec in specs)


def write_torch_cnn(path: Path) -> str:
    """Writes a module with a factory of the same CNN; gives the reference to the factory."""
    path.write_text(TORCH, encoding="utf-8")
    return f"{path.name}:make"


def write_program(folder: Path, inputs: tuple[TensorSpec, ...]) -> Path:
    """Captures the CNN with a fixed batch of 1."""
    from exporter.onnx_export import prepare_module, save_program

    write_torch_cnn(folder / "model.py")
    module = runpy.run_path(str(folder / "model.py"))["make"]()
    example = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    path = folder / "program.pt2"
    save_program(prepare_module(module, inputs), example=example, inputs=inputs, path=path)
    return path


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
