"""What a scheme says of single nodes and tensors, checked and in the words of onnxruntime's quantizer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from exporter.artifacts import QuantScheme
from exporter.errors import InputError, closest

if TYPE_CHECKING:
    import onnx


def check_names(graph: onnx.GraphProto, scheme: QuantScheme, tensors: Collection[str]) -> None:
    """Refuses names that the graph does not have, which would act on nothing.

    Args:
        graph: the prepared float graph.
        scheme: names nodes, operators and tensors.
        tensors: those that have a range.

    Raises:
        InputError: naming the first key with unknown names, and the closest that exist.
    """
    nodes = [node.name for node in graph.node]
    ops = sorted({node.op_type for node in graph.node})
    of_graph = "node names are those of the exported ONNX graph"
    _check("exclude", scheme.exclude, "node", nodes, of_graph)
    _check("per_tensor", scheme.per_tensor, "node", nodes, of_graph)
    _check("ops", scheme.ops, "operator", ops, f"the model's operators: {', '.join(ops)}")
    _check(
        "observers",
        scheme.observers,
        "quantized tensor",
        sorted(tensors),
        "tensors are those of the exported ONNX graph",
    )


def _check(key: str, names: Iterable[str], kind: str, known: Sequence[str], hint: str) -> None:
    unknown = [f"'{name}'{closest(name, known)}" for name in names if name not in known]
    if unknown:
        raise InputError(f"no {kind} is called {', '.join(unknown)}", where=f"quantize.{key}", hint=hint)


def one_scale(graph: onnx.GraphProto, scheme: QuantScheme) -> dict[str, list[dict[str, Any]]]:
    """The weights that get one scale each, in the quantizer's words: those of `scheme.per_tensor`, and some more.

    A ConvTranspose in groups has a scale for each place in a group, and so none for the channels of its bias.
    """
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    nodes = [node for node in graph.node if node.name in scheme.per_tensor or _biased_groups(node)]
    found = {name for node in nodes for name in node.input if name in weights}
    return {
        name: [{"quant_type": quant_type(scheme.weights), "symmetric": True, "reduce_range": scheme.reduce_range}]
        for name in sorted(found)
    }


def _biased_groups(node: onnx.NodeProto) -> bool:
    """Whether a node is a ConvTranspose in groups that has a bias."""
    groups = next((one.i for one in node.attribute if one.name == "group"), 1)
    return node.op_type == "ConvTranspose" and groups > 1 and len(node.input) > 2 and bool(node.input[2])


def quant_type(name: str) -> Any:
    """Onnxruntime's QuantType of an element type."""
    from onnxruntime.quantization import QuantType

    return {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}[name]
