"""Calibration in several processes: the same states to the last bit, whatever happens to a process."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import InputError, StageError
from exporter.quantize.observer import Observed
from exporter.quantize.streaming import observe

TENSORS = ("x", "a", "b")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weight = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Sigmoid", ["a"], ["b"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def batches(*counts: int) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(1)
    for count in counts:
        yield {"x": random.normal(size=(count, 6)).astype(np.float32) * random.uniform(0.1, 10)}


def parts(state: Observed) -> tuple[Any, ...]:
    averages = state.averages
    return (
        state.minimum, state.maximum, state.values, state.masked, averages.low, averages.high, averages.decay,
        state.histogram.parts(),
    )  # fmt: skip


def test_states_are_the_same_to_the_last_bit_with_any_number_of_processes(network):
    counts = (70, 33, 1, 8, 64, 5)
    seen: list[int] = []
    one = observe(network, TENSORS, batches(*counts), histogram=True, progress=lambda done: None)
    two = observe(network, TENSORS, batches(*counts), histogram=True, progress=seen.append, jobs=2)
    assert list(two) == list(one)
    for name in TENSORS:
        assert [parts(half) for half in two[name]] == [parts(half) for half in one[name]]
        assert all(half.values for half in one[name]), "both halves of the data are there"
    assert seen == [1, 2, 3, 4, 5, 6]
    assert not multiprocessing.active_children()


def test_processes_that_are_killed_end_calibration_with_its_likely_cause(network):
    def killing() -> Iterator[dict[str, Any]]:
        for index, batch in enumerate(batches(*[8] * 12)):
            yield batch
            if index == 4:
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(StageError, match="ended from outside") as caught:
        observe(network, TENSORS, killing(), histogram=False, progress=lambda done: None, jobs=2)
    assert "memory" in caught.value.why
    assert "--jobs" in caught.value.hint
    assert not multiprocessing.active_children()


def test_an_error_of_the_data_stays_that_error_and_no_process_is_left(network):
    def broken() -> Iterator[dict[str, Any]]:
        yield from batches(4, 4)
        raise InputError("the third batch is bad")

    with pytest.raises(InputError, match="third batch"):
        observe(network, TENSORS, broken(), histogram=False, progress=lambda done: None, jobs=2)
    assert not multiprocessing.active_children()


def test_an_error_of_a_process_is_that_of_the_runtime(network):
    bad = [{"x": np.zeros((3, 6), np.float32)}, {"x": np.zeros((3, 7), np.float32)}]
    with pytest.raises(Exception, match=r"6|dimension"):
        observe(network, TENSORS, bad, histogram=False, progress=lambda done: None, jobs=2)
    assert not multiprocessing.active_children()


def test_no_data_is_an_error_with_processes_too(network):
    with pytest.raises(StageError, match="no calibration data"):
        observe(network, TENSORS, [], histogram=False, progress=lambda done: None, jobs=2)
