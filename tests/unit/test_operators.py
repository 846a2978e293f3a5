"""Time in each operator: shares of what ran, told by the nodes of the file, and by their torch modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import quadrants

from exporter.artifacts import TensorSpec
from exporter.measure.operators import node_latency
from exporter.onnx_export import export_onnx, module_paths, prepare_module
from exporter.quantize import calibrate, quantize_calibrated
from exporter.quantize.static import PREPARED


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A matrix product that takes nearly all of the time, one that takes little, and a Sigmoid."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["a"], name="slow"),
        helper.make_node("Sigmoid", ["a"], ["b"], name="sigmoid"),
        helper.make_node("MatMul", ["b", "small"], ["y"], name="quick"),
    ]
    weights = {"large": random.normal(size=(1024, 1024)), "small": random.normal(size=(1024, 2))}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


X = np.random.default_rng(1).normal(size=(8, 1024)).astype(np.float32)


def test_the_node_that_takes_the_time_is_first_and_shares_sum_to_one(network):
    found = node_latency(network, [{"x": X}])
    assert found[0].node == "slow"
    assert found[0].share > 0.5
    assert {one.node for one in found} == {"slow", "sigmoid", "quick"}
    assert sum(one.share for one in found) == pytest.approx(1)
    assert [one.median_ns for one in found] == sorted((one.median_ns for one in found), reverse=True)
    assert not list(network.parent.glob("*.json")), "no trace is left behind"


def test_fused_int8_nodes_are_told_by_the_nodes_of_the_file(network, tmp_path):
    from exporter.artifacts import QuantScheme

    (tmp_path / "calibrated").mkdir()
    (tmp_path / "int8").mkdir()
    calibrate(
        network, tmp_path / "calibrated", histogram=False, symmetric=False, batches=[{"x": X}],
        progress=lambda done: None,
    )  # fmt: skip
    assert (tmp_path / "calibrated" / PREPARED).is_file()
    quantize_calibrated(tmp_path / "calibrated", tmp_path / "int8" / "m.onnx", scheme=QuantScheme(reduce_range=True))
    found = node_latency(tmp_path / "int8" / "m.onnx", [{"x": X}])
    by_node = {one.node: one.op for one in found}
    assert (by_node["slow"], by_node["quick"]) == ("QLinearMatMul", "MatMulIntegerToFloat")
    added = {one.op for one in found if one.node is None}
    assert added == {"QuantizeLinear"}, "that of the input; the last product writes floats"


def test_nodes_of_an_exported_model_keep_the_paths_of_their_modules(tmp_path):
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
            self.head = nn.Linear(4, 2)

        def forward(self, image):
            return self.head(self.stem(image).mean((2, 3)))

    spec = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8))
    images, _ = quadrants(2, seed=0)
    prepared = prepare_module(Net().eval(), (spec,), ())
    path = tmp_path / "model.onnx"
    export_onnx(prepared, example={"image": images}, inputs=(spec,), opset=18, ir_version=9, path=path)
    paths = module_paths(path)
    by_op = {node.op_type: node.name for node in onnx.load(path).graph.node}
    assert paths[by_op["Conv"]] == "stem.0"
    assert paths[by_op["Relu"]] == "stem.2"
    assert paths[by_op["Gemm"]] == paths["output"] == "head"
    assert str(Path(__file__).parent) not in path.read_bytes().decode(errors="ignore"), "no path of this machine"


def test_a_file_that_torch_exported_itself_tells_its_modules(tmp_path):
    import torch
    from torch import nn

    program = torch.onnx.export(
        nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).eval(), (torch.zeros(2, 3),), dynamo=True,
        input_names=["x"], verbose=False,
    )  # fmt: skip
    program.save(str(tmp_path / "model.onnx"))
    paths = module_paths(tmp_path / "model.onnx")
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert [paths[node.name] for node in nodes] == ["0", "1", "2"]


def test_a_file_that_tells_nothing_has_no_modules(network):
    assert module_paths(network) == {}
