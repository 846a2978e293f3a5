"""Operators of a small .tflite file, quantized without a converter: what is told of each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import quadrants

from exporter.errors import StageError
from exporter.target_api import OperatorFacts
from targets import _tflite
from targets._litert_jobs import ConversionJob, VariantJob
from targets._litert_worker import calibrate, quantize
from targets._tflite_operators import operator_facts
from targets._tflite_running import written
from targets._tflite_schemes import Left, read_ranges
from targets.runner.tflite_runtime import open_session

FLOAT = Path(__file__).parents[1] / "e2e" / "quadrants_by_onnx2tf.tflite"
SAMPLES = [{"input_0": image[None]} for image in quadrants(8, seed=3)[0]]
KINDS = ["RESHAPE", "CONV_2D", "AVERAGE_POOL_2D", "TRANSPOSE", "RESHAPE", "FULLY_CONNECTED"]


@pytest.fixture(scope="module")
def ranges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranges")
    np.savez(folder / "samples.npz", **{f"{index}/input_0": one["input_0"] for index, one in enumerate(SAMPLES)})
    path = folder / "ranges.json"
    calibrate(ConversionJob(float_file=str(FLOAT), ranges=str(path), calibration=str(folder / "samples.npz")))
    return path


def made(folder: Path, ranges: Path, precision: Any, **options: Any) -> tuple[Path, tuple[OperatorFacts, ...]]:
    path = folder / "model.tflite"
    job = VariantJob(precision=precision, file=str(path), **options)
    quantize(FLOAT, job, {} if precision == "dynamic-int8" else read_ranges(ranges))
    return path, operator_facts(FLOAT, path, SAMPLES)


def sqnr_db(path: Path) -> float:
    def answers(model: Path) -> NDArray[np.float64]:
        run = open_session(str(model), 1).run
        return np.array([next(iter(run(sample).values())) for sample in SAMPLES], np.float64)

    wanted = answers(FLOAT)
    return 10 * math.log10(np.square(wanted).sum() / np.square(answers(path) - wanted).sum())


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int16x8", 16), ("dynamic-int8", None)])
@pytest.mark.parametrize("integer", [False, True])
def test_each_operator_tells_its_integers_and_the_last_what_the_file_answers(
    precision: str, bits: int | None, integer: bool, tmp_path: Path, ranges: Path
) -> None:
    path, found = made(tmp_path, ranges, precision, integer_io=integer)
    assert [one.op for one in found] == KINDS
    assert [one.bits for one in found] == [bits] * len(KINDS)
    assert [one.op for one in found if one.weight_bits == 8] == ["CONV_2D", "FULLY_CONNECTED"]
    computing = [one.op for one in found if one.damage is not None]
    pooled = [] if bits is None else ["AVERAGE_POOL_2D"]
    assert computing == ["CONV_2D", *pooled, "FULLY_CONNECTED"], "others only move values, or are float"
    last = found[-1]
    assert last.accumulated_db == pytest.approx(sqnr_db(path), abs=0.05)
    assert last.damage is not None
    assert 40 < (last.damage.sqnr_db or 0) < 120
    if bits is not None:
        assert last.range is not None
        assert last.scale == pytest.approx((last.range[1] - last.range[0]) / (2**bits - 1))
        assert last.zero_point is not None


def test_of_a_file_without_integers_no_sample_is_run(tmp_path: Path, ranges: Path) -> None:
    def never() -> Any:
        raise AssertionError
        yield

    path, found = made(tmp_path, ranges, "int8", left=Left(types=tuple(_tflite.kinds(FLOAT))))
    assert [(one.bits, one.weight_bits, one.damage, one.accumulated_db) for one in found] == [(None,) * 4] * len(
        KINDS
    )
    assert operator_facts(FLOAT, path, never()) == found


def test_files_of_two_models_are_told_apart(tmp_path: Path, ranges: Path) -> None:
    path, _ = made(tmp_path, ranges, "int8")
    model = _tflite.read_model(FLOAT)
    model.subgraphs[0].operators = model.subgraphs[0].operators[:-1]
    (tmp_path / "other.tflite").write_bytes(written(model))
    with pytest.raises(StageError, match="other operators than the float one"):
        operator_facts(tmp_path / "other.tflite", path, SAMPLES)
