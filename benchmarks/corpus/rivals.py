"""Latency of one network's int8 forms in one process: ours, onnxruntime's, OpenVINO's and LiteRT's.

Usage: python -m corpus.rivals JOB.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from corpus import plain
from corpus.racing import median, race, ratio

Runner = Callable[[], object]


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Makes the rivals' files, races all that could be made, and says why the others could not."""
    samples = np.load(job["data"])["x"]
    folder = Path(job["folder"])
    makers: dict[str, Callable[[], Runner]] = {
        "float": lambda: _onnx(Path(job["float"]), samples),
        "ours": lambda: _ours(Path(job["ours"]), job["ours_runtime"], samples),
        "onnxruntime": lambda: _onnx(
            plain.quantized(Path(job["float"]), {"x": samples}, 8, folder / "plain.onnx"), samples
        ),
        "nncf+openvino": lambda: _openvino(Path(job["float"]), samples, transformer=job["transformer"]),
        "litert": lambda: _litert(job, samples),
    }
    runners, failures = {}, {}
    for name, make in makers.items():
        try:
            runners[name] = make()
            runners[name]()
        except Exception as error:
            runners.pop(name, None)
            failures[name] = f"{type(error).__name__}: {error}"[:300]
    timings = race(runners, seconds=job["seconds"], least=40)
    rivals = [name for name in runners if name not in ("float", "ours")]
    best = min(rivals, key=lambda name: median(timings, name))
    return {
        "ms": {name: median(timings, name) for name in runners},
        "rounds": len(timings["ours"]),
        "best": best,
        "ratio": ratio(timings, "ours", best),
        "failures": failures,
    }


def _ours(path: Path, runtime: str, samples: np.ndarray) -> Runner:
    if runtime == "onnxruntime":
        return _onnx(path, samples)
    from targets.runner import openvino_runtime

    session = openvino_runtime.open_session(str(path), 1)
    return lambda: session.run({"x": samples[:1]})


def _onnx(path: Path, samples: np.ndarray) -> Runner:
    session = plain.session(path)
    return lambda: session.run(None, {"x": samples[:1]})


def _openvino(path: Path, samples: np.ndarray, *, transformer: bool) -> Runner:
    import nncf
    import openvino

    model = openvino.convert_model(path)
    model.reshape([1, *samples.shape[1:]])
    dataset = nncf.Dataset([{"x": sample[None]} for sample in samples])
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(nncf.quantize(model, dataset, model_type=kind), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda: request.infer({"x": samples[:1]})


def _litert(job: dict[str, Any], samples: np.ndarray) -> Runner:
    if "litert_failure" in job:
        raise RuntimeError(job["litert_failure"])
    sys.path.append(job["litert_packages"])
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=job["litert"], num_threads=1)
    interpreter.allocate_tensors()
    taken = interpreter.get_input_details()[0]
    sample = samples[:1]
    if list(taken["shape"]) != list(sample.shape):
        sample = np.ascontiguousarray(sample.transpose(0, 2, 3, 1))
    if taken["dtype"] != np.float32:
        scale, zero = taken["quantization"]
        limits = np.iinfo(taken["dtype"])
        sample = np.clip(np.round(sample / scale) + zero, limits.min, limits.max).astype(taken["dtype"])

    def run() -> object:
        interpreter.set_tensor(taken["index"], sample)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return run


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
