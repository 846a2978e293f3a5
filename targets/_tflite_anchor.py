"""An operator at the end of a .tflite file, for the quantizer's sake."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from targets import _tflite

ANCHOR = "an operator at the end"


def anchored(model: Any) -> bytes:
    """A float file with one more operator at its end, that no other needs; `remove_anchor` removes it.

    The quantizer counts operators that take a tensor, and -1 for the graph's output; where it puts a conversion in,
    the operator of number -1, which is the last one, gets it as well. So the last one must not take such a tensor.
    """
    utils: Any = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    graph = model.subgraphs[0]
    buffer, code, operator = schema.BufferT(), schema.OperatorCodeT(), schema.OperatorT()
    buffer.data = bytes(4)
    model.buffers.append(buffer)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RANK
    model.operatorCodes.append(code)
    taken, given = schema.TensorT(), schema.TensorT()
    taken.name, taken.shape, taken.buffer = f"{ANCHOR}_taken", [1], len(model.buffers) - 1
    given.name, given.shape, given.buffer = f"{ANCHOR}_given", [], 0
    taken.type = given.type = schema.TensorType.INT32
    graph.tensors += [taken, given]
    count = len(graph.tensors)
    operator.opcodeIndex, operator.inputs, operator.outputs = len(model.operatorCodes) - 1, [count - 2], [count - 1]
    graph.operators.append(operator)
    return bytes(utils.convert_object_to_bytearray(model))


def remove_anchor(quantized: Path) -> None:
    """Takes what `anchored` added out of what was made of it, and writes the file again."""
    model = _tflite.read_model(quantized)
    graph = model.subgraphs[0]
    names = [_tflite.text(tensor.name) for tensor in graph.tensors]
    first, second = names.index(f"{ANCHOR}_taken"), names.index(f"{ANCHOR}_given")
    (anchor,) = [one for one in graph.operators if list(map(int, one.outputs)) == [second]]
    graph.operators.remove(anchor)
    places = {old: new for new, old in enumerate(one for one in range(len(names)) if one not in (first, second))}

    def moved(indices: Any) -> list[int]:
        return [places.get(int(one), -1) for one in indices]

    for side in (graph, *graph.operators):
        side.inputs, side.outputs = moved(side.inputs), moved(side.outputs)
    for entry in (one for side in model.signatureDefs for one in (*side.inputs, *side.outputs)):
        entry.tensorIndex = places[int(entry.tensorIndex)]
    graph.tensors = [graph.tensors[one] for one in places]
    del model.operatorCodes[anchor.opcodeIndex]
    for operator in (one for graph in model.subgraphs for one in graph.operators):
        operator.opcodeIndex -= operator.opcodeIndex > anchor.opcodeIndex
    quantized.unlink()
    importlib.import_module("ai_edge_litert.tools.flatbuffer_utils").write_model(model, str(quantized))
