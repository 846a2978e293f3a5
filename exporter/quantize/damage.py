"""How much noise each int8 node brings, all nodes in one pass over the data.

Every node's int8 form is fed with the float model's activations, so that its noise is its own and not what nodes
before it left. Beside it runs the whole int8 model, whose noise at the same place is what has accumulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.artifacts import NodeDamage, NoiseCauses
from exporter.quantize.energies import channel_decibels, decibels
from exporter.quantize.summing import Sums, summed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from exporter.quantize.damage_graph import Compared, Measured

    Inputs = Mapping[str, NDArray[np.generic]]


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
    sizes = {one.size for node in built.measured for one in node.results}
    lengths = {name for node in built.measured for one in node.results for name in one.lengths}
    # Three runs of the network are alive at most.
    totals = summed(model, float_model.parent, batches, sizes=sizes, runs=3, lengths=lengths, progress=progress)
    judged = [_judged(node, totals) for node in built.measured]
    return tuple(sorted(judged, key=lambda damage: damage.score))


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
