"""What goes wrong in .tflite files where the quantizer is left to itself: infinite scales, integer edges, names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targets import _tflite
from targets._litert_worker import library
from targets._tflite_names import give_names
from targets._tflite_schemes import MASKED, Left, reasons_for
from targets._tflite_signature import _as_real, mend_signature

FLOAT = Path(__file__).parents[1] / "e2e" / "quadrants_by_onnx2tf.tflite"


@pytest.mark.parametrize("mask", [-np.inf, -1e9, np.nan])
def test_what_takes_or_gives_masked_values_stays_in_float(mask: float) -> None:
    first, second = _tflite.operators(FLOAT)[-2:]
    ranges = {
        one.name: {"min": [[mask if one.name == first.name else -1.0]], "max": [[1.0]]}
        for one in _tflite.operators(FLOAT)
    }
    assert first.name in second.tensors
    assert reasons_for(FLOAT, Left(), ranges) == {first.name: MASKED, second.name: MASKED}
    assert reasons_for(FLOAT, Left(), {}) == {}


@pytest.mark.parametrize("mask", [-np.inf, -1e9])
def test_constants_that_mask_are_found(mask: float, tmp_path: Path) -> None:
    assert _tflite.masking_constants(FLOAT) == set()
    model = _tflite.read_model(FLOAT)
    graph = model.subgraphs[0]
    filled = [one for one in graph.tensors if model.buffers[one.buffer].data is not None]
    masked = next(one for one in filled if _tflite.tensor_type(one) == "FLOAT32")
    values = np.frombuffer(bytes(model.buffers[masked.buffer].data), "<f4").copy()
    values[0] = mask
    model.buffers[masked.buffer].data = values.view(np.uint8)
    library("ai_edge_litert.tools.flatbuffer_utils").write_model(model, str(tmp_path / "masked.tflite"))
    name = _tflite.text(masked.name)
    assert _tflite.masking_constants(tmp_path / "masked.tflite") == {name}
    found = {one.name for one in _tflite.operators(FLOAT) if name in one.tensors}
    finite = {one.name: {"min": [[0.0]], "max": [[1.0]]} for one in _tflite.operators(FLOAT)}
    assert found
    assert set(reasons_for(tmp_path / "masked.tflite", Left(), finite)) >= found


def changed(tmp_path: Path, change: Callable[[Any, Any], None]) -> Path:
    """The float file after a change to its model and its graph."""
    model, path = _tflite.read_model(FLOAT), tmp_path / "changed.tflite"
    change(model, model.subgraphs[0])
    library("ai_edge_litert.tools.flatbuffer_utils").write_model(model, str(path))
    return path


def left_integer(_: Any, graph: Any) -> None:
    """An output as the quantizer leaves one that also feeds an operator which takes it rounded otherwise."""
    output = graph.tensors[int(graph.outputs[0])]
    schema = library("ai_edge_litert.schema_py_generated")
    output.type = schema.TensorType.INT8
    output.quantization = schema.QuantizationParametersT()
    output.quantization.scale, output.quantization.zeroPoint = [0.5], [3]


def left_beside(model: Any, graph: Any) -> None:
    """The same, where an operator that stays float takes the output's values."""
    left_integer(model, graph)
    _as_real(model, graph, int(graph.outputs[0]))


@pytest.mark.parametrize("left", [left_integer, left_beside])
def test_an_output_that_the_quantizer_leaves_integer_becomes_float_again(
    left: Callable[[Any, Any], None], tmp_path: Path
) -> None:
    made, name = changed(tmp_path, left), _tflite.operators(FLOAT)[-1].name
    mend_signature(FLOAT, made, real=True)
    last = _tflite.operators(made)[-1]
    assert (last.kind, last.taken, last.results) == ("DEQUANTIZE", ("INT8",), ("FLOAT32",))
    assert last.tensors[1] == name
    graph = _tflite.read_model(made).subgraphs[0]
    signature = _tflite.read_model(made).signatureDefs[0]
    assert list(graph.outputs) == list(last.outputs) == [signature.outputs[0].tensorIndex]
    assert set(_tflite.output_scales(made).values()) == {0.5}


@pytest.mark.parametrize(("bits", "steps"), [("INT8", 1.01), ("INT16", 16)])
def test_16_bit_steps_are_so_fine_that_several_are_tolerated(bits: str, steps: float, tmp_path: Path) -> None:
    def integer(model: Any, graph: Any) -> None:
        left_beside(model, graph)
        types = library("ai_edge_litert.schema_py_generated").TensorType
        graph.tensors[int(graph.outputs[0])].type = getattr(types, bits)

    made = changed(tmp_path, integer)
    mend_signature(FLOAT, made, real=True)
    (name,) = _tflite.output_types(made)
    found = _tflite.tolerance(made, {name: np.ones((1, 4), np.float32)}, quantized=True)[name]
    assert (found.atol, found.quantum) == (steps * 0.5, 0.5)


def test_integers_at_the_edge_stay_where_they_are_asked_for(tmp_path: Path) -> None:
    made = changed(tmp_path, left_integer)
    mend_signature(FLOAT, made, real=False)
    assert [edge.dtype for edge in _tflite.edges(made)] == ["int8"]


def test_a_constant_gives_way_to_an_output_of_its_name(tmp_path: Path) -> None:
    def placeholders(model: Any, graph: Any) -> None:
        for side in ("input", "output"):
            for index, entry in enumerate(getattr(model.signatureDefs[0], f"{side}s")):
                entry.name = f"{side}_{index}"
        edge = {*map(int, graph.inputs), *map(int, graph.outputs)}
        made = {int(index) for operator in graph.operators for index in operator.outputs}
        constant = next(one for index, one in enumerate(graph.tensors) if index not in edge | made)
        constant.name = "arith.constant"

    path = changed(tmp_path, placeholders)
    give_names(path, ["image"], ["arith.constant"])
    names = [_tflite.text(tensor.name) for tensor in _tflite.read_model(path).subgraphs[0].tensors]
    assert names.count("arith.constant") == 1
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("quantized", [True, False])
def test_a_mask_does_not_widen_the_tolerance_of_what_it_leaves(quantized: bool) -> None:
    expected = {"y": np.array([[0.5, -1e9, -0.5]], np.float32)}
    tolerance = _tflite.tolerance(FLOAT, expected, quantized=quantized)["y"]
    assert tolerance.atol < 0.01
    assert 64 < tolerance.rtol * 1e9 < 1e5, "a mask plus a score, rounded to float32"
    assert _tflite.tolerance(FLOAT, {"y": np.ones((1, 2), np.float32)}, quantized=quantized)["y"].rtol == 0
