"""Fidelity against direct numpy computations, gates rule by rule, and task metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from exporter.artifacts import Fidelity, MetricResult, OutputFidelity
from exporter.errors import DataError, InputError, StageError
from exporter.measure import apply_gate, compare_metric, load_metric, measure_fidelity, metric_digest
from exporter.plan_types import GatePlan

FLOATS = st.floats(-1e3, 1e3, width=32)
SHAPES = st.tuples(st.integers(2, 7), st.integers(2, 5))
TWO = SHAPES.flatmap(
    lambda shape: st.tuples(arrays(np.float32, shape, elements=FLOATS), arrays(np.float32, shape, elements=FLOATS))
)


def measured(*pairs: tuple[dict, dict]) -> Fidelity:
    return measure_fidelity(iter(pairs), reference="torch", reference_digest="d", data="evaluation")


def one(wanted: np.ndarray, got: np.ndarray) -> OutputFidelity:
    (result,) = measured(({"y": wanted}, {"y": got})).outputs
    return result


@given(TWO)
@settings(max_examples=80, deadline=None)
def test_divergence_is_what_numpy_computes(pair):
    wanted, got = pair
    result = one(wanted, got)
    reference, candidate = wanted.astype(np.float64), got.astype(np.float64)
    error = candidate - reference
    signal, noise = (reference**2).sum(), (error**2).sum()
    if noise == 0:
        assert result.sqnr_db is None
    elif signal == 0:
        assert result.sqnr_db == -300
    else:
        assert result.sqnr_db == pytest.approx(max(-300.0, 10 * np.log10(signal / noise)), rel=1e-9, abs=1e-9)
    assert result.max_abs_error == np.abs(error).max()
    norms = np.linalg.norm(reference) * np.linalg.norm(candidate)
    if norms > 0:
        assert result.cosine == pytest.approx(min(1.0, (reference * candidate).sum() / norms), abs=1e-9)
    agreeing = (reference.argmax(-1) == candidate.argmax(-1)).mean()
    assert result.top1_agreement == pytest.approx(agreeing)


@given(TWO, st.data())
@settings(max_examples=50, deadline=None)
def test_batching_changes_nothing(pair, data):
    wanted, got = pair
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wanted) - 1))))
    parts = [
        ({"y": left}, {"y": right}) for left, right in zip(np.split(wanted, cuts), np.split(got, cuts), strict=True)
    ]
    whole, split = measured(({"y": wanted}, {"y": got})), measured(*parts)
    assert split.samples == whole.samples == len(wanted)
    (left,), (right,) = whole.outputs, split.outputs
    assert right.max_abs_error == left.max_abs_error
    assert right.top1_agreement == left.top1_agreement
    assert right.cosine == pytest.approx(left.cosine, abs=1e-12)
    assert (right.sqnr_db is None) == (left.sqnr_db is None)
    if left.sqnr_db is not None:
        assert right.sqnr_db == pytest.approx(left.sqnr_db, abs=1e-6)


def test_the_error_of_one_step_of_a_known_signal_has_the_sqnr_of_the_textbook():
    signal = np.full((10, 10), 1.0, np.float32)
    assert one(signal, signal + np.float32(0.1)).sqnr_db == pytest.approx(20.0, abs=1e-4)
    assert one(signal, signal * 0).sqnr_db == pytest.approx(0.0)


def test_equal_outputs_are_exact_and_not_a_large_number():
    values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    result = one(values, values.copy())
    assert result.sqnr_db is None
    assert (result.cosine, result.max_abs_error, result.top1_agreement) == (pytest.approx(1.0), 0.0, 1.0)


def test_outputs_that_are_zero_everywhere_agree_only_with_zeros():
    zeros = np.zeros((3, 4), np.float32)
    assert one(zeros, zeros).cosine == 1.0
    differing = one(zeros, zeros + np.float32(1))
    assert (differing.cosine, differing.sqnr_db) == (0.0, -300)


def test_masks_of_minus_infinity_agree_and_carry_no_signal():
    wanted = np.array([[1.0, -np.inf, 2.0], [-np.inf, 3.0, 4.0]], np.float32)
    got = wanted.copy()
    got[0, 0] = 1.5
    result = one(wanted, got)
    assert result.max_abs_error == 0.5
    assert result.sqnr_db == pytest.approx(10 * math.log10((1 + 4 + 9 + 16) / 0.25))
    assert result.top1_agreement == 1.0


def test_finite_masks_hide_no_error_of_the_values_that_they_leave():
    wanted = np.array([[1.0, -1e9, 2.0], [-1e9, 3.0, 4.0]], np.float32)
    zeroed = np.where(wanted < -1e8, np.float32(-1.004e9), np.float32(0))
    result = one(wanted, zeroed)
    assert (result.sqnr_db, result.max_abs_error, result.cosine) == (0.0, 4.0, 0.0)
    assert one(wanted, np.where(wanted < -1e8, np.float32(-1.004e9), wanted)).sqnr_db is None


def test_a_finite_mask_that_one_side_lacks_is_an_error():
    wanted = np.array([[1.0, -1e9]], np.float32)
    assert one(wanted, np.zeros_like(wanted)).sqnr_db == pytest.approx(0.0)
    assert one(wanted, np.array([[1.0, 1e9]], np.float32)).sqnr_db < 0
    assert one(np.array([[-np.inf, -1e9]], np.float32), np.array([[5.0, -1e9]], np.float32)).sqnr_db == -300


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_an_output_of_nothing_but_large_values_is_compared_as_any_other(dtype):
    wanted = np.array([[2e9, 4e9]]).astype(dtype)
    assert one(wanted, wanted // 2).sqnr_db == pytest.approx(10 * math.log10(4))
    assert one(wanted, wanted // 2).max_abs_error == 2e9


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_where_the_model_has_one_fails_any_gate(value):
    wanted = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    got = wanted.copy()
    got[1, 0] = value
    fidelity = measured(({"y": wanted}, {"y": got}))
    (result,) = fidelity.outputs
    assert result.broken == 1
    assert result.sqnr_db == -300
    assert result.max_abs_error == 0
    assert math.isfinite(result.cosine)
    kept = compare_metric("accuracy", 0.9, 0.9)
    judged = apply_gate(msgspec.structs.replace(fidelity, metric=kept), GatePlan())
    assert not judged.gate.passed
    assert any("1 NaN or infinite values" in text for text in judged.gate.failures)


def test_a_finite_value_where_the_reference_is_masked_is_no_agreement():
    wanted = np.array([[1.0, -np.inf]], np.float32)
    result = one(wanted, np.array([[1.0, 5.0]], np.float32))
    assert result.max_abs_error == math.inf
    assert result.sqnr_db == -300


def test_a_reference_without_any_finite_value_is_refused():
    nothing = np.full((2, 3), np.nan, np.float32)
    with pytest.raises(InputError, match="output 'y' of the trained model holds nothing but NaN"):
        one(nothing, nothing)


def test_top1_of_a_map_compares_the_classes_of_each_pixel():
    scores = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    other = scores.copy()
    other[0, :, 0, 0] = other[0, ::-1, 0, 0]
    changed = int(scores[0, :, 0, 0].argmax() != other[0, :, 0, 0].argmax())
    assert one(scores, other * np.linspace(1, 2, 5, dtype=np.float32)).top1_agreement == 1 - changed / 40
    assert one(scores[:, :1], scores[:, :1] + 1).top1_agreement is None


def test_top1_applies_to_rows_of_float_scores_only():
    scores = np.ones((3, 4), np.float32)
    assert one(scores, scores).top1_agreement == 1.0
    assert one(scores[:, :1], scores[:, :1]).top1_agreement is None
    assert one(scores[:, 0], scores[:, 0]).top1_agreement is None
    whole = scores.astype(np.int64)
    assert one(whole, whole).top1_agreement is None


def test_the_weakest_channel_is_found_along_either_axis_and_over_batches():
    random = np.random.default_rng(0)
    boxes, scores = random.uniform(100, 600, (6, 4, 5)), random.uniform(0.1, 1, (6, 2, 5))
    wanted = np.concatenate([boxes, scores], 1).astype(np.float32)
    got = wanted + np.float32(1)
    got[:, 4] = wanted[:, 4]
    own = 10 * math.log10(float(np.square(wanted[:, 5].astype(np.float64)).sum()) / 30)
    for axis, at, back in ((1, wanted, got), (2, wanted.transpose(0, 2, 1), got.transpose(0, 2, 1))):
        (result,) = measured(*(({"y": at[i : i + 2]}, {"y": back[i : i + 2]}) for i in (0, 2, 4))).outputs
        assert result.weakest is not None
        assert (result.weakest.axis, result.weakest.index) == (axis, 5)
        assert result.weakest.sqnr_db == pytest.approx(own, abs=1e-4)
        assert result.sqnr_db > 40 > result.weakest.sqnr_db


def test_what_has_no_two_channels_has_no_weakest_one():
    row = np.array([[1.0, 1e-9, 0.0], [2.0, 0.0, 0.0]], np.float32)
    assert one(row, row + np.float32(0.5)).weakest is None, "what float32 does not keep beside the first is no signal"
    wide = np.array([[1.0, 2.0]], np.float32)
    assert one(wide, wide).weakest is None
    assert one(wide[:, 0], wide[:, 1]).weakest is None
    parts = [({"y": np.ones((1, n), np.float32)}, {"y": np.zeros((1, n), np.float32)}) for n in (2, 3)]
    assert measured(*parts).outputs[0].weakest is None, "positions of a dynamic axis are no channels"


@pytest.mark.parametrize("shape", [(40,), (40, 3), (40, 3, 2)])
def test_what_varies_is_judged_without_the_mean_that_is_always_there(shape):
    random = np.random.default_rng(0)
    offsets = 1000.0 * (1 + np.arange(math.prod(shape[1:2])))
    varying = random.normal(size=shape)
    wanted = varying + offsets.reshape(-1, *[1] * len(shape[2:])) if len(shape) > 1 else varying + offsets[0]
    got = wanted + random.normal(size=shape)
    (result,) = measured(*(({"y": wanted[i : i + 8]}, {"y": got[i : i + 8]}) for i in range(0, 40, 8))).outputs
    centred = wanted - wanted.mean((0, *range(2, len(shape))), keepdims=True)
    own = 10 * math.log10(np.square(centred).sum() / np.square(got - wanted).sum())
    assert result.sqnr_db > 50 > own
    assert result.varying_db == pytest.approx(own, abs=0.01)


def test_where_nothing_varies_or_nothing_is_wrong_there_is_no_noise_of_it():
    same = np.full((6, 2), 5.0, np.float32)
    assert one(same, same + np.float32(1)).varying_db is None
    wide = np.arange(12, dtype=np.float32).reshape(6, 2)
    assert one(wide, wide).varying_db is None


def test_masks_have_no_part_in_the_mean():
    wanted = np.tile(np.array([[1.0, -1e9], [3.0, 4.0]], np.float32), (8, 1))
    got = wanted + np.where(wanted > 0, np.float32(0.5), np.float32(0))
    without = one(np.array([[1.0], [3.0]] * 8, np.float32), np.array([[1.5], [3.5]] * 8, np.float32)).varying_db
    assert without == pytest.approx(10 * math.log10(1 / 0.25))
    assert one(wanted, got).varying_db == pytest.approx(10 * math.log10(16 / 6)), "of 24 values 16 vary"


@pytest.mark.parametrize("got", [{}, {"y": np.ones((2, 4))}, {"y": np.ones((3, 3))}])
def test_an_output_that_is_missing_or_of_another_shape_is_an_error(got):
    with pytest.raises(StageError, match="output 'y' changed its shape"):
        measured(({"y": np.ones((2, 3), np.float32)}, got))


def test_several_outputs_are_told_apart_and_stay_in_order():
    ones = np.ones((2, 2), np.float32)
    fidelity = measured(({"b": ones, "a": ones}, {"a": ones, "b": ones * 2}))
    assert [(output.output, output.max_abs_error) for output in fidelity.outputs] == [("b", 1.0), ("a", 0.0)]


def test_memory_does_not_grow_with_the_number_of_batches():
    batch = np.ones((100, 1000), np.float32)

    def many() -> Iterator[tuple[dict, dict]]:
        for _ in range(50):
            yield {"y": batch}, {"y": batch}

    assert measure_fidelity(many(), reference="onnx", reference_digest="d", data="calibration").samples == 5000


# --- gates ---------------------------------------------------------------------------------------------------------


def fidelity(*, sqnr: float | None = 30.0, top1: float | None = 0.99, metric: MetricResult | None = None) -> Fidelity:
    output = OutputFidelity(output="y", sqnr_db=sqnr, cosine=0.98, max_abs_error=0.1, top1_agreement=top1)
    return Fidelity(
        reference="torch", reference_digest="d", samples=9, data="evaluation", outputs=(output,), metric=metric
    )


@pytest.mark.parametrize(
    ("gate", "passed", "words"),
    [
        ({"min_sqnr_db": 29.0}, True, "SQNR in dB"),
        ({"min_sqnr_db": 31.0}, False, "SQNR in dB of output 'y' is 30; the gate asks for 31"),
        ({"min_cosine": 0.97}, True, "cosine"),
        ({"min_cosine": 0.99}, False, "cosine of output 'y' is 0.98; the gate asks for 0.99"),
        ({"min_top1_agreement": 0.99}, True, "top-1 agreement"),
        ({"min_top1_agreement": 0.995}, False, "top-1 agreement of output 'y' is 0.99; the gate asks for 0.995"),
    ],
)
def test_each_divergence_rule_passes_and_fails_at_its_limit(gate, passed, words):
    result = apply_gate(fidelity(), GatePlan(**gate)).gate
    assert result.passed is passed
    assert words in "; ".join(result.rules if passed else result.failures)
    assert "no labels" in result.reason


@pytest.mark.parametrize(("value", "passed"), [(0.9, True), (0.891, True), (0.8909, False), (0.95, True)])
def test_the_relative_loss_of_a_metric_is_gated_by_default(value, passed):
    metric = compare_metric("accuracy", 0.9, value)
    result = apply_gate(fidelity(metric=metric), GatePlan()).gate
    assert result.passed is passed
    if not passed:
        (failure,) = result.failures
        assert "accuracy fell from 0.9000 to 0.8909" in failure
        assert "the gate allows 1.00%" in failure


@pytest.mark.parametrize(("sqnr", "passed"), [(20.0, True), (19.9, False), (None, True)])
def test_without_labels_and_rules_the_divergence_from_the_model_is_gated_and_that_is_said(sqnr, passed):
    result = apply_gate(fidelity(sqnr=sqnr), GatePlan()).gate
    assert result.passed is passed
    assert result.rules == ("SQNR in dB of 'y': at least 20",)
    assert result.reason == "no labels: gated by divergence from the trained model"


@pytest.mark.parametrize(
    ("sqnr", "top1", "short"), [(30.0, 0.9, 0.0), (27.0, 0.9, 0.1), (30.0, 0.45, 0.5), (27.0, 0.45, 0.6)]
)
def test_how_far_rules_are_from_being_met_adds_up(sqnr, top1, short):
    gate = GatePlan(min_sqnr_db=30.0, min_top1_agreement=0.9)
    assert apply_gate(fidelity(sqnr=sqnr, top1=top1), gate).gate.short == pytest.approx(short)


def test_outputs_that_are_not_floats_have_no_noise_to_gate_and_the_reason_is_told():
    whole = OutputFidelity(output="y", sqnr_db=3.0, cosine=1.0, max_abs_error=1.0, floating=False)
    result = apply_gate(msgspec.structs.replace(fidelity(), outputs=(whole,)), GatePlan()).gate
    assert (result.passed, result.rules, result.failures) == (None, (), ())
    assert "no labels, and no output of floats" in result.reason


def test_exact_outputs_pass_any_sqnr():
    assert apply_gate(fidelity(sqnr=None), GatePlan(min_sqnr_db=1e6)).gate.passed is True


def test_a_rule_that_does_not_apply_fails_rather_than_passes():
    result = apply_gate(fidelity(top1=None), GatePlan(min_top1_agreement=0.1)).gate
    assert result.passed is False
    assert "applies to no output" in result.failures[0]


def test_a_top1_rule_acts_on_the_outputs_that_have_rows_of_scores():
    scores = OutputFidelity(output="s", sqnr_db=9.0, cosine=1.0, max_abs_error=0.0, top1_agreement=0.9)
    value = OutputFidelity(output="v", sqnr_db=9.0, cosine=1.0, max_abs_error=0.0)
    both = Fidelity(reference="onnx", reference_digest="d", samples=1, data="evaluation", outputs=(scores, value))
    assert apply_gate(both, GatePlan(min_top1_agreement=0.9)).gate.rules == ("top-1 agreement of 's': at least 0.9",)
    assert apply_gate(both, GatePlan(min_top1_agreement=0.9)).gate.passed is True
    assert apply_gate(both, GatePlan(min_top1_agreement=0.95)).gate.passed is False


def test_all_failures_are_told():
    gate = GatePlan(min_sqnr_db=99, min_cosine=1, min_top1_agreement=1)
    result = apply_gate(fidelity(metric=compare_metric("f1", 1.0, 0.5)), gate).gate
    assert len(result.failures) == 4


# --- metrics -------------------------------------------------------------------------------------------------------


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_a_relative_loss_is_never_negative_and_zero_without_a_loss(reference, value):
    loss = compare_metric("m", reference, value).relative_loss
    assert loss >= 0
    assert (loss == 0) == (value >= reference)
    if reference > 1e-3 and value < reference:
        assert loss == pytest.approx((reference - value) / reference)


def test_a_reference_of_zero_can_only_be_kept():
    assert compare_metric("m", 0.0, 0.0).relative_loss == 0
    lost = fidelity(metric=compare_metric("m", 0.0, -1e-9))
    assert apply_gate(lost, GatePlan(max_relative_loss=1)).gate.passed is False


def test_accuracy_reads_the_first_output_or_the_one_that_is_named():
    outputs = {"a": np.eye(3, dtype=np.float32), "b": np.eye(3, dtype=np.float32)[::-1]}
    labels = np.arange(3)
    assert load_metric("accuracy", None)(outputs, labels) == 1.0
    assert load_metric("accuracy", "b")(outputs, labels) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="no output 'c'"):
        load_metric("accuracy", "c")(outputs, labels)


@pytest.mark.parametrize("scores", [np.ones(3), np.ones((2, 4)), np.ones((3, 5, 4))])
def test_accuracy_that_does_not_apply_is_told_with_both_shapes(scores):
    with pytest.raises(DataError, match="accuracy does not apply"):
        load_metric("accuracy", None)({"y": scores}, np.zeros(3, np.int64))


def test_accuracy_of_labels_for_each_position():
    scores = np.zeros((2, 3, 4), np.float32)
    scores[..., 2] = 1
    labels = np.array([[2, 2, 0], [2, 2, 2]])
    assert load_metric("accuracy", None)({"y": scores}, labels) == pytest.approx(5 / 6)


def test_accuracy_of_labels_for_each_pixel_of_a_map():
    labels = np.random.default_rng(0).integers(0, 3, (2, 4, 5))
    scores = np.moveaxis(np.eye(3, dtype=np.float32)[labels], -1, 1)
    assert load_metric("accuracy", None)({"y": scores}, labels) == 1.0
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 3
    assert load_metric("accuracy", None)({"y": scores}, labels) == pytest.approx(39 / 40)


def test_a_metric_of_the_users_own_may_import_its_neighbour_and_its_digest_follows_its_file(tmp_path):
    (tmp_path / "near_the_metric.py").write_text("FACTOR = 2\n")
    file = tmp_path / "score.py"
    file.write_text("from near_the_metric import FACTOR\n\n\ndef score(outputs, labels):\n    return FACTOR * 0.25\n")
    reference = f"{file}:score"
    assert load_metric(reference, None)({}, np.zeros(1)) == 0.5
    before = metric_digest(reference, None)
    assert metric_digest(reference, None) == before
    (tmp_path / "near_the_metric.py").write_text("FACTOR = 4\n")
    changed = metric_digest(reference, None)
    assert changed != before, "what the metric imports decides its result as well"
    file.write_text(file.read_text() + "# changed\n")
    assert metric_digest(reference, None) not in (before, changed)


def test_a_metric_reads_what_its_neighbour_says_now(tmp_path):
    (tmp_path / "threshold.py").write_text("VALUE = 0.25\n")
    body = "import threshold\n\n\ndef score(outputs, labels):\n    return threshold.VALUE\n"
    (tmp_path / "score.py").write_text(body)
    other = tmp_path / "other"
    other.mkdir()
    (other / "threshold.py").write_text("VALUE = 0.75\n")
    (other / "score.py").write_text(body)
    assert load_metric(f"{tmp_path / 'score.py'}:score", None)({}, np.zeros(1)) == 0.25
    assert load_metric(f"{other / 'score.py'}:score", None)({}, np.zeros(1)) == 0.75


def test_the_output_that_accuracy_reads_is_part_of_its_digest():
    assert metric_digest("accuracy", "a") != metric_digest("accuracy", "b")


@pytest.mark.parametrize("reference", ["accurate", "no_such_module_here:f", "math:no_such_function", "math:pi"])
def test_a_metric_that_cannot_be_found_is_told(reference):
    with pytest.raises(InputError):
        load_metric(reference, None)
    assert metric_digest(reference, None)
