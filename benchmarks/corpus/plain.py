"""The other side: onnxruntime's own static int8 as its documentation shows it, and sessions to compare with."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from corpus.case import Arrays, Case


class Reader(quantization.CalibrationDataReader):
    """Hands batches to onnxruntime's calibrator."""

    def __init__(self, batches: Iterator[Arrays]) -> None:
        self.left = batches

    def get_next(self) -> Arrays | None:
        """The next batch, or None at the end."""
        return next(self.left, None)


def quantized(source: Path, calibration: Arrays, batch: int, target: Path) -> Path:
    """Preprocessed, then QDQ with int8 weights and uint8 activations, one scale for each tensor, min-max."""
    prepared = target.with_name("prepared.onnx")
    try:
        quant_pre_process(str(source), str(prepared), auto_merge=True)
    except Exception:  # Symbolic shape inference fails on some models; the documentation names this way around.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(target),
        Reader(batches(calibration, batch)),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return target


def batches(arrays: Arrays, size: int) -> Iterator[Arrays]:
    """Consecutive samples of all inputs, the last batch smaller."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, size):
        yield {name: array[start : start + size] for name, array in arrays.items()}


def session(path: Path) -> onnxruntime.InferenceSession:
    """One thread, all optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(path: Path, case: Case) -> Arrays:
    """Of all evaluation samples."""
    running = session(path)
    names = [spec.name for spec in running.get_outputs()]
    inputs = {name: array for name, array in case.evaluation.items() if name != "labels"}
    found = [running.run(names, feeds) for feeds in batches(inputs, case.batch)]
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*found, strict=True), strict=True)}


def score(case: Case, found: Arrays, reference: Arrays) -> float:
    """The case's metric; agreement is with `reference`."""
    first, other = next(iter(found.values())), next(iter(reference.values()))
    if case.metric == "agreement":
        return float((first.argmax(-1) == other.argmax(-1)).mean())
    labels = case.evaluation["labels"]
    if case.metric == "accuracy":
        return float((first.argmax(-1) == labels).mean())
    path, _, name = case.metric.rpartition(":")
    spec = importlib.util.spec_from_file_location("corpus_metric", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return float(getattr(module, name)(found, labels))
