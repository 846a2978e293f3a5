"""Everything that can be wrong with a set is found in one pass and told at once."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.artifacts import Preprocessing, TensorSpec
from exporter.data import check, open_set, overlap
from exporter.errors import DataError
from exporter.plan_types import DataPlan, EvaluationPlan

IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 4, 4))
GRAY = {"image": Preprocessing(data_layout="HW", channel_order="GRAY")}


def saved(folder: Path, **arrays: object) -> str:
    path = folder / "d.npz"
    np.savez(path, **arrays)
    return str(path)


def spec(dtype: str = "float32", shape: tuple = ("batch", 3), name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def problem(folder: Path, specs: tuple[TensorSpec, ...] = (), pre: dict | None = None, **arrays: object) -> str:
    plan = DataPlan(data=saved(folder, **arrays))
    data_set = open_set(plan, inputs=specs or (spec(),), preprocessing=pre or {})
    with pytest.raises(DataError) as caught:
        check(data_set)
    with pytest.raises(DataError):
        list(data_set.batches(2))
    return str(caught.value)


def test_a_missing_and_an_unexpected_name_come_with_the_closest_match(tmp_path):
    text = problem(tmp_path, (spec(name="image"),), imagee=np.zeros((2, 3), np.float32))
    assert "input 'image' is missing" in text
    assert "did you mean 'imagee'" in text
    assert "array 'imagee' is no input of the model; did you mean 'image'" in text


def test_pixels_for_a_float_input_get_the_hint_to_preprocess(tmp_path):
    text = problem(tmp_path, (IMAGE,), image=np.zeros((2, 1, 4, 4), np.uint8))
    assert "input 'image' is uint8, the model takes float32" in text
    assert "[model.inputs.image] preprocess = {" in text


@pytest.mark.parametrize(
    ("have", "want"), [("int64", "int32"), ("float32", "float16"), ("int32", "float32"), ("uint8", "int64")]
)
def test_other_dtypes_are_refused(have, want, tmp_path):
    text = problem(tmp_path, (spec(want),), x=np.zeros((2, 3), have))
    assert f"input 'x' is {have}, the model takes {want}" in text


@pytest.mark.parametrize(
    ("have", "want", "words"), [("int32", "int64", "widened"), ("float64", "float32", "rounded")]
)
def test_usual_conversions_are_made_and_noted(have, want, words, tmp_path):
    plan = DataPlan(data=saved(tmp_path, x=np.arange(6).reshape(2, 3).astype(have)))
    data_set = open_set(plan, inputs=(spec(want),), preprocessing={})
    assert next(data_set.batches(2)).inputs["x"].dtype == want
    assert any(words in note for note in check(data_set).notes)


def test_a_float64_too_large_for_float32_is_reported_as_infinite(tmp_path):
    text = problem_only_check(tmp_path, x=np.array([[0, 0, 0], [0, 1e300, 0]]))
    assert "1 NaN or infinite value in 1 sample, first in sample 1" in text


def test_rank_and_size_say_which_axis(tmp_path):
    text = problem(tmp_path, x=np.zeros((2, 3, 1), np.float32))
    assert "rank 3 with shape [2, 3, 1], the model takes rank 2: [batch, 3]" in text
    text = problem(tmp_path, x=np.zeros((2, 5), np.float32))
    assert "5 on axis 1 (the model takes 3)" in text


def test_named_axes_must_agree_between_inputs(tmp_path):
    specs = (spec(shape=("n", "time"), name="a"), spec(shape=("n", "time"), name="b"))
    text = problem(tmp_path, specs, a=np.ones((2, 3), np.float32), b=np.ones((2, 4), np.float32))
    assert "input 'b' has 4 on axis 1 'time', input 'a' has 3" in text


def test_nan_names_input_count_and_sample(tmp_path):
    values = np.zeros((9, 3), np.float32)
    values[4, 1], values[7] = np.nan, np.inf
    assert "input 'x' has 4 NaN or infinite values in 2 samples, first in sample 4" in problem_only_check(
        tmp_path, x=values
    )


def problem_only_check(folder: Path, **arrays: object) -> str:
    with pytest.raises(DataError) as caught:
        check(open_set(DataPlan(data=saved(folder, **arrays)), inputs=(spec(),), preprocessing={}))
    return str(caught.value)


def test_empty_arrays_and_a_lone_number_are_errors(tmp_path):
    assert "0 samples" in problem(tmp_path, x=np.zeros((0, 3), np.float32))
    assert "no values" in problem(tmp_path, (spec(shape=("n", "m")),), x=np.zeros((2, 0), np.float32))
    assert "single number" in problem(tmp_path, x=np.float32(1))


def test_arrays_of_different_sample_counts_are_listed(tmp_path):
    specs = (spec(name="a"), spec(name="b"))
    text = problem(tmp_path, specs, a=np.zeros((2, 3), np.float32), b=np.zeros((5, 3), np.float32))
    assert "'a' has 2, 'b' has 5" in text


def test_text_and_complex_arrays_are_no_inputs(tmp_path):
    assert "not one that models take" in problem(tmp_path, x=np.array(["a", "b"]))
    assert "complex64" in problem(tmp_path, x=np.zeros((2, 3), np.complex64))


def test_inputs_without_a_common_sample_axis_need_a_callable(tmp_path):
    specs = (spec(shape=(1, 3), name="a"), spec(shape=(), name="rate", dtype="int64"))
    text = problem(tmp_path, specs, a=np.zeros((2, 3), np.float32), rate=np.zeros(2, np.int64))
    assert "no common sample axis" in text
    assert "Python callable" in text


def test_a_rename_of_nothing_and_a_double_name_are_errors(tmp_path):
    x = np.zeros((2, 3), np.float32)
    plan = DataPlan(data=saved(tmp_path, x=x, other=x), rename={"other": "x", "gone": "y"})
    with pytest.raises(DataError) as caught:
        check(open_set(plan, inputs=(spec(),), preprocessing={}))
    assert "more than one array is named or renamed to input 'x'" in str(caught.value)
    assert "`rename` names 'gone'" in str(caught.value)


def test_all_problems_come_at_once_and_at_most_twelve(tmp_path):
    arrays = {f"x{index}": np.zeros((2, 3), np.int8) for index in range(30)}
    specs = tuple(spec(name=name) for name in arrays)
    text = problem(tmp_path, specs, **arrays)
    assert "the data have 30 problems" in text
    assert "and 18 more" in text
    assert text.count("\n  - ") == 13


def test_problems_of_names_values_and_labels_are_told_together(tmp_path):
    data = saved(tmp_path, x=np.full((2, 3), np.nan, np.float32), stray=np.zeros((2, 1)), y=np.zeros(2, np.float32))
    with pytest.raises(DataError) as caught:
        check(open_set(EvaluationPlan(data=data, labels="y"), inputs=(spec(),), preprocessing={}))
    for words in ("6 NaN", "'stray' is no input", "labels 'y' are float32"):
        assert words in str(caught.value)


def labelled(folder: Path, labels: object, metric: str = "accuracy", classes: tuple[str, ...] = ()):
    plan = EvaluationPlan(data=saved(folder, x=np.zeros((3, 3), np.float32), y=labels), labels="y", metric=metric)
    return open_set(plan, inputs=(spec(),), preprocessing={}, class_names=classes)


def test_labels_of_another_length_are_an_error(tmp_path):
    with pytest.raises(DataError, match="'x' has 3, 'y' has 2"):
        check(labelled(tmp_path, np.zeros(2, np.int64)))


def test_accuracy_needs_integers_within_the_classes(tmp_path):
    with pytest.raises(DataError, match="accuracy needs class indices"):
        check(labelled(tmp_path, np.zeros(3, np.float32)))
    with pytest.raises(DataError, match=r"not all within 0\.\.1"):
        check(labelled(tmp_path, np.array([0, 1, 2]), classes=("a", "b")))
    assert check(labelled(tmp_path, np.array([0, 1, 1]), classes=("a", "b"))).samples == 3


def test_another_metric_takes_float_labels_but_no_nan(tmp_path):
    assert check(labelled(tmp_path, np.zeros(3), metric="m:f")).samples == 3
    with pytest.raises(DataError, match="labels 'y' has 1 NaN"):
        check(labelled(tmp_path, np.array([0, np.nan, 1]), metric="m:f"))


def test_missing_labels_are_named_with_the_closest_match(tmp_path):
    plan = EvaluationPlan(data=saved(tmp_path, x=np.zeros((3, 3), np.float32), label=np.zeros(3)), labels="labels")
    with pytest.raises(DataError, match=r"labels 'labels' are missing .*did you mean 'label'"):
        check(open_set(plan, inputs=(spec(),), preprocessing={}))


def test_one_bad_file_of_many_is_named_with_its_sample(tmp_path):
    for index in range(5):
        np.save(tmp_path / f"s{index}.npy", np.zeros(4 if index == 3 else 3, np.float32))
    (tmp_path / "s4.npy").write_bytes(b"garbage")
    with pytest.raises(DataError) as caught:
        check(open_set(DataPlan(data=str(tmp_path)), inputs=(spec(),), preprocessing={}))
    assert "4 on axis 1 (the model takes 3); the model takes [batch, 3] (sample 3)" in str(caught.value)
    assert "cannot be read from s4.npy" in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(first=st.sets(st.integers(0, 40), min_size=1), second=st.sets(st.integers(0, 40), min_size=1))
def test_overlap_counts_the_samples_in_common(tmp_path, first, second):
    def report(values: set[int]):
        data = saved(tmp_path, x=np.array(sorted(values), np.float32)[:, None] * np.ones((1, 3), np.float32))
        return check(open_set(DataPlan(data=data), inputs=(spec(),), preprocessing={}))

    assert overlap(report(first), report(second)) == len(first & second)


def test_copies_within_a_set_are_noted(tmp_path):
    report = check(
        open_set(DataPlan(data=saved(tmp_path, x=np.zeros((4, 3), np.float32))), inputs=(spec(),), preprocessing={})
    )
    assert report.samples == 4
    assert "3 samples are copies of earlier ones" in report.notes


def test_overlap_is_found_between_pixels_and_the_same_samples_as_floats(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4), np.uint8)
    raw = open_set(DataPlan(data=saved(tmp_path, image=pixels)), inputs=(IMAGE,), preprocessing=GRAY)
    first = check(raw)
    ready = np.concatenate([batch.inputs["image"] for batch in raw.batches(2)])
    second = check(open_set(DataPlan(data=saved(tmp_path, image=ready[3:])), inputs=(IMAGE,), preprocessing=GRAY))
    assert overlap(first, second) == 2
    assert any("taken as they are" in note for note in second.notes)


def test_two_thousand_small_images_are_checked_in_a_blink(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 28, 28), np.uint8)
    plan = EvaluationPlan(data=saved(tmp_path, image=pixels, labels=np.zeros(2000, np.int64)), labels="labels")
    inputs = (TensorSpec(name="image", dtype="float32", shape=("batch", 1, 28, 28)),)
    data_set = open_set(plan, inputs=inputs, preprocessing=GRAY)
    best = 9.0
    for _ in range(3):
        start = time.process_time()
        check(data_set)
        best = min(best, time.process_time() - start)
    assert best < 0.2


@pytest.mark.parametrize(("asked", "noted"), [(9, True), (4, False), (2, False)])
def test_fewer_samples_than_the_plan_asks_for_are_noted(asked, noted, tmp_path):
    plan = DataPlan(
        data=saved(tmp_path, x=np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)), samples=asked
    )
    data_set = open_set(plan, inputs=(spec(),), preprocessing={})
    text = "the plan asks for 9 samples, and there are 4"
    assert (text in data_set.notes) == (text in check(data_set).notes) == noted
