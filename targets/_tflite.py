"""What a .tflite file says about itself: which operators compute in integers, and the steps of its outputs."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import Coverage, EdgeType, Skipped, Tolerance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EDGES = ("QUANTIZE", "DEQUANTIZE")
FLOATS = ("FLOAT32", "FLOAT16", "FLOAT64")
INTEGERS = ("INT8", "INT16")
STEPS = 1.01
"""Kernels round differently by one step; the rest is float rounding of the comparison."""
FLOAT_RELATIVE = 1e-4


class Operator:
    """One operator: its type, the name of its first result, and the types of its tensors."""

    def __init__(self, model: Any, graph: Any, operator: Any, names: tuple[dict[int, str], dict[int, str]]) -> None:
        operators, types = names
        code = model.operatorCodes[operator.opcodeIndex]
        self.kind = operators[max(code.builtinCode, code.deprecatedBuiltinCode)]
        results = [graph.tensors[index] for index in operator.outputs if index >= 0]
        taken = [graph.tensors[index] for index in operator.inputs if index >= 0]
        self.name = text(results[0].name) if results else self.kind
        self.results = [types[tensor.type] for tensor in results]
        self.taken = [types[tensor.type] for tensor in taken]


def operators(model: Path) -> list[Operator]:
    """All operators of a file, in the order in which they run."""
    schema = _library("schema_py_generated")
    read = _read(model)
    names = (_names(schema.BuiltinOperator), _names(schema.TensorType))
    return [Operator(read, graph, operator, names) for graph in read.subgraphs for operator in graph.operators]


def kinds(model: Path) -> set[str]:
    """Types of the operators of a file."""
    return {operator.kind for operator in operators(model)}


def coverage(model: Path, *, dynamic: bool, excluded: tuple[str, ...] = ()) -> Coverage:
    """Which operators compute in integers.

    Args:
        model: the quantized file.
        dynamic: activations are float at the edges of operators; those with integer weights compute in integers.
        excluded: operator types that were to stay float.
    """
    quantized: Counter[str] = Counter()
    skipped = []
    for operator in operators(model):
        whole = any(kind in INTEGERS for kind in (operator.taken if dynamic else operator.results))
        floats = any(kind in FLOATS for kind in (*operator.taken, *operator.results))
        if operator.kind in EDGES or not (whole or floats):
            continue  # A change of type, or arithmetic on shapes and indices.
        if whole:
            quantized[operator.kind] += 1
        else:
            reason = "excluded by the plan" if operator.kind in excluded else "the quantizer leaves it in float"
            skipped.append(Skipped(node=operator.name, op=operator.kind, reason=reason))
    return Coverage(
        eligible=sum(quantized.values()) + len(skipped),
        quantized=sum(quantized.values()),
        skipped=tuple(skipped),
        quantized_ops=dict(quantized),
    )


def edges(model: Path) -> tuple[EdgeType, ...]:
    """Inputs and outputs whose elements are integers that stand for real numbers, in the order of the signature."""
    schema = _library("schema_py_generated")
    read = _read(model)
    kinds, graph = _names(schema.TensorType), read.subgraphs[0]
    found = []
    for entry in (*read.signatureDefs[0].inputs, *read.signatureDefs[0].outputs):
        tensor = graph.tensors[entry.tensorIndex]
        kind, steps = kinds[tensor.type], tensor.quantization
        if kind in INTEGERS and steps is not None and steps.scale is not None and len(steps.scale) == 1:
            found.append(
                EdgeType(
                    tensor=text(entry.name),
                    dtype="int8" if kind == "INT8" else "int16",
                    scale=float(steps.scale[0]),
                    zero_point=int(steps.zeroPoint[0]),
                )
            )
    return tuple(found)


def tolerance(model: Path, expected: Mapping[str, NDArray[np.generic]], *, quantized: bool) -> dict[str, Tolerance]:
    """Self-test tolerance of each output: rounding for float files, one integer step for quantized ones.

    An output that is computed in float after the last integer operator has no step of its own; it is given 1/255 of
    the range of its expected values.
    """
    import numpy as np

    scales = output_scales(model) if quantized else {}
    tolerances = {}
    for name, values in expected.items():
        if not np.issubdtype(values.dtype, np.floating):
            tolerances[name] = Tolerance(atol=0.0)
            continue
        finite = values[np.isfinite(values)]
        if not quantized:
            largest = float(np.abs(finite).max()) if finite.size else 0.0
            tolerances[name] = Tolerance(atol=FLOAT_RELATIVE * max(largest, 1e-6))
            continue
        spread = float(np.ptp(finite)) if finite.size else 0.0
        quantum = scales.get(name)
        step = quantum if quantum is not None else max(spread, 1e-6) / 255
        tolerances[name] = Tolerance(atol=STEPS * step, quantum=quantum)
    return tolerances


def output_scales(model: Path) -> dict[str, float]:
    """The step of each output that comes from integers through one scale."""
    schema = _library("schema_py_generated")
    read = _read(model)
    kinds = _names(schema.BuiltinOperator)
    graph = read.subgraphs[0]
    before = {}
    for operator in graph.operators:
        code = read.operatorCodes[operator.opcodeIndex]
        if kinds[max(code.builtinCode, code.deprecatedBuiltinCode)] == "DEQUANTIZE":
            before[int(operator.outputs[0])] = graph.tensors[operator.inputs[0]]
    scales = {}
    for entry in read.signatureDefs[0].outputs:
        tensor = before.get(int(entry.tensorIndex), graph.tensors[entry.tensorIndex])
        scale = tensor.quantization.scale if tensor.quantization is not None else None
        if scale is not None and len(scale) == 1:
            scales[text(entry.name)] = float(scale[0])
    return scales


def text(name: bytes | str) -> str:
    """A flatbuffer's text, which is read as bytes."""
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def _read(model: Path) -> Any:
    return _library("tools.flatbuffer_utils").read_model(str(model))


def _library(name: str) -> Any:
    """Untyped, and imported when it is needed."""
    return importlib.import_module(f"ai_edge_litert.{name}")


def _names(kind: type) -> dict[int, str]:
    return {value: name for name, value in vars(kind).items() if isinstance(value, int)}
