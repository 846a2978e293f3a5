"""Outputs that a metric does not read: the gate holds them all the same, and what it cannot see of them is told."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from exporter.artifacts import Fidelity, GateResult, OutputFidelity, WeakestChannel
from exporter.errors import GateError
from exporter.pipeline.gates import Gates
from exporter.pipeline.judging import unjudged
from exporter.pipeline.steps import Steps
from exporter.plan import Plan, read_plan
from exporter.registry import load_target
from exporter.target_api import VariantFile


@pytest.mark.parametrize(
    ("evaluation", "left"),
    [
        ('labels = "y"', ("boxes",)),
        ('labels = "y"\noutput = "boxes"', ("scores",)),
        ('labels = "y"\nmetric = "own.py:f"', ()),
        ("", ()),
    ],
)
def test_accuracy_reads_one_output_and_the_others_are_gated_by_divergence(
    tmp_path: Path, evaluation: str, left: tuple[str, ...]
) -> None:
    assert unjudged(plan_of(tmp_path, evaluation), ["scores", "boxes"]) == left


@pytest.mark.parametrize(
    ("evaluation", "told"),
    [('labels = "y"', 0), ('labels = "y"\noutput = "other"', 1), ('labels = "y"\nmetric = "own.py:f"', 0), ("", 1)],
)
def test_a_channel_that_is_lost_in_an_output_that_passes_is_told_unless_a_metric_sees_it(
    tmp_path: Path, evaluation: str, told: int
) -> None:
    def judged(name: str, whole: float | None, weak: float) -> tuple[VariantFile, Fidelity]:
        channel = WeakestChannel(axis=1, index=4, sqnr_db=weak)
        head = OutputFidelity(output="head", sqnr_db=whole, cosine=1.0, max_abs_error=0.1, weakest=channel)
        other = OutputFidelity(output="other", sqnr_db=None, cosine=1.0, max_abs_error=0.0)
        fidelity = Fidelity(
            reference="onnx", reference_digest="d", samples=4, data="evaluation", outputs=(head, other)
        )
        return VariantFile(name=name, main="m", runtime="onnxruntime", precision="int8"), fidelity

    plan = plan_of(tmp_path, evaluation)
    gates = Gates(cast(Steps, None), "cpu", plan, plan.targets[0])
    both = [judged("int8", 47.0, -0.3), judged("int8-vnni", 46.0, -0.2), judged("fp32", 130.0, 20.0)]
    found = gates.unseen(both)
    assert len(found) == told
    for text in found:
        assert "'head' is lost in part (int8, int8-vnni): at index 4 of axis 1" in text
        assert "-0.3 dB" in text
        assert "47.0 dB" in text
    assert gates.unseen([judged("int8", 15.0, 8.0)]) == ()


@pytest.mark.parametrize(("evaluation", "told"), [('labels = "y"', 0), ("", 1)])
def test_an_output_of_which_only_the_mean_is_left_is_told(tmp_path: Path, evaluation: str, told: int) -> None:
    def judged(name: str, whole: float, varying: float) -> tuple[VariantFile, Fidelity]:
        weak = WeakestChannel(axis=1, index=4, sqnr_db=varying)
        head = OutputFidelity(
            output="head", sqnr_db=whole, cosine=1.0, max_abs_error=0.1, weakest=weak, varying_db=varying
        )
        fidelity = Fidelity(reference="onnx", reference_digest="d", samples=4, data="evaluation", outputs=(head,))
        return VariantFile(name=name, main="m", runtime="onnxruntime", precision="int8"), fidelity

    plan = plan_of(tmp_path, evaluation)
    gates = Gates(cast(Steps, None), "cpu", plan, plan.targets[0])
    found = gates.unseen([judged("int8", 73.6, -11.3), judged("fp32", 130.0, 90.0)])
    assert len(found) == told, "and it is told once"
    for text in found:
        assert "of output 'head' little is left but its mean (int8)" in text
        assert "an SQNR of -11.3 dB, though as a whole it has 73.6 dB" in text
    assert gates.unseen([judged("int8", 15.0, 8.0)]) == ()


def plan_of(tmp_path: Path, evaluation: str) -> Plan:
    for name in ("net.onnx", "eval.npz", "own.py"):
        (tmp_path / name).touch()
    (tmp_path / "plan.toml").write_text(
        'schema = 1\nname = "net"\n[model]\nsource = "net.onnx"\n[evaluation]\ndata = "eval.npz"\n'
        + evaluation
        + "\n[targets.cpu]\n"
    )
    return read_plan(tmp_path / "plan.toml", load_target=load_target)


def test_a_failure_on_one_runtime_alone_points_to_the_runtime_and_not_to_the_quantization(tmp_path: Path) -> None:
    def judged(name: str, runtime: str, *failures: str) -> tuple[VariantFile, Fidelity]:
        gate = GateResult(passed=not failures, failures=failures)
        fidelity = Fidelity(
            reference="onnx", reference_digest="d", samples=4, data="evaluation", outputs=(), gate=gate
        )
        return VariantFile(name=name, main="m", runtime=runtime, precision="int8"), fidelity

    plan = plan_of(tmp_path, "")
    gates = Gates(cast(Steps, None), "cpu", plan, plan.targets[0])
    there = judged("int8-there", "there", "too far")
    with pytest.raises(GateError, match=r"too far \(on there; here computes it within the gate\)") as raised:
        gates.hold([judged("int8", "here"), there])
    assert raised.value.hint is not None
    assert raised.value.hint.startswith("take there out of [targets.cpu] runtimes")
    with pytest.raises(GateError, match=r"- int8-there: too far\n") as raised:
        gates.hold([judged("int8", "here", "too far"), there])
    assert raised.value.hint is not None
    assert "budget" in raised.value.hint
