"""How much noise each int8 node brings, all nodes in one pass over the data.

Every node's int8 form is fed with the float model's activations, so that its noise is its own and not what nodes
before it left. Beside it runs the whole int8 model, whose noise at the same place is what has accumulated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.artifacts import NodeDamage, NoiseCauses
from exporter.errors import StageError
from exporter.quantize.energies import channel_decibels, decibels
from exporter.quantize.streaming import ACTIVATION_BYTES, MOST_TOGETHER, can_split, parts

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from exporter.quantize.damage_graph import Compared, Measured

    Inputs = Mapping[str, NDArray[np.generic]]
    Sums = dict[str, NDArray[np.float64]]

SINGLE_MESSAGE = 1_900_000_000
"""Protobuf ends at 2 GB."""


def node_damage(
    float_model: Path,
    int8_model: Path,
    batches: Iterable[Inputs],
    *,
    causes: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[NodeDamage, ...]:
    """Noise that each int8 node of a QDQ file brings, worst first.

    The nodes compute as ONNX defines them, in float between the roundings: neither fused kernels nor their saturation
    on CPUs without VNNI play a part, so that the order is the same on every machine.

    Args:
        float_model: the prepared.onnx that `calibrate` wrote and that the int8 model was made from.
        int8_model: the QDQ file.
        batches: input name to array; they run a few samples at a time.
        causes: tell what share of the noise comes from inputs, weights and results; takes half as long again.
        progress: called with the number of batches done.

    Raises:
        StageError: no batch was given.
        ExporterError: whatever `batches` raises.
    """
    import onnx

    from exporter.quantize.damage_graph import DamageGraph

    built = DamageGraph(onnx.load(float_model), onnx.load(int8_model), causes=causes)
    model = built.finish()
    names = [output.name for output in model.graph.output]
    sizes = {one.size for node in built.measured for one in node.results}
    lengths = {name for node in built.measured for one in node.results for name in one.lengths}
    totals: Sums = {name: np.zeros(0) for name in names}
    split, step, seen = can_split(model), 1, 0
    run = _session(model, names, float_model.parent) if names else lambda part: {}
    for done, batch in enumerate(batches, start=1):
        for part in parts(batch, step) if split else (batch,):
            found = run(part)
            for name, values in found.items():
                totals[name] = (_same if name in lengths else _added)(totals[name], values)
            if not seen and found:
                # Three runs of the network are alive at most, and nothing says in which order they go.
                alive = 3 * 4 * sum(int(found[name]) for name in sizes)
                step = max(1, min(MOST_TOGETHER, ACTIVATION_BYTES // max(1, alive)))
            seen += 1
        progress(done)
    if not seen:
        raise StageError("there were no data to measure quantization noise on", where=int8_model.name)
    judged = [_judged(node, totals) for node in built.measured]
    return tuple(sorted(judged, key=lambda damage: damage.score))


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


def _judged(node: Measured, totals: Sums) -> NodeDamage:
    first = node.results[0]
    signal, noise = (sum(float(totals[one.energies[0][side]].sum()) for one in node.results) for side in (0, 1))
    accumulated = sum(float(totals[one.noise["accumulated"]].sum()) for one in node.results)
    channels = [value for one in node.results if (value := _channels(one, totals)) is not None]
    return NodeDamage(
        node=node.node,
        op=node.op,
        output=first.tensor,
        bits=min(one.bits for one in node.results),
        range=first.range,
        sqnr_db=decibels(signal, noise),
        channel_db=min(channels, default=None),
        accumulated_db=decibels(signal, accumulated),
        causes=_causes(node, noise, totals),
    )


def _channels(one: Compared, totals: Sums) -> float | None:
    """The mean SQNR of channels, or of positions along the last axis where that is lower.

    A Concat is as bad as the worst of the tensors that it joins.
    """
    means: list[float] = []
    lengths = [float(totals[name][0]) for name in one.lengths]
    for index, (signal, noise) in enumerate(one.energies):
        grouped = index == 0 and not np.isnan(lengths).any()
        means += channel_decibels(totals[signal], totals[noise], lengths if grouped else ())
    return min(means, default=None)


def _causes(node: Measured, noise: float, totals: Sums) -> NoiseCauses | None:
    """Shares of a node's noise; what neither its weights nor its results explain came in with its inputs."""

    def total(cause: str) -> float:
        return sum(float(totals[one.noise[cause]].sum()) for one in node.results if cause in one.noise)

    asked = any({"weights", "result"} & one.noise.keys() for one in node.results)
    if not asked or not noise > 0:
        return None
    weights, result = total("weights"), total("result")
    whole = max(noise, weights + result)
    return NoiseCauses(inputs=(whole - weights - result) / whole, weights=weights / whole, result=result / whole)
