"""Names in a scheme that act on nothing in the file that was made with it."""

from __future__ import annotations

from pathlib import Path

from exporter.artifacts import QuantScheme
from exporter.quantize.coverage import DEQUANTIZE, QUANTIZE


def idle_names(model: Path, scheme: QuantScheme) -> dict[str, tuple[str, ...]]:
    """Names that exist in the float graph, and changed nothing.

    Args:
        model: the QDQ file.
        scheme: what was asked for.

    Returns:
        By key of the scheme: tensors in `observers` that are not rounded (theirs is not the range that counts, or
        nothing in int8 reads them), and nodes in `per_tensor` whose weights are not rounded.
    """
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    rounded = {node.input[0] for node in graph.node if node.op_type == QUANTIZE}
    # What is an output of the graph gives its name to the value that users get, after the rounding.
    rounded |= {node.output[0] for node in graph.node if node.op_type == DEQUANTIZE}
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    dequantized = {node.output[0] for node in graph.node if node.op_type == DEQUANTIZE and node.input[0] in weights}
    weighing = {node.name for node in graph.node if not dequantized.isdisjoint(node.input)}
    idle = {
        "observers": tuple(name for name in scheme.observers if name not in rounded),
        "per_tensor": tuple(name for name in scheme.per_tensor if name not in weighing or not scheme.per_channel),
    }
    return {key: names for key, names in idle.items() if names}
