"""Which nodes of a QDQ graph compute in int8, which stay float, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import Coverage, QuantScheme, Skipped

if TYPE_CHECKING:
    import onnx

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
FLOAT_RESULTS = ("MatMul", "Gemm")
"""Operators whose int8 kernels can write floats."""
EXCLUDED = "left in float by name"
MASKED = "masked values pass through it"
OVERFLOW = "its bias does not fit into 32 bits at the scales of its input and its weights"


def is_shield(node: onnx.NodeProto) -> bool:
    """Whether a node only keeps a float node's input from what quantizes it; see `exporter.quantize.shielding`."""
    return node.op_type == "Sum" and len(node.input) == 1


def coverage_of(model: Path, scheme: QuantScheme, left: Mapping[str, str] | None = None) -> Coverage:
    """Reads the coverage off a QDQ file.

    A node counts as int8 when each of its float inputs comes from a DequantizeLinear and its result goes to a
    QuantizeLinear, or it is a matrix product: the patterns that runtimes fuse into an int8 kernel. Nodes without
    float results (shape arithmetic) are not counted.

    Args:
        model: the QDQ file.
        scheme: how it was quantized.
        left: further nodes that were left in float, and why.
    """
    import onnx

    loaded = onnx.load(model, load_external_data=False)
    with_int8_form = quantizable_ops()
    floats = _float_tensors(loaded)
    producer = {name: node.op_type for node in loaded.graph.node for name in node.output}
    consumers: dict[str, set[str]] = {}
    for node in loaded.graph.node:
        for name in node.input:
            consumers.setdefault(name, set()).add(node.op_type)
    reasons = {**(left or {}), **dict.fromkeys(scheme.exclude, EXCLUDED)}
    quantized: Counter[str] = Counter()
    skipped = []
    eligible = 0
    for node in loaded.graph.node:
        if is_shield(node):
            continue
        if node.op_type in (QUANTIZE, DEQUANTIZE, "Constant", "Identity") or not floats.intersection(node.output):
            continue
        has_form = node.op_type in with_int8_form
        eligible += has_form
        reason = reasons.get(node.name) or _reason(node, has_form, floats, producer, consumers)
        if reason is None:
            quantized[node.op_type] += 1
        else:
            skipped.append(Skipped(node=node.name or node.output[0], op=node.op_type, reason=reason))
    return Coverage(
        eligible=eligible,
        quantized=quantized.total(),
        skipped=tuple(skipped),
        quantized_ops=dict(sorted(quantized.items())),
    )


def quantizable_ops() -> set[str]:
    """Operators that onnxruntime has an int8 form of."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return set(QDQRegistry) | set(QLinearOpsRegistry)


def _reason(
    node: onnx.NodeProto,
    has_form: bool,
    floats: set[str],
    producer: dict[str, str],
    consumers: dict[str, set[str]],
) -> str | None:
    """Why a node stays float, or None when it is int8."""
    if not has_form:
        return "onnxruntime has no int8 form of this operator"
    float_inputs = [name for name in node.input if name in floats]
    from_float = [name for name in float_inputs if producer.get(name) != DEQUANTIZE]
    if from_float:
        return f"its input '{from_float[0]}' is not quantized"
    rounded = any(QUANTIZE in consumers.get(name, ()) for name in node.output)
    if not rounded and node.op_type not in FLOAT_RESULTS:
        return "its result is not quantized"
    return None


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of tensors with a float type, from shape inference, declared values and initializers."""
    import onnx

    float_types = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    declared = [*graph.input, *graph.output, *graph.value_info]
    names = {value.name for value in declared if value.type.tensor_type.elem_type in float_types}
    names |= {tensor.name for tensor in graph.initializer if tensor.data_type in float_types}
    # A tensor whose type nothing states is counted as float, so that it is reported rather than dropped.
    stated = {value.name for value in declared} | {tensor.name for tensor in graph.initializer}
    names |= {name for node in graph.node for name in node.output if name and name not in stated}
    return names
