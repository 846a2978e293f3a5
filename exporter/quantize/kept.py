"""Nodes that must stay float because onnxruntime's quantizer would make something else of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.quantize.coverage import MASKED
from exporter.quantize.gemms import unfit_gemms
from exporter.quantize.states import States, merged

if TYPE_CHECKING:
    import onnx

    from exporter.artifacts import QuantScheme

BOUNDS = "8-bit ranges hold zero, and its bounds do not"
COMPUTED = "its bounds are computed at run time"
DEAD = "it gave nothing but zeros on the calibration data, of which no range can be made"
ODD_BIAS = "its bias is not one value a channel"
APART = "a Softmax needs its values told apart more finely than 8 bits can over their range"
FARTHEST = 255.0
"""Range of what goes into a Softmax at which a step of 8 bits is one: two values a step apart differ by e times.

Scores stay far below it. Masks of -10000 reach beyond, and then the scores beside them are lost.
"""
SCORING = ("Add", "Sub", "Mul", "Where", "Reshape", "Transpose", "Expand", "Unsqueeze", "Squeeze")
"""Operators that put masks on scores, or move them."""


def kept_in_float(graph: onnx.GraphProto, states: States, scheme: QuantScheme) -> dict[str, str]:
    """Names of nodes to leave alone, and why.

    The quantizer removes a Relu or Clip behind an int8 node and has the range of its result do the clipping. A range
    of 8 bits holds zero, is known in advance, and is anything at all where only zeros were seen.

    Args:
        graph: the prepared float graph.
        states: what its tensors looked like.
        scheme: types of activations.
    """
    kept = dict.fromkeys(unfit_gemms(graph), ODD_BIAS)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        biases = [constants[name] for name in node.input[2:] if name in constants]
        if node.op_type == "LayerNormalization" and any(len(bias.dims) > 1 for bias in biases):
            kept[node.name] = ODD_BIAS
        elif node.op_type == "Clip" and (reason := _unfit(node, constants)):
            kept[node.name] = reason
        elif node.op_type in ("Relu", "Clip") and not (node.op_type == "Relu" and scheme.activations == "uint8"):
            seen = [half for half in states.get(node.output[0], ()) if half.values]
            if seen and all(half.minimum == half.maximum == 0 for half in seen):
                kept[node.name] = DEAD
    # No 8-bit range holds a mask and what it masks.
    masked = {name for name, halves in states.items() if any(half.masked for half in halves)}
    reached = (node.name for node in graph.node if masked.intersection((*node.input, *node.output)))
    return kept | dict.fromkeys(_far_apart(graph, states, scheme), APART) | dict.fromkeys(reached, MASKED)


def _far_apart(graph: onnx.GraphProto, states: States, scheme: QuantScheme) -> set[str]:
    """Each Softmax whose input no 8-bit range resolves, and what makes that input of scores and masks."""
    makers = {name: node for node in graph.node for name in node.output}

    def far(name: str) -> bool:
        whole = merged(states[name]) if name in states else None
        if whole is None or not whole.values:
            return False
        low, high = whole.range(scheme.observers.get(name, scheme.observer))
        return max(high, 0.0) - min(low, 0.0) > FARTHEST

    waiting = [node for node in graph.node if node.op_type == "Softmax" and far(node.input[0])]
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found.add(node.name)
            before = (makers[name] for name in node.input if name in makers and far(name))
            waiting.extend(one for one in before if one.op_type in SCORING)
    return found


def _unfit(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> str | None:
    """Why a range cannot do what a Clip does; None where it can."""
    from onnx import numpy_helper

    bounds = {attribute.name: attribute.f for attribute in node.attribute if attribute.name in ("min", "max")}
    for name, given in zip(("min", "max"), node.input[1:], strict=False):
        if given and given not in constants:
            return COMPUTED
        if given:
            bounds[name] = float(numpy_helper.to_array(constants[given]).reshape(-1)[0])
    return None if bounds.get("min", 0.0) <= 0 <= bounds.get("max", 0.0) else BOUNDS
