"""What goes wrong in .tflite files where the quantizer is left to itself: ranges, integer edges, names, the end."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from targets import _tflite
from targets._litert_jobs import VariantJob
from targets._litert_worker import library, quantize
from targets._tflite_anchor import ANCHOR
from targets._tflite_kept import DEAD, MASKED
from targets._tflite_names import give_names
from targets._tflite_ranges import observe
from targets._tflite_schemes import Left, reasons_for
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


def test_what_was_nothing_but_zeros_stays_in_float() -> None:
    first, second = _tflite.operators(FLOAT)[-2:]
    ranges = {one.name: {"min": [[-1.0]], "max": [[1.0]]} for one in _tflite.operators(FLOAT)}
    ranges[first.name] = {"min": [[0.0]], "max": [[0.0]]}
    assert reasons_for(FLOAT, Left(), ranges) == {first.name: DEAD, second.name: DEAD}


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


def images(count: int) -> list[dict[str, Any]]:
    ((name, given),) = runner(FLOAT).get_input_details().items()
    draw = np.random.default_rng(0)
    return [{name: draw.normal(size=given["shape"]).astype(np.float32)} for _ in range(count)]


def runner(model: Path) -> Any:
    return Interpreter(str(model)).get_signature_runner()


def taken() -> str:
    """The input's tensor, which the signature calls otherwise."""
    graph = _tflite.read_model(FLOAT).subgraphs[0]
    return _tflite.text(graph.tensors[int(graph.inputs[0])].name)


def test_ranges_are_the_extremes_of_all_samples_or_their_moving_average() -> None:
    samples = images(3)
    ranges = observe(FLOAT, iter(samples), average=False)
    given = [values for one in samples for values in one.values()]
    assert ranges[taken()] == {
        side: np.full((1,) * given[0].ndim, extreme(given)).tolist()
        for side, extreme in (("min", np.min), ("max", np.max))
    }
    first, second, third = (float(one.min()) for one in given)
    average = observe(FLOAT, iter(samples), average=True)[taken()]["min"]
    np.testing.assert_allclose(np.ravel(average), 0.95 * (0.95 * first + 0.05 * second) + 0.05 * third, rtol=1e-6)
    assert ranges.keys() == {taken(), *(one.name for one in _tflite.operators(FLOAT))}


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("mask", [-np.inf, np.finfo(np.float32).min, -1e9, np.nan])
def test_a_mask_in_any_sample_is_in_the_range(mask: float, average: bool) -> None:
    samples = images(100)
    for values in samples[0].values():
        values[0, 0, 0, 0] = mask
    found = json.loads(json.dumps(observe(FLOAT, iter(samples), average=average)))
    (reader,) = [one.name for one in _tflite.operators(FLOAT) if taken() in one.tensors]
    assert reasons_for(FLOAT, Left(), found)[reader] == MASKED


def test_a_tensor_that_nothing_uses_has_no_range(tmp_path: Path) -> None:
    def unused(_: Any, graph: Any) -> None:
        tensor = library("ai_edge_litert.schema_py_generated").TensorT()
        tensor.name, tensor.shape, tensor.buffer = "unused", [1, 4], 0
        graph.tensors.append(tensor)

    made = changed(tmp_path, unused)
    ranges = observe(made, iter(images(2)), average=False)
    assert "unused" not in ranges
    quantize(made, VariantJob(precision="int8", file=str(tmp_path / "int8.tflite")), ranges)
    assert _tflite.coverage(tmp_path / "int8.tflite", dynamic=False).quantized


@pytest.mark.parametrize("integer_io", [False, True])
def test_an_operator_at_the_end_takes_integers_from_an_output_that_it_reads(integer_io: bool, tmp_path: Path) -> None:
    def read_at_the_end(model: Any, graph: Any) -> None:
        last = int(graph.operators[-1].inputs[0])
        graph.outputs = [*graph.outputs, last]
        (signature,) = model.signatureDefs
        entry = library("ai_edge_litert.schema_py_generated").TensorMapT()
        entry.name, entry.tensorIndex = "before", last
        signature.outputs.append(entry)

    made, file = changed(tmp_path, read_at_the_end), tmp_path / "int8.tflite"
    quantize(
        made,
        VariantJob(precision="int8", file=str(file), integer_io=integer_io),
        observe(made, iter(images(4)), average=False),
    )
    kinds = [one for one in _tflite.operators(file) if one.kind not in _tflite.EDGES]
    assert [one.kind for one in kinds] == [one.kind for one in _tflite.operators(made)]
    assert kinds[-1].taken[0] == kinds[-1].results[0] == "INT8"
    names = [_tflite.text(one.name) for one in _tflite.read_model(file).subgraphs[0].tensors]
    assert not [one for one in names if ANCHOR in one]
    outputs = runner(file).get_output_details()
    assert set(outputs) == {"before", *runner(FLOAT).get_output_details()}
    assert {one["dtype"] for one in outputs.values()} == {np.int8 if integer_io else np.float32}


@pytest.mark.parametrize("masked", [False, True])
def test_what_stays_float_at_the_end_is_given_as_integers_but_where_no_integers_hold_it(
    masked: bool, tmp_path: Path
) -> None:
    last, ranges = _tflite.operators(FLOAT)[-1].name, dict(observe(FLOAT, iter(images(4)), average=False))
    if masked:
        ranges[last] = {"min": [[-np.inf]], "max": [[1.0]]}
    left = Left(names=(last,))
    quantize(FLOAT, VariantJob(precision="int8", file=str(tmp_path / "q"), integer_io=True, left=left), ranges)
    edges = {side: [one["dtype"] for one in getattr(runner(tmp_path / "q"), f"get_{side}_details")().values()]
             for side in ("input", "output")}  # fmt: skip
    assert edges == {"input": [np.int8], "output": [np.float32 if masked else np.int8]}
    assert next(one for one in _tflite.operators(tmp_path / "q") if one.name == last).results == ("FLOAT32",)


def test_a_channel_of_next_to_no_weights_keeps_its_bias(tmp_path: Path) -> None:
    def given_up(model: Any, graph: Any) -> None:
        one = next(one for one in _tflite.graph_operators(model, graph) if one.kind == "CONV_2D")
        for at, value in ((1, 1e-12), (2, 3.0)):
            tensor = graph.tensors[one.inputs[at]]
            values = np.frombuffer(bytes(model.buffers[tensor.buffer].data), "<f4").reshape(tensor.shape).copy()
            values[0] = value
            model.buffers[tensor.buffer].data = values.view(np.uint8).ravel()

    made, samples = changed(tmp_path, given_up), images(16)
    quantize(
        made,
        VariantJob(precision="int8", file=str(tmp_path / "q")),
        observe(made, iter(samples), average=False),
    )
    wanted, got = ([next(iter(runner(file)(**one).values())) for one in samples] for file in (made, tmp_path / "q"))
    assert np.square(np.subtract(got, wanted)).sum() < 1e-2 * np.square(np.subtract(wanted, np.mean(wanted))).sum()


def test_an_input_of_masks_is_taken_in_float(tmp_path: Path) -> None:
    samples = images(4)
    for values in samples[0].values():
        values[0, 0, 0, 0] = -np.inf
    ranges = observe(FLOAT, iter(samples), average=False)
    quantize(FLOAT, VariantJob(precision="int8", file=str(tmp_path / "q"), integer_io=True), ranges)
    (given,) = runner(tmp_path / "q").get_input_details().values()
    assert given["dtype"] is np.float32
    runner(tmp_path / "q")(**images(1)[0])


def test_16_bit_sums_take_scales_that_are_not_powers_of_two(tmp_path: Path) -> None:
    def summed(model: Any, graph: Any) -> None:
        schema = library("ai_edge_litert.schema_py_generated")
        graph.operators[-1].builtinOptions = schema.AddOptionsT()
        graph.operators[-1].builtinOptionsType = schema.BuiltinOptions.AddOptions

    made = changed(tmp_path, summed)
    assert _tflite.read_model(made).subgraphs[0].operators[-1].builtinOptions.potScaleInt16 is True
    mend_signature(FLOAT, made, real=True)
    assert _tflite.read_model(made).subgraphs[0].operators[-1].builtinOptions.potScaleInt16 is False


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


@pytest.mark.parametrize("real", [True, False])
def test_an_output_has_its_own_steps_where_an_operator_takes_it_with_narrower_ones(
    real: bool, tmp_path: Path
) -> None:
    def narrowed(model: Any, graph: Any) -> None:
        left_integer(model, graph)
        schema = library("ai_edge_litert.schema_py_generated")
        tensor, code, operator = (
            deepcopy(graph.tensors[int(graph.outputs[0])]),
            schema.OperatorCodeT(),
            schema.OperatorT(),
        )
        tensor.name, tensor.quantization.scale = "narrower", [0.25]
        graph.tensors.append(tensor)
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
        model.operatorCodes.append(code)
        operator.opcodeIndex = len(model.operatorCodes) - 1
        operator.inputs, operator.outputs = [int(graph.outputs[0])], [len(graph.tensors) - 1]
        graph.operators.append(operator)
        graph.outputs = [len(graph.tensors) - 1]

    made = changed(tmp_path, narrowed)
    mend_signature(FLOAT, made, real=real)
    assert set(_tflite.output_scales(made).values()) == {0.5}


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
