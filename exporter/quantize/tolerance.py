"""How far an int8 output may be from its expected value on another CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import Tolerance
from exporter.masks import rounding_of, unmasked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STEPS = 1.01
"""Kernels fused differently round differently by one step; the rest is float rounding of the comparison."""


def int8_tolerance(model: Path, expected: Mapping[str, NDArray[np.generic]]) -> dict[str, Tolerance]:
    """One int8 step for each float output, none for integer outputs.

    The step is the scale of the DequantizeLinear that makes the output. An output computed in float after the
    last int8 node has no step of its own; it is given 1/255 of the range of its expected values and zero, masks left
    out: what it would have had, whether its values differ or not. Halves are rounded once more.
    """
    import numpy as np

    scales = _output_scales(model)
    tolerances = {}
    for name, values in expected.items():
        if not np.issubdtype(values.dtype, np.floating):
            tolerances[name] = Tolerance(atol=0.0)
            continue
        quantum = scales.get(name)
        real = unmasked(values)
        low, high = float(real.min(initial=0.0)), float(real.max(initial=0.0))
        step = quantum if quantum is not None else max(high - low, 1e-6) / 255
        rounding = float(np.finfo(real.dtype).eps) * max(-low, high)
        tolerances[name] = Tolerance(atol=STEPS * step + rounding, rtol=rounding_of(values), quantum=quantum)
    return tolerances


def _output_scales(model: Path) -> dict[str, float]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(model).graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    scales = {}
    for output in graph.output:
        node = producers.get(output.name)
        if node is not None and node.op_type == "Cast":
            node = producers.get(node.input[0])
        if node is not None and node.op_type == "DequantizeLinear" and node.input[1] in initializers:
            scale = numpy_helper.to_array(initializers[node.input[1]])
            if scale.size == 1:
                scales[output.name] = float(scale.reshape(()))
    return scales
