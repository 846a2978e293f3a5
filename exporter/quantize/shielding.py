"""Convolutions and products that were left in float, kept from onnxruntime, which would quantize them after all.

Its optimizer WeightBiasQuantization (since 1.21) gives float weights of Conv, ConvTranspose and Gemm one 8-bit scale
where the input comes out of a DequantizeLinear. A node that stays float for its own noise is such a node, behind and
before others in int8. It looks no further than at the node that makes the input: a sum of one value in between, which
no optimizer takes away, keeps it off for the price of a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.quantize.coverage import DEQUANTIZE
from exporter.quantize.naming import free_name, tensor_names

if TYPE_CHECKING:
    import onnx

WEIGHING = ("Conv", "ConvTranspose", "Gemm")


def shield_floats(model: onnx.ModelProto) -> list[str]:
    """Puts a copy between float nodes that have weights and the DequantizeLinear that makes their input.

    Args:
        model: a QDQ file, changed in place.

    Returns:
        Names of the nodes.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    floats = {t.name for t in graph.initializer if t.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)}
    back = {node.output[0] for node in graph.node if node.op_type == DEQUANTIZE}
    found = [
        node for node in graph.node if node.op_type in WEIGHING and node.input[0] in back and node.input[1] in floats
    ]
    taken = set(tensor_names(graph))
    copies: dict[str, str] = {}
    for node in found:
        name = node.input[0]
        if name not in copies:
            copies[name] = free_name(f"{name}_float", taken)
            taken.add(copies[name])
        node.input[0] = copies[name]
    for name, copy in copies.items():
        maker = next(index for index, node in enumerate(graph.node) if name in node.output)
        graph.node.insert(maker + 1, helper.make_node("Sum", [name], [copy], name=f"copy of {name}"))
    return [node.name for node in found]
