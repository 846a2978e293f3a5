"""Mobile files that plain int8 breaks are repaired to pass the gate; what is offered is judged like the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import QUICK, Workplace, refused, toml_plan

from exporter.registry import load_target

target = load_target("mobile")
missing = target.missing(target.options_type())
pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing is not None, reason="the extra `mobile` is missing")]
MODELS = '''\
"""A detector whose boxes (up to 600) and scores (up to 1) share a tensor, and a small LSTM."""

import torch
from torch import nn


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.boxes, self.scores = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.boxes.weight.uniform_(20, 60)
            self.scores.weight.normal_(0, 1 / 8)

    def forward(self, x):
        seen = torch.relu(self.trunk(x))
        joined = torch.cat([self.boxes(seen), torch.sigmoid(self.scores(seen))], 1)
        # What comes after keeps the converter from never joining them.
        box, score = (torch.relu(joined) * 0.5).split(4, 1)
        return {"box": box, "score": score}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(6, 24, batch_first=True), nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


def detector():
    torch.manual_seed(0)
    return Detector()


def recurrent():
    torch.manual_seed(0)
    return Recurrent()
'''


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    shared_place.write("model.py", MODELS)
    draw = np.random.default_rng(1)
    for name, count in (("calib.npz", 32), ("eval.npz", 64)):
        shared_place.npz(name, x=draw.normal(size=(count, 3, 8, 8)).astype(np.float32))
    shared_place.npz("series.npz", x=draw.normal(size=(32, 4, 6)).astype(np.float32))
    return shared_place


def plan(**more: Any) -> str:
    sections = {
        "model": {"source": "model.py:detector"},
        "calibration": {"data": "calib.npz"},
        "evaluation": {"data": "eval.npz"},
        "targets.mobile": {},
        # A race decides whether that is taken, and on a busy machine not always alike.
        "quantize": {"try_products": False},
    }
    return toml_plan(sections | more)


def test_a_detector_head_is_brought_back_within_the_gate_and_the_bundle_says_how(place: Workplace) -> None:
    place.write("plan.toml", plan())
    target, _ = place.built("plan.toml")
    int8 = next(variant for variant in target["variants"] if variant["name"] == "int8")
    assert all(output["sqnr_db"] >= 20 for output in int8["fidelity"]["outputs"])
    kept = [repair for repair in int8["repairs"] if repair["kept"]]
    assert kept
    assert all(repair["latency"] is not None for repair in kept)
    assert kept[0]["sqnr_db"][0] < 20 <= kept[-1]["sqnr_db"][1]
    # What was broken is where both are in one tensor; the convolutions before it stay integer.
    assert int8["coverage"]["quantized_ops"]["CONV_2D"] == 3
    left = {one["node"] for one in int8["coverage"]["skipped"]}
    assert set(int8["scheme"]["exclude"]) <= left
    assert any(name.startswith("concatenation_") for name in int8["scheme"]["exclude"])
    table = place.run("build", "plan.toml", *QUICK).out
    assert "int8 was repaired: " in table


def test_what_repairing_found_can_be_written_into_the_plan(place: Workplace) -> None:
    place.write("plan.toml", plan())
    target, _ = place.built("plan.toml")
    scheme = next(variant["scheme"] for variant in target["variants"] if variant["name"] == "int8")
    place.write("fixed.toml", plan(**{"targets.mobile.quantize": {**scheme, "budget": 0}}))
    again, _ = place.built("fixed.toml", "--no-profile", "--output", "fixed")
    int8 = next(variant for variant in again["variants"] if variant["name"] == "int8")
    assert int8["repairs"] == []
    assert int8["scheme"] == scheme


def test_before_a_build_the_operator_at_fault_comes_first_and_after_it_that_is_float(place: Workplace) -> None:
    place.write("plan.toml", plan())
    _, bundle = place.built("plan.toml")
    before = place.run("analyze", "plan.toml", "--json", "--progress", "json")
    assert before.code == 0, before.err
    assert before.rebuilt == {"mobile: noise of the operators of int8"}, "all else is what the build made"
    (analysis,) = before.document["analyses"]
    assert (analysis["target"], analysis["variant"], analysis["data"]) == ("mobile", "int8", "evaluation")
    assert (analysis["precision"], analysis["scheme"]["activations"], analysis["samples"]) == ("int8", "int8", 64)
    worst = analysis["nodes"][0]
    assert (worst["op"], worst["bits"], worst["weight_bits"]) == ("CONCATENATION", 8, None)
    assert worst["channel_db"] < 5 < 30 < worst["sqnr_db"]
    assert worst["range"][1] == pytest.approx(255 * worst["scale"] + worst["range"][0])
    outputs = {one["node"]: one["accumulated_db"] for one in analysis["nodes"] if one["node"] in ("box", "score")}
    assert outputs["score"] < 5 < 30 < outputs["box"], "what a gate sees of each output"
    assert (analysis["runtime"], analysis["added"], analysis["lints"]) == (None, {}, None)
    assert {one["share"] for one in analysis["nodes"]} == {None}
    assert place.run("analyze", "plan.toml", "--progress", "json").rebuilt == set()

    after = place.run("analyze", bundle, "--json")
    assert after.code == 0, after.err
    (analysis,) = after.document["analyses"]
    assert (analysis["data"], analysis["samples"]) == ("samples of the bundle", 8)
    left = {one["node"]: one["reason"] for one in analysis["nodes"] if one["bits"] is None}
    assert left[worst["node"]] == "left in float by name"
    assert all(one["accumulated_db"] > 20 for one in analysis["nodes"])
    assert all(one["sqnr_db"] is None for one in analysis["nodes"] if one["bits"] is None)
    shown = place.run("analyze", bundle, "--rows", "3").out
    heading, _, *rows = shown.splitlines()[1:]
    assert " ".join(heading.split()) == "node op weights bits range SQNR dB channels dB so far dB time"
    assert len([row for row in rows if row.endswith("not measured")]) == 2
    assert "more nodes: `--rows 0`" in shown
    assert "benchmark_model" in shown


def test_a_bundle_for_phones_needs_litert_alone_to_be_analyzed_and_names_it(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write("plan.toml", plan())
    _, bundle = place.built("plan.toml")
    refused(place.run("analyze", bundle, "--variant", "fp32"), 3, "no quantized variant 'fp32'", "one of int8")
    with monkeypatch.context() as without:
        without.setattr("targets.mobile.find_spec", lambda name: None if "torch" in name else name)
        assert place.run("analyze", bundle).code == 0
        refused(place.run("analyze", "plan.toml"), 4, "litert-torch")
    monkeypatch.setattr("targets.mobile.find_spec", lambda name: None)
    # Another number of samples: what was looked at before is in the store.
    monkeypatch.setattr("exporter.pipeline.operators.file_digest", lambda path: str(path))
    refused(place.run("analyze", bundle), 4, "ai-edge-litert cannot be imported", "ai-edge-litert>=2.3")


def test_a_bundle_in_float_alone_has_nothing_to_analyze(place: Workplace) -> None:
    place.write("float.toml", plan(quantize={"enabled": False}))
    _, bundle = place.built("float.toml", "--no-profile", "--output", "float")
    refused(place.run("analyze", bundle), 3, "no quantized file", "it has fp32")
    half = plan(**{"targets.mobile": {"variants": ["float16"]}})
    place.write("half.toml", half)
    refused(place.run("analyze", "half.toml"), 3, "no quantized file", "it has fp32, fp16")


def test_without_a_budget_the_gate_decides_and_nothing_is_published(place: Workplace) -> None:
    place.write("none.toml", plan(quantize={"budget": 0, "try_products": False}))
    result = place.build("none.toml", "--no-profile", "--output", "none")
    assert result.code == 7
    assert "SQNR in dB of output 'score' is " in result.err
    assert not list((place.folder / "none").glob("*-mobile-*"))


def test_a_plan_of_phones_alone_says_that_nothing_was_compared(place: Workplace) -> None:
    place.write("plan.toml", plan())
    target, _ = place.built("plan.toml", "--no-profile")
    assert "int8 was not cross-checked: no static int8 in ONNX was made beside it" in target["notes"]


def test_a_recurrent_network_is_offered_ranges_at_run_time_and_told_from_what_onnx_makes_of_it(
    place: Workplace,
) -> None:
    source = {"model": {"source": "model.py:recurrent"}, "calibration": {"data": "series.npz"}}
    # Although it comes first in the plan, it is compared with what comes after it.
    place.write("series.toml", plan(**source, evaluation={"data": "series.npz"}) + "\n[targets.cpu]\n")
    result = place.build("series.toml", "--no-profile", "--output", "offered")
    assert result.code == 0, result.err
    mobile, cpu = result.document["targets"]
    assert [one["name"] for one in mobile["variants"]] == ["fp32", "int8", "dynamic"]
    (lint,) = mobile["variants"][1]["lints"]
    assert lint["kind"] == "cross-check"
    for told in ("(int8 of cpu), on the same data", "the scheme is not why: with ", "leaves 1 LSTM in float"):
        assert told in lint["text"]
    assert any(lint["text"] in note for note in mobile["notes"])
    sides = [next(one for one in made["variants"] if one["name"] == "int8") for made in (mobile, cpu)]
    here, there = (one["fidelity"]["outputs"][0]["sqnr_db"] for one in sides)
    assert f"SQNR of 'output' {here:.1f} dB, in ONNX {there:.1f} dB" in lint["text"]
    looked = place.run("plan", "series.toml", "--json", *QUICK, "--set", "profile.enabled=false").document["steps"]
    assert {one["target"] for one in looked} == {"mobile", "cpu"}
    assert [one for one in looked if not one["cached"]] == []
    asked = place.build(
        "series.toml",
        "--target",
        "mobile",
        "--no-profile",
        "--output",
        "strict",
        "--set",
        "gate.min_sqnr_db=70",
        "--set",
        "quantize.budget=0",
    )
    assert asked.code == 7
    assert "dynamic is left out: " in asked.err
    assert "  - dynamic: " not in asked.err
