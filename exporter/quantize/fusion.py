"""Which nodes of a QDQ file onnxruntime really runs in int8: it fuses Q/DQ pairs when it loads the file, or not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import Lint
from exporter.quantize.coverage import DEQUANTIZE, FLOAT_RESULTS, QUANTIZE, quantizable_ops

if TYPE_CHECKING:
    import onnx


def optimised(model: Path, *, signed: bool = False) -> onnx.ModelProto:
    """The graph that onnxruntime runs for a file, without the values of weights.

    Args:
        model: the file.
        signed: as on ARM, whose kernels take signed activations; x86 leaves those in float, or makes them unsigned.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="optimised-") as temp:
        path = Path(temp) / "model.onnx"
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        if signed:
            options.add_session_config_entry("session.qdqisint8allowed", "1")
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        return onnx.load(path, load_external_data=False)


def fusion_lints(path: Path, int8_model: onnx.ModelProto, *, signed: bool) -> Iterator[Lint]:
    """Int8 nodes that run in float all the same, and how many conversions are left.

    Args:
        path: the QDQ file.
        int8_model: the same, loaded.
        signed: see `optimised`.
    """
    graph = optimised(path, signed=signed).graph
    quantized, dequantized = (
        {
            name
            for node in graph.node
            if node.op_type == op
            for name in (node.output if op == DEQUANTIZE else node.input[:1])
        }
        for op in (QUANTIZE, DEQUANTIZE)
    )
    with_form = quantizable_ops()
    unfused = [
        node
        for node in graph.node
        if node.op_type in with_form
        and dequantized.intersection(node.input)
        and (
            quantized.intersection(node.output)
            or (node.op_type in FLOAT_RESULTS and dequantized.issuperset(node.input[:2]))
        )
    ]
    for node in unfused:
        yield Lint(
            kind="unfused",
            subject=node.name,
            text=f"onnxruntime runs this {node.op_type} in float, between conversions from and to 8 bits",
            action="[quantize] exclude keeps it in float without the conversions",
        )
    left = sum(node.op_type in (QUANTIZE, DEQUANTIZE) for node in graph.node)
    before = sum(node.op_type in (QUANTIZE, DEQUANTIZE) for node in int8_model.graph.node)
    ends = len(int8_model.graph.input) + len(int8_model.graph.output)
    if left > ends:
        yield Lint(
            kind="conversions",
            subject="graph",
            text=f"{left} of {before} Q/DQ nodes are left when onnxruntime has fused the graph",
            action=f"each is a pass over its tensor; inputs and outputs alone need {ends} at most",
        )
