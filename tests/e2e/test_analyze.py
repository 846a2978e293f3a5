"""An int8 model node by node, from a plan and from a bundle, and what several processes change: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import Workplace, refused, toml_plan

from exporter.registry import load_target

mobile = load_target("mobile")
missing = mobile.missing(mobile.options_type())
needs_extra = pytest.mark.skipif(missing is not None, reason="the extra `mobile` is missing")
PLAN = {
    "model": {"source": "model.onnx"},
    "calibration": {"data": "calib.npz"},
    "evaluation": {"data": "eval.npz", "labels": "y"},
    "targets.cpu": {"int8": ["any", "vnni"]},
}


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    shared_place.quadrants()
    shared_place.onnx()
    shared_place.write("plan.toml", toml_plan(PLAN))
    return shared_place


@pytest.fixture(scope="module")
def bundle(place: Workplace) -> Path:
    target, path = place.built("plan.toml", "--no-profile")
    assert {variant["name"] for variant in target["variants"]} >= {"fp32", "int8"}
    return path


def by_node(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (analysis,) = document["analyses"]
    return {node["node"]: node for node in analysis["nodes"]}


def test_a_plan_is_analysed_without_being_built_and_a_second_time_from_the_store(place):
    first = place.run("analyze", "plan.toml", "--json", "--progress", "json")
    assert first.code == 0, first.err
    (analysis,) = first.document["analyses"]
    assert (analysis["variant"], analysis["target"], analysis["data"], analysis["samples"]) == (
        "int8", "cpu", "evaluation", 24,
    )  # fmt: skip
    nodes = by_node(first.document)
    assert set(nodes) == {"conv", "pool", "flatten", "matmul"}
    for node in nodes.values():
        assert node["bits"] == 8
        assert 20 < node["sqnr_db"] < 80
        if node["node"] != "matmul":
            assert node["range"][0] <= 0 < node["range"][1]
    assert nodes["matmul"]["range"] is None, "the user reads its result, which is not rounded"
    scores = [min(node["sqnr_db"], node["channel_db"]) for node in analysis["nodes"]]
    assert scores == sorted(scores), "the worst first"
    spent = sum(node["share"] for node in nodes.values()) + sum(analysis["added"].values())
    assert spent == pytest.approx(1)
    assert "QLinearConv" in nodes["conv"]["runs_as"]
    assert [lint["kind"] for lint in analysis["lints"]] == ["few-data"]
    again = place.run("analyze", "plan.toml", "--json", "--progress", "json")
    assert again.rebuilt == {"time in the nodes of int8"}, "latency is measured, and all else is there"
    assert [node["sqnr_db"] for node in by_node(again.document).values()] == [
        node["sqnr_db"] for node in nodes.values()
    ]


def test_a_bundle_is_analysed_on_its_own_samples(place, bundle):
    result = place.run("analyze", bundle, "--json")
    assert result.code == 0, result.err
    (analysis,) = result.document["analyses"]
    assert (analysis["data"], analysis["samples"]) == ("samples of the bundle", 11)
    assert set(by_node(result.document)) == {"conv", "pool", "flatten", "matmul"}
    assert all(20 < node["sqnr_db"] < 80 for node in analysis["nodes"])


def test_the_terminal_shows_the_worst_and_says_what_is_left_out(place, bundle):
    result = place.run("analyze", bundle, "--rows", "1")
    assert result.code == 0, result.err
    assert "noise on 11 samples of the bundle, worst first" in result.out
    assert "3 more nodes: `--rows 0`" in result.out
    assert "few-data: calibration data: ranges were measured on 16 samples" in result.out


def test_the_variant_for_other_cpus_is_analysed_and_its_time_is_not_invented(place, bundle):
    from exporter.devices import cpu_features

    result = place.run("analyze", bundle, "--variant", "int8-vnni", "--json")
    assert result.code == 0, result.err
    (analysis,) = result.document["analyses"]
    assert analysis["variant"] == "int8-vnni"
    assert "saturation" not in [lint["kind"] for lint in analysis["lints"]]
    if not {"avx512_vnni", "avx_vnni"} & set(cpu_features()):
        assert analysis["runtime"] is None
        assert "made for CPUs with" in analysis["why"]
        assert all(node["share"] is None for node in analysis["nodes"])


def test_the_manifest_keeps_what_was_found(place, bundle):
    import json

    variants = json.loads((bundle / "manifest.json").read_text())["variants"]
    found = {variant["name"]: [lint["kind"] for lint in variant["lints"]] for variant in variants}
    assert found["fp32"] == []
    assert found["int8"] == ["few-data"]


def test_a_variant_that_is_not_there_is_answered_with_those_that_are(place, bundle):
    refused(place.run("analyze", bundle, "--variant", "int9"), 3, "int9", "did you mean 'int8'", "int8-vnni")
    off = place.run("analyze", "plan.toml", "--set", "quantize.enabled=false")
    refused(off, 3, "no statically quantized", "target cpu", "--set quantize.enabled=true")


@needs_extra
def test_a_target_that_converts_torch_models_is_left_out_where_the_source_is_a_ready_file(place, bundle):
    ready = "it converts torch models, and the source is a ready .onnx file"
    refused(place.run("analyze", "plan.toml", "--target", "mobile"), 3, "converts torch models", "model.source")
    both = place.run("analyze", "plan.toml", "--target", "mobile", "--target", "cpu", "--json")
    assert both.code == 0, both.err
    assert [one["target"] for one in both.document["analyses"]] == ["cpu"]
    assert f"mobile is left out: {ready}" in both.err


def test_a_target_that_lacks_its_tools_here_is_left_out_or_says_what_brings_them(place, bundle, monkeypatch):
    monkeypatch.setattr("targets.mobile.find_spec", lambda name: None)
    refused(place.run("analyze", "plan.toml", "--target", "mobile"), 4, "litert-torch", "edge-exporter[mobile]")
    both = place.run("analyze", "plan.toml", "--target", "mobile", "--target", "cpu", "--json")
    assert both.code == 0, both.err
    assert [one["target"] for one in both.document["analyses"]] == ["cpu"]
    assert "mobile is left out: litert-torch, ai-edge-quantizer, ai-edge-litert cannot be imported" in both.err


def test_with_quantization_off_a_target_that_quantizes_by_itself_says_how_to_turn_it_on(place, bundle):
    off = place.run("analyze", "plan.toml", "--target", "mobile", "--set", "quantize.enabled=false")
    refused(off, 3, "target mobile", "--set quantize.enabled=true")


def test_a_target_without_the_variant_that_was_asked_for_is_left_out_where_another_has_it(place, bundle):
    flags = ("--target", "arm", "--target", "cpu")
    found = place.run("analyze", "plan.toml", "--variant", "int8-vnni", *flags, "--json")
    assert found.code == 0, found.err
    assert [(one["target"], one["variant"]) for one in found.document["analyses"]] == [("cpu", "int8-vnni")]
    assert "arm is left out: there is no quantized variant 'int8-vnni'" in found.err
    refused(
        place.run("analyze", "plan.toml", "--variant", "int8-x", *flags),
        3,
        "int8-x",
        "target arm; target cpu",
        "cpu: one of int8",
    )


def test_a_bundle_takes_no_values_of_a_plan_and_a_wrong_path_is_named(place, bundle):
    refused(place.run("analyze", bundle, "--set", "quantize.observer=mse"), 2, "--set", hint=False)
    refused(place.run("analyze", "nothing"), 3, "nothing")


def test_a_bundle_that_was_changed_is_not_analysed(place, bundle, tmp_path):
    import shutil

    copy = tmp_path / bundle.name
    shutil.copytree(bundle, copy)
    (copy / "variants" / "int8" / "model.onnx").write_bytes(b"")
    refused(place.run("analyze", copy), 6, "variants/int8/model.onnx")


@pytest.mark.slow
def test_a_build_with_two_processes_is_the_same_bundle(place, bundle, tmp_path):
    other = Workplace(tmp_path)
    other.quadrants()
    other.onnx()
    other.write("plan.toml", toml_plan(PLAN))
    _, path = other.built("plan.toml", "--no-profile", "--jobs", "2")
    assert path.name == bundle.name
