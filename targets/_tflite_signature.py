"""What the quantizer leaves wrong in a .tflite file, put right: names and types at its edge, and forms of sums."""

from __future__ import annotations

import importlib
from collections.abc import Set
from copy import deepcopy
from pathlib import Path
from typing import Any

from targets._tflite import operator_kinds, tensor_type
from targets._tflite_names import text

DEQUANTIZE = "DEQUANTIZE"
INTEGERS = ("INT8", "INT16")


def mend_signature(float_file: Path, quantized: Path, *, real: bool, masked: Set[str] = frozenset()) -> None:
    """Points the signature's names at the tensors at the quantized graph's edge, and makes that edge float again.

    Where an output is also an operator's input, the quantizer adds a tensor for the output and leaves the signature
    with the integer one; or it adds one for the operator, which takes it with other steps, and makes that the output,
    or leaves the output itself an integer. Sums of 16 bits are told to take any scales.

    Args:
        float_file: what the file was made from.
        quantized: the file, which is written again.
        real: whether outputs that are float in the former are float here too.
        masked: names of tensors that are float at the edge in any case: no integers hold them.
    """
    utils: Any = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    before, after = (utils.read_model(str(path)) for path in (float_file, quantized))
    for old, new in zip(before.signatureDefs, after.signatureDefs, strict=True):
        edges, moved = before.subgraphs[old.subgraphIndex], after.subgraphs[new.subgraphIndex]
        moved.outputs = [_first(after, moved, int(index)) for index in moved.outputs]
        for side, other, kind in (("inputs", "outputs", DEQUANTIZE), ("outputs", "inputs", "QUANTIZE")):
            names = [text(edges.tensors[int(index)].name) for index in getattr(edges, side)]
            pairs = zip(names, map(int, getattr(moved, side)), strict=True)
            kept = [_unrounded(after, moved, at, side, other, kind) if name in masked else at for name, at in pairs]
            setattr(moved, side, kept)
        if real:
            moved.outputs = [
                _as_real(after, moved, index) if tensor_type(edges.tensors[int(was)]) == "FLOAT32" else index
                for was, index in zip(edges.outputs, moved.outputs, strict=True)
            ]
        for side in ("inputs", "outputs"):
            places = dict(zip(map(int, getattr(edges, side)), map(int, getattr(moved, side)), strict=True))
            wanted = {text(entry.name): places[int(entry.tensorIndex)] for entry in getattr(old, side)}
            for entry in getattr(new, side):
                entry.tensorIndex = wanted[text(entry.name)]
    for graph in after.subgraphs:
        _take_any_scales(graph)
    quantized.unlink()
    utils.write_model(after, str(quantized))


def _take_any_scales(graph: Any) -> None:
    """Keeps 16-bit sums from the kernel for powers of two.

    LiteRT takes it where all scales happen to be near powers of two, and crashes where they are far from each other.
    """
    for operator in graph.operators:
        if hasattr(operator.builtinOptions, "potScaleInt16"):
            operator.builtinOptions.potScaleInt16 = False


def _as_real(model: Any, graph: Any, index: int) -> int:
    """The tensor that holds an integer tensor's values in float; one is added where there is none."""
    if tensor_type(graph.tensors[index]) not in INTEGERS:
        return index
    for kind, operator in zip(operator_kinds(model, graph), graph.operators, strict=True):
        if kind == DEQUANTIZE and list(map(int, operator.inputs)) == [index]:
            return int(operator.outputs[0])
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    tensor = deepcopy(graph.tensors[index])
    tensor.name, tensor.type, tensor.quantization = f"{text(tensor.name)}_real", schema.TensorType.FLOAT32, None
    graph.tensors.append(tensor)
    operator = schema.OperatorT()
    operator.opcodeIndex = _code(model, schema)
    operator.inputs, operator.outputs = [index], [len(graph.tensors) - 1]
    graph.operators.append(operator)
    return len(graph.tensors) - 1


def _unrounded(model: Any, graph: Any, index: int, side: str, other: str, kind: str) -> int:
    """The float tensor behind an integer one at the graph's edge, where an operator only turns one into the other."""
    for name, operator in zip(operator_kinds(model, graph), list(graph.operators), strict=True):
        if name == kind and list(map(int, getattr(operator, side))) == [index]:
            graph.operators.remove(operator)
            return int(getattr(operator, other)[0])
    return index


def _first(model: Any, graph: Any, index: int) -> int:
    """The tensor that an integer one was rounded from once more, for an operator that wants another scale."""
    for kind, operator in zip(operator_kinds(model, graph), graph.operators, strict=True):
        given = int(operator.inputs[0]) if len(operator.inputs) else -1
        if kind == "QUANTIZE" and index in operator.outputs and tensor_type(graph.tensors[given]) in INTEGERS:
            return _first(model, graph, given)
    return index


def _code(model: Any, schema: Any) -> int:
    """Which of the model's operator types is DEQUANTIZE."""
    wanted = schema.BuiltinOperator.DEQUANTIZE
    for place, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == wanted:
            return place
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = wanted, wanted, 2
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
