"""What a .tflite file says about itself: which operators compute in integers, and the steps of its outputs."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from exporter.artifacts import Coverage, EdgeType, Skipped, Tolerance
from exporter.masks import MASK, rounding_of, unmasked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EDGES = ("QUANTIZE", "DEQUANTIZE")
MOVERS = frozenset(
    (
        "BROADCAST_TO", "EXPAND_DIMS", "GATHER", "RESHAPE", "SLICE", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE",
        "TILE", "TRANSPOSE",
    )
)  # fmt: skip
"""Operators that move values and compute none: what is lost in them was lost before."""
FLOATS = ("FLOAT32", "FLOAT16", "FLOAT64")
INTEGERS = ("INT8", "INT16")
BYTE_STEPS = ("CAST", "MUL", "ADD")
LEFT = "the quantizer leaves it in float"
STEPS = 1.01
"""Kernels round differently by one step; the rest is float rounding of the comparison."""
FINE_STEPS = 16
"""The same in 16-bit steps, which are so fine that those of several operators add up: 1/4096 of an output's range."""
FLOAT_RELATIVE = 1e-4


class Operator(NamedTuple):
    """One operator.

    Attributes:
        kind: its type, as `CONV_2D`.
        name: of its first result.
        inputs: indices of the tensors that it takes; -1 for one that is left out.
        outputs: of those that it gives.
        taken: element types of the former.
        results: of the latter.
        tensors: names of all of them.
    """

    kind: str
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    taken: tuple[str, ...]
    results: tuple[str, ...]
    tensors: tuple[str, ...]


def operators(model: Path) -> list[Operator]:
    """All operators of a file, in the order in which they run."""
    read = read_model(model)
    return [one for graph in read.subgraphs for one in graph_operators(read, graph)]


def inner_operators(model: Path) -> list[str]:
    """Names of the operators in the graphs that other operators run: bodies of loops and of reductions."""
    read = read_model(model)
    return [one.name for graph in read.subgraphs[1:] for one in graph_operators(read, graph)]


def graph_operators(model: Any, graph: Any) -> list[Operator]:
    """Operators of one of a model's graphs, in the order in which they run."""

    def types_of(indices: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(tensor_type(graph.tensors[index]) for index in indices if index >= 0)

    found = []
    for kind, operator in zip(operator_kinds(model, graph), graph.operators, strict=True):
        inputs, outputs = (tuple(map(int, side)) for side in (operator.inputs, operator.outputs))
        names = tuple(text(graph.tensors[index].name) for index in (*outputs, *inputs) if index >= 0)
        name = names[0] if outputs else kind
        found.append(Operator(kind, name, inputs, outputs, types_of(inputs), types_of(outputs), names))
    return found


def tensor_type(tensor: Any) -> str:
    """Element type of a tensor, as `INT8`."""
    return _names(_library("schema_py_generated").TensorType)[tensor.type]


def operator_kinds(model: Any, graph: Any) -> list[str]:
    """Types of a graph's operators."""
    names = _names(_library("schema_py_generated").BuiltinOperator)
    codes = [model.operatorCodes[operator.opcodeIndex] for operator in graph.operators]
    return [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in codes]


def byte_operators(model: Path) -> list[str]:
    """Names of the operators that turn an input of bytes into values: a cast, a product and a sum.

    Their result is rounded once where they stay in float, and three times where they do not.
    """
    read = read_model(model)
    graph = read.subgraphs[0]
    found = []
    for entry in map(int, graph.inputs):
        if tensor_type(graph.tensors[entry]) != "UINT8":
            continue
        given, steps = entry, list(BYTE_STEPS)
        for operator in graph_operators(read, graph):
            if steps and operator.kind == steps[0] and given in operator.inputs:
                found.append(operator.name)
                given = operator.outputs[0]
                steps.pop(0)
    return found


def with_movers(model: Path, names: Iterable[str]) -> set[str]:
    """Names of operators, and of those after them that only move their results, to be left in float with them.

    Rounding a float result for an operator that only moves it would lose what leaving its producer in float kept.
    """
    left = set(names)
    floats: set[int] = set()
    read = read_model(model)
    for operator in graph_operators(read, read.subgraphs[0]):
        if operator.kind in MOVERS and not floats.isdisjoint(operator.inputs):
            left.add(operator.name)
        if operator.name in left:
            floats |= set(operator.outputs)
    return left


def masking_constants(model: Path) -> set[str]:
    """Names of the float32 constants of a file that hold values that mask others, infinities among them."""
    import numpy as np

    read = read_model(model)
    found = set()
    for tensor in (one for graph in read.subgraphs for one in graph.tensors if tensor_type(one) == "FLOAT32"):
        data = read.buffers[tensor.buffer].data
        if data is not None and has_masks(np.frombuffer(bytes(data), "<f4")):
            found.add(text(tensor.name))
    return found


def has_masks(values: Any) -> bool:
    """Whether there are infinite, NaN or mask-like values; `values` may be nested lists."""
    import numpy as np

    return not bool((np.abs(np.asarray(values, np.float64)) < MASK).all())  # Written so that NaN counts.


def kinds(model: Path) -> set[str]:
    """Types of the operators of a file."""
    return {operator.kind for operator in operators(model)}


def coverage(model: Path, *, dynamic: bool, left: Mapping[str, str] | None = None) -> Coverage:
    """Which operators compute in integers.

    Args:
        model: the quantized file.
        dynamic: activations are float at the edges of operators; those with integer weights compute in integers.
        left: types and names of operators that were to stay float, and why.
    """
    reasons = left or {}
    quantized: Counter[str] = Counter()
    skipped = []
    for operator in operators(model):
        if not computes(operator, dynamic=dynamic):
            continue
        if is_integer(operator, dynamic=dynamic):
            quantized[operator.kind] += 1
        else:
            reason = reasons.get(operator.name) or reasons.get(operator.kind) or LEFT
            skipped.append(Skipped(node=operator.name, op=operator.kind, reason=reason))
    return Coverage(
        eligible=sum(quantized.values()) + len(skipped),
        quantized=sum(quantized.values()),
        skipped=tuple(skipped),
        quantized_ops=dict(quantized),
    )


def computes(operator: Operator, *, dynamic: bool) -> bool:
    """Whether an operator computes real numbers: it changes no types, and is no arithmetic on shapes and indices."""
    floats = any(kind in FLOATS for kind in (*operator.taken, *operator.results))
    return operator.kind not in EDGES and (floats or is_integer(operator, dynamic=dynamic))


def is_integer(operator: Operator, *, dynamic: bool) -> bool:
    """Whether an operator of a quantized file computes in integers; see `coverage`."""
    return any(kind in INTEGERS for kind in (operator.taken if dynamic else operator.results))


def edges(model: Path) -> tuple[EdgeType, ...]:
    """Inputs and outputs whose elements are integers that stand for real numbers, in the order of the signature."""
    schema = _library("schema_py_generated")
    read = read_model(model)
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
    """Self-test tolerance of each output: rounding for float files, an integer step (16 of int16) for quantized ones.

    An output that is computed in float after the last integer operator has no step of its own; it is given 1/255 of
    the range of its expected values, masks left out.
    """
    import numpy as np

    scales = output_scales(model) if quantized else {}
    fine = {name for name, kind in output_types(model).items() if kind == "INT16"} if quantized else set()
    tolerances = {}
    for name, values in expected.items():
        if not np.issubdtype(values.dtype, np.floating):
            tolerances[name] = Tolerance(atol=0.0)
            continue
        real, share = unmasked(values), rounding_of(values)
        if not quantized:
            largest = float(np.abs(real).max()) if real.size else 0.0
            tolerances[name] = Tolerance(atol=FLOAT_RELATIVE * max(largest, 1e-6), rtol=share)
            continue
        spread = float(np.ptp(real)) if real.size else 0.0
        quantum = scales.get(name)
        step = quantum if quantum is not None else max(spread, 1e-6) / 255
        steps = FINE_STEPS if name in fine else STEPS
        tolerances[name] = Tolerance(atol=steps * step, rtol=share, quantum=quantum)
    return tolerances


def output_scales(model: Path) -> dict[str, float]:
    """The step of each output that comes from integers through one scale."""
    scales = {}
    for name, tensor in _output_tensors(model).items():
        scale = tensor.quantization.scale if tensor.quantization is not None else None
        if scale is not None and len(scale) == 1:
            scales[name] = float(scale[0])
    return scales


def output_types(model: Path) -> dict[str, str]:
    """The element type of each output, before it is turned into float where it comes from integers."""
    return {name: tensor_type(tensor) for name, tensor in _output_tensors(model).items()}


def _output_tensors(model: Path) -> dict[str, Any]:
    """What holds each output, by name: the integers that it comes from where it does."""
    read = read_model(model)
    graph = read.subgraphs[0]
    before = {
        one.outputs[0]: graph.tensors[one.inputs[0]]
        for one in graph_operators(read, graph)
        if one.kind == "DEQUANTIZE"
    }
    entries = read.signatureDefs[0].outputs
    return {text(one.name): before.get(int(one.tensorIndex), graph.tensors[int(one.tensorIndex)]) for one in entries}


def text(name: bytes | str) -> str:
    """A flatbuffer's text, which is read as bytes."""
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def read_model(model: Path) -> Any:
    """A file as the objects of its schema, which can be changed."""
    return _library("tools.flatbuffer_utils").read_model(str(model))


def _library(name: str) -> Any:
    """Untyped, and imported when it is needed."""
    return importlib.import_module(f"ai_edge_litert.{name}")


@cache
def _names(kind: type) -> dict[int, str]:
    return {value: name for name, value in vars(kind).items() if isinstance(value, int)}
