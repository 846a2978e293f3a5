"""Other ways to compute an int8 file, each as right as the next.

Kernels fuse differently on other CPUs and in other versions of a runtime, and then some values are a step apart. How
much of a step arrives at the outputs is a property of the model, and differs by orders of magnitude.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.masks import MASK
from exporter.quantize.coverage import DEQUANTIZE
from exporter.quantize.prepare import external_size

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]
    Session = Callable[[Arrays], Mapping[str, NDArray[np.generic]]]

MIDDLE = 128
"""What a signed byte and the unsigned one of the same bits, its highest turned, differ by."""


def largest_differences(
    model: Path, cases: Callable[[], Iterable[Arrays]], answers: Sequence[Arrays], *, dynamic: bool
) -> dict[str, float]:
    """How far other ways to compute an int8 file are from answers that one way gave.

    A static file is computed in float between its roundings, and by kernels for unsigned weights, whose sums saturate
    on no CPU; a dynamic one without optimizations. What onnxruntime cannot run so tells nothing.

    Args:
        model: the ONNX file, its external data beside it.
        cases: gives the inputs, from the first on.
        answers: outputs of each case.
        dynamic: ranges are taken at run time.

    Returns:
        The largest difference of each output; infinite values and masks are left out.
    """
    found: dict[str, float] = {}
    for way in [_plain] if dynamic else [_in_float, _unsigned]:
        with suppress(Exception), way(model) as session:
            for inputs, expected in zip(cases(), answers, strict=True):
                for name, values in session(inputs).items():
                    if name in expected and values.shape == expected[name].shape:
                        found[name] = max(found.get(name, 0.0), _largest(values, expected[name]))
    return found


def _largest(left: NDArray[np.generic], right: NDArray[np.generic]) -> float:
    one, other = left.astype(np.float64), right.astype(np.float64)
    real = (np.abs(one) < MASK) & (np.abs(other) < MASK)  # Written so that NaN, which compares false, is left out.
    return float(np.abs(one[real] - other[real]).max(initial=0.0))


@contextmanager
def _in_float(model: Path) -> Iterator[Session]:
    yield _session(model, entries={"session.disable_quant_qdq": "1"})


@contextmanager
def _plain(model: Path) -> Iterator[Session]:
    yield _session(model, optimized=False)


@contextmanager
def _unsigned(model: Path) -> Iterator[Session]:
    import onnx

    loaded = onnx.load(model)
    _turn_weights(loaded)
    with tempfile.TemporaryDirectory(prefix="unsigned-") as place:
        path = Path(place) / "model.onnx"
        onnx.save(loaded, path, save_as_external_data=external_size(model) > 0, location="model.onnx.data")
        yield _session(path)


def _turn_weights(model: onnx.ModelProto) -> None:
    """Makes signed weights unsigned, with zero points that keep their values."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    turned: set[str] = set()
    for node in model.graph.node:
        names = [name for name in (node.input[0], *node.input[2:3]) if name in stored]
        if node.op_type != DEQUANTIZE or len(names) < 2:
            continue
        for name in names:
            tensor = stored[name]
            if tensor.data_type == tensor.INT8 and name not in turned:
                values = numpy_helper.to_array(tensor).astype(np.int16) + MIDDLE
                tensor.CopyFrom(numpy_helper.from_array(values.astype(np.uint8), name))
                turned.add(name)


def _session(model: Path, *, entries: Mapping[str, str] | None = None, optimized: bool = True) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Arrays) -> Mapping[str, Any]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run
