"""Runs a graph whose outputs are sums, over all batches, and adds them up."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import StageError
from exporter.quantize.streaming import ACTIVATION_BYTES, MOST_TOGETHER, can_split, parts

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Inputs = Mapping[str, NDArray[np.generic]]

Sums = dict[str, "NDArray[np.float64]"]
SINGLE_MESSAGE = 1_900_000_000
"""Protobuf ends at 2 GB."""


def summed(
    model: onnx.ModelProto,
    folder: Path,
    batches: Iterable[Inputs],
    *,
    sizes: Collection[str],
    runs: int,
    lengths: Collection[str] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> Sums:
    """Each output of a graph, added up over the data.

    Args:
        model: the graph; Q/DQ pairs in it compute in float.
        folder: where its external data lie.
        batches: input name to array; they run a few samples at a time.
        sizes: outputs that count the values of an activation, from which the memory of a sample is known.
        runs: how many times each activation is alive at most.
        lengths: outputs that are lengths, which stay the same or become NaN.
        progress: called with the number of batches done.

    Raises:
        StageError: no batch was given.
        ExporterError: whatever `batches` raises.
    """
    names = [output.name for output in model.graph.output]
    totals: Sums = {name: np.zeros(0) for name in names}
    split, step, seen = can_split(model), 1, 0
    run = _session(model, names, folder) if names else lambda part: {}
    for done, batch in enumerate(batches, start=1):
        split = split and (done > 1 or _fits_one(run, batch))
        for part in parts(batch, step) if split else (batch,):
            found = run(part)
            for name, values in found.items():
                totals[name] = (_same if name in lengths else _added)(totals[name], values)
            if not seen and found:
                # Nothing says in which order nodes go, and so what is alive at once.
                alive = runs * 4 * sum(int(found[name]) for name in sizes)
                step = max(1, min(MOST_TOGETHER, ACTIVATION_BYTES // max(1, alive)))
            seen += 1
        progress(done)
    if not seen:
        raise StageError("there were no data to measure quantization noise on", where="model.onnx")
    return totals


def _fits_one(run: Callable[[Inputs], Sums], batch: Inputs) -> bool:
    """Whether a sample can run by itself: some models fit one number of rows, whatever their axis is called."""
    try:
        run(next(parts(batch, 1)))
    except Exception:  # onnxruntime's own types of errors.
        return False
    return True


def _session(model: onnx.ModelProto, names: list[str], folder: Path) -> Callable[[Inputs], Sums]:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    providers = ["CPUExecutionProvider"]
    if model.ByteSize() < SINGLE_MESSAGE:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    else:
        with tempfile.TemporaryDirectory(prefix="damage-") as temp:
            path = Path(temp) / "model.onnx"
            onnx.save(model, path, save_as_external_data=True)
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)

    def run(part: Inputs) -> Sums:
        found: Any = session.run(names, dict(part))
        return dict(zip(names, found, strict=True))

    return run


def _added(total: NDArray[np.float64], values: NDArray[np.generic]) -> NDArray[np.float64]:
    """The sum, position by position; the longer one of two lengths stays."""
    more: NDArray[np.float64] = np.asarray(values, np.float64).reshape(-1)
    if len(more) < len(total):
        total, more = more, total.copy()
    elif len(total):
        more = more.copy()
    more[: len(total)] += total
    return more


def _same(before: NDArray[np.float64], values: NDArray[np.generic]) -> NDArray[np.float64]:
    """A length that stays the same, or NaN."""
    found: NDArray[np.float64] = np.asarray(values, np.float64).reshape(-1)
    return found if not len(before) or np.array_equal(before, found) else np.full(1, np.nan)
