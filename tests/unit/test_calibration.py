"""Streaming calibration: ranges that do not depend on batches, states that merge, agreement with onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

from exporter.artifacts import ObserverName, QuantScheme
from exporter.errors import StageError
from exporter.quantize.coverage import quantizable_ops
from exporter.quantize.observer import Observed
from exporter.quantize.states import load_states, merged, save_states, unstable_tensors
from exporter.quantize.streaming import observe, tensors_to_observe

OBSERVERS: tuple[ObserverName, ...] = ("minmax", "moving-average", "percentile", "entropy", "mse")
VALUES = npst.arrays(
    np.float32, st.integers(1, 30), elements=st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False)
)


def observed(*batches: np.ndarray) -> Observed:
    state = Observed()
    for values in batches:
        state.add(values, histogram=True)
    return state


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conv, Relu, Conv, global pooling, MatMul; height and width are dynamic."""
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((8, 3, 3, 3), np.float32) / 5,
        "w2": random.standard_normal((8, 8, 3, 3), np.float32) / 8,
        "w3": random.standard_normal((8, 4), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "w3"], ["y"], "matmul"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def images(count: int, size: int = 8, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, size, size), np.float32)


def run(network: Path, batches: Sequence[np.ndarray], *, histogram: bool = True) -> dict[str, Observed]:
    wanted = tensors_to_observe(onnx.load(network), quantizable_ops(), symmetric=True)
    states = observe(
        network, wanted, ({"x": batch} for batch in batches), histogram=histogram, progress=lambda done: None
    )
    return {name: merged(halves) for name, halves in states.items()}


def theirs(network: Path, folder: Path, method: CalibrationMethod, batches: Sequence[np.ndarray], **options: int):
    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[np.ndarray] = iter(batches)

        def get_next(self):
            batch = next(self.left, None)
            return None if batch is None else {"x": batch}

    calibrator = create_calibrator(
        network,
        sorted(quantizable_ops()),
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=method,
        extra_options=options,
    )
    calibrator.collect_data(Reader())
    return calibrator.compute_data()


@given(VALUES, VALUES)
def test_a_merged_state_is_that_of_both_in_turn(first, second):
    one, other = observed(first), observed(second)
    one.merge(other)
    both = observed(first, second)
    assert (one.minimum, one.maximum, one.values) == (both.minimum, both.maximum, both.values)
    assert one.histogram == both.histogram
    assert one.averages.range() == pytest.approx(both.averages.range(), rel=1e-9, abs=1e-9)


@settings(deadline=None)  # The time is that of a machine that others use too.
@given(VALUES)
def test_every_observer_stays_within_what_was_seen(values):
    state = observed(values)
    for observer in OBSERVERS:
        low, high = state.range(observer)
        assert values.min() <= low <= high <= values.max()


@pytest.mark.parametrize("observer", ["percentile", "entropy"])
def test_a_lone_outlier_is_clipped(observer):
    values = np.append(np.random.default_rng(0).standard_normal(400_000, np.float32), np.float32(1000))
    low, high = observed(values).range(observer)
    assert 2 < high < 100
    assert -100 < low < -2


def rounded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    return np.round((np.clip(values, low, high) - low) / step) * step + low


def test_the_mse_observer_makes_a_smaller_error_than_the_extremes():
    values = np.append(np.random.default_rng(0).standard_normal(400_000, np.float32), np.float32(50))
    state = observed(values)
    errors = {name: np.mean((rounded(values, *state.range(name)) - values) ** 2) for name in ("mse", "minmax")}
    assert errors["mse"] < 0.8 * errors["minmax"]


def test_masked_values_are_left_out():
    state = observed(np.float32([-np.inf, 1.0, np.nan, 3.0, np.inf]))
    assert state.range("minmax") == (1.0, 3.0)
    assert state.histogram.total == state.values == 2


def test_a_tensor_that_was_never_seen_has_no_range():
    with pytest.raises(ValueError, match="never seen"):
        observed(np.float32([-np.inf])).range("minmax")


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 2.5, -3.0])
def test_a_constant_tensor_has_a_range_that_holds_it(observer, value):
    low, high = observed(np.full(10, value, np.float32)).range(observer)
    assert min(low, 0.0) <= value <= max(high, 0.0)


def test_states_survive_a_file(tmp_path, network):
    wanted = tensors_to_observe(onnx.load(network), quantizable_ops(), symmetric=True)
    states = observe(network, wanted, [{"x": images(5)}], histogram=True, progress=lambda done: None)
    save_states(tmp_path / "states.npz", states)
    loaded = load_states(tmp_path / "states.npz")
    assert list(loaded) == list(states)
    for name, halves in states.items():
        for half, back in zip(halves, loaded[name], strict=True):
            assert back.histogram == half.histogram
            assert [back.range(observer) for observer in OBSERVERS] == [
                half.range(observer) for observer in OBSERVERS
            ]


def test_ranges_do_not_depend_on_the_batches(network):
    data = images(23)
    whole = run(network, [data])
    parts = run(network, [data[:10], data[10:20], data[20:]])
    for name, state in whole.items():
        # Kernels differ by a rounding between batch sizes, which may put a value into the next bin.
        assert parts[name].range("minmax") == pytest.approx(state.range("minmax"), rel=1e-5, abs=1e-6)
        assert parts[name].values == state.values
        assert parts[name].range("percentile") == pytest.approx(state.range("percentile"), rel=1e-2, abs=1e-3)


def test_batches_may_differ_in_shape(network):
    states = run(network, [images(2, 8), images(3, 12), images(1, 16)])
    assert states["x"].values == 3 * (2 * 64 + 3 * 144 + 256)


@pytest.mark.parametrize("jobs", [1, 2])
def test_rows_that_change_each_other_run_together(tmp_path, jobs):
    nodes = [
        helper.make_node("CumSum", ["x", "axis"], ["sum"], "sum"),
        helper.make_node("MatMul", ["sum", "w"], ["y"], "product"),
    ]
    graph = helper.make_graph(
        nodes,
        "sequence",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["time", 3])],
        [numpy_helper.from_array(np.ones((4, 3), np.float32), "w"), numpy_helper.from_array(np.array(0), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "model.onnx")
    batches = [{"x": np.ones((length, 4), np.float32)} for length in (5, 9, 7)]
    states = observe(
        tmp_path / "model.onnx", ["sum", "y"], batches, histogram=False, progress=lambda done: None, jobs=jobs
    )
    assert merged(states["sum"]).range("minmax") == (1.0, 9.0)
    assert merged(states["y"]).range("minmax") == (4.0, 36.0)
    assert all(half.values for half in states["y"]), "both halves of the data have batches"


def test_a_model_that_fits_one_number_of_rows_is_calibrated_on_it(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "table"], ["y"], "add"),
            helper.make_node("Reshape", ["y", "rows"], ["z"], "r"),
        ],
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4, 2])],
        [
            numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(4, 2), "table"),
            numpy_helper.from_array(np.array([4, 2]), "rows"),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "model.onnx"
    )
    batches = [{"x": np.ones((4, 2), np.float32)}] * 2
    states = observe(tmp_path / "model.onnx", ["z"], batches, histogram=False, progress=lambda done: None)
    assert merged(states["z"]).range("minmax") == (1.0, 8.0)


def test_progress_counts_batches(network):
    seen: list[int] = []
    observe(network, ["y"], [{"x": images(2)}, {"x": images(1)}], histogram=False, progress=seen.append)
    assert seen == [1, 2]


def test_no_data_is_an_error(network):
    with pytest.raises(StageError, match="no calibration data"):
        observe(network, ["y"], [], histogram=False, progress=lambda done: None)


def test_min_max_ranges_are_those_of_onnxruntime(network, tmp_path):
    batches = [images(8), images(8, seed=2), images(3, seed=3)]
    ours, other = run(network, batches, histogram=False), theirs(network, tmp_path, CalibrationMethod.MinMax, batches)
    assert set(ours) == set(other)
    for name, state in ours.items():
        low, high = (float(np.ravel(value)[0]) for value in other[name].range_value)
        assert state.range("minmax") == pytest.approx((low, high), rel=1e-5, abs=1e-6)


def test_percentile_ranges_are_those_of_onnxruntime_within_its_bins(network, tmp_path):
    batches = [images(16), images(16, seed=2)]
    bins = 2048
    ours = run(network, batches)
    other = theirs(network, tmp_path, CalibrationMethod.Percentile, batches, num_bins=bins)
    for name, state in ours.items():
        low, high = (float(np.ravel(value)[0]) for value in other[name].range_value)
        # It counts magnitudes in symmetric bins; ours are cut at both ends.
        width = 8 * max(abs(state.minimum), abs(state.maximum)) / bins
        mine = state.range("percentile")
        assert mine[1] == pytest.approx(high, abs=width)
        assert mine[0] == pytest.approx(max(low, state.minimum), abs=width)


def test_only_what_needs_a_range_is_observed(network):
    model = onnx.load(network)
    folded = tensors_to_observe(model, quantizable_ops(), symmetric=False)
    assert folded["c1"] == "r1", "a Relu is folded into the Conv before it"
    assert {name for name, seen in folded.items() if name == seen} == {"x", "r1", "c2", "p", "f", "y"}
    assert tensors_to_observe(model, quantizable_ops(), symmetric=True)["c1"] == "c1"
    assert set(tensors_to_observe(model, ["MatMul"], symmetric=False)) == {"f", "y"}


def test_tensors_whose_halves_disagree_are_named():
    random = np.random.default_rng(0)
    steady = (observed(random.uniform(-1, 1, 1000)), observed(random.uniform(-1, 1, 1000)))
    shifted = (observed(random.uniform(-1, 1, 1000)), observed(random.uniform(-1, 5, 1000)))
    assert unstable_tensors({"steady": steady, "shifted": shifted}, QuantScheme()) == ["shifted"]


@given(VALUES, st.integers(1, 5), st.sampled_from([-np.inf, np.inf, np.nan, np.finfo(np.float32).min, -1e9]))
def test_masks_are_counted_and_change_no_range(values, count, mask):
    state = observed(np.append(values, np.full(count, mask, np.float32)))
    assert state.masked == count
    assert state.range("minmax") == observed(values).range("minmax")
