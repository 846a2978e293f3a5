"""A model that plain int8 breaks is repaired to pass its gate, and the bundle says how; what is offered is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import Workplace, toml_plan


def write_detector(path: Path) -> None:
    """x [batch, 3, 8, 8] -> one Concat of boxes up to 600 and scores up to 1, which no 8-bit range holds together."""
    draw = np.random.default_rng(0)
    weights = {
        "trunk": draw.normal(size=(8, 3, 3, 3)) / 5,
        "boxes": draw.uniform(20, 60, size=(4, 8, 1, 1)),
        "scores": draw.normal(size=(4, 8, 1, 1)) / 8,
    }
    nodes = [
        helper.make_node("Conv", ["x", "trunk"], ["t"], name="trunk_conv"),
        helper.make_node("Relu", ["t"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "boxes"], ["b"], name="boxes_conv"),
        helper.make_node("Conv", ["r", "scores"], ["s"], name="scores_conv"),
        helper.make_node("Sigmoid", ["s"], ["p"], name="sigmoid"),
        helper.make_node("Concat", ["b", "p"], ["all"], name="head", axis=1),
        helper.make_node("Split", ["all"], ["box", "score"], name="split", axis=1, num_outputs=2),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4, 6, 6]) for name in ("box", "score")],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    write_detector(shared_place / "detector.onnx")
    draw = np.random.default_rng(1)
    for name, count in (("calib.npz", 32), ("eval.npz", 64)):
        shared_place.npz(name, x=draw.normal(size=(count, 3, 8, 8)).astype(np.float32))
    return shared_place


def plan(**more: Any) -> str:
    sections = {
        "model": {"source": "detector.onnx"},
        "calibration": {"data": "calib.npz"},
        "evaluation": {"data": "eval.npz"},
        "targets.cpu": {},
    }
    return toml_plan(sections | more)


def test_a_detector_head_is_brought_back_within_the_gate_and_the_bundle_says_how(place: Workplace) -> None:
    place.write("plan.toml", plan())
    target, _ = place.built("plan.toml", "--no-profile")
    int8 = next(variant for variant in target["variants"] if variant["name"] == "int8")
    assert all(output["sqnr_db"] >= 20 for output in int8["fidelity"]["outputs"])
    assert int8["fidelity"]["gate"]["reason"] == "no labels: gated by divergence from the trained model"
    kept = [repair for repair in int8["repairs"] if repair["kept"]]
    assert kept
    assert kept[0]["sqnr_db"][0] < 20
    assert kept[-1]["sqnr_db"][1] >= 20
    # The convolutions are not what was broken: they stay.
    assert int8["coverage"]["quantized_ops"]["Conv"] >= 2
    table = place.run("build", "plan.toml", "--no-profile").out
    assert "int8 was repaired: " in table


def test_without_a_budget_the_gate_decides_and_nothing_is_published(place: Workplace) -> None:
    named = {"quantize.observers": {"t": "mse", "r": "mse"}}
    place.write("none.toml", plan(quantize={"budget": 0, "per_tensor": ["relu", "trunk_conv"]}, **named))
    result = place.build("none.toml", "--no-profile", "--output", "none")
    assert result.code == 7
    assert "int8: `quantize.observers` acts on nothing at 't': it is not rounded to 8 bits" in result.err
    assert "int8: `quantize.per_tensor` acts on nothing at 'relu': " in result.err
    assert "SQNR in dB of output 'score' is " in result.err
    assert "[quantize] budget" in result.err
    assert not list((place.folder / "none").glob("*-cpu-*"))


def test_a_budget_that_ends_keeps_the_best_and_says_so(place: Workplace) -> None:
    place.write("small.toml", plan(quantize={"budget": 1}))
    result = place.run("build", "small.toml", "--no-profile", "--output", "small")
    assert result.code == 7
    assert "the budget of 1 evaluations ended; the best is kept" in result.err


def test_what_repairing_found_can_be_written_into_the_plan(place: Workplace) -> None:
    place.write("plan.toml", plan())
    target, _ = place.built("plan.toml", "--no-profile")
    scheme = next(variant["scheme"] for variant in target["variants"] if variant["name"] == "int8")
    place.write("fixed.toml", plan(quantize={**scheme, "budget": 0}))
    again, _ = place.built("fixed.toml", "--no-profile", "--output", "fixed")
    int8 = next(variant for variant in again["variants"] if variant["name"] == "int8")
    assert int8["repairs"] == []
    assert int8["scheme"] == scheme
