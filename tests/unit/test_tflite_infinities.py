"""Operators of .tflite files at infinities, which a mask makes: runtimes crash on an infinite scale."""

from pathlib import Path

import numpy as np

from targets import _tflite
from targets._litert_worker import library
from targets._tflite_schemes import ENDLESS, Left, reasons_for

FLOAT = Path(__file__).parents[1] / "e2e" / "quadrants_by_onnx2tf.tflite"


def test_what_takes_or_gives_infinities_stays_in_float() -> None:
    first, second = _tflite.operators(FLOAT)[-2:]
    ranges = {
        one.name: {"min": [[-np.inf if one.name == first.name else -1.0]], "max": [[1.0]]}
        for one in _tflite.operators(FLOAT)
    }
    assert first.name in second.tensors
    assert reasons_for(FLOAT, Left(), ranges) == {first.name: ENDLESS, second.name: ENDLESS}
    assert reasons_for(FLOAT, Left(), {}) == {}


def test_constants_with_infinities_are_found(tmp_path: Path) -> None:
    assert _tflite.endless_constants(FLOAT) == set()
    model = _tflite.read_model(FLOAT)
    graph = model.subgraphs[0]
    filled = [one for one in graph.tensors if model.buffers[one.buffer].data is not None]
    masked = next(one for one in filled if _tflite.tensor_type(one) == "FLOAT32")
    values = np.frombuffer(bytes(model.buffers[masked.buffer].data), "<f4").copy()
    values[0] = -np.inf
    model.buffers[masked.buffer].data = values.view(np.uint8)
    library("ai_edge_litert.tools.flatbuffer_utils").write_model(model, str(tmp_path / "masked.tflite"))
    name = _tflite.text(masked.name)
    assert _tflite.endless_constants(tmp_path / "masked.tflite") == {name}
    found = {one.name for one in _tflite.operators(FLOAT) if name in one.tensors}
    finite = {one.name: {"min": [[0.0]], "max": [[1.0]]} for one in _tflite.operators(FLOAT)}
    assert found
    assert set(reasons_for(tmp_path / "masked.tflite", Left(), finite)) >= found
