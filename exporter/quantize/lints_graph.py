"""Findings about weights and biases of a QDQ file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from exporter.artifacts import Coverage, Lint, QuantScheme
from exporter.quantize.biases import BIAS, Weights
from exporter.quantize.coverage import quantizable_ops

if TYPE_CHECKING:
    import onnx

SAFE = 64
"""Weights up to this magnitude cannot saturate: two of them times 255 fit into 16 bits."""
FILLED = 0.9
"""Share of the integers' range that a channel's largest weight fills, unless its scale was widened."""


def graph_lints(
    float_model: onnx.ModelProto, int8_model: onnx.ModelProto, scheme: QuantScheme, coverage: Coverage
) -> Iterator[Lint]:
    """Saturation, biases, axes of transposed convolutions, and shared weights."""
    weights = Weights(int8_model)
    floats = {tensor.name: tensor for tensor in float_model.graph.initializer}
    if scheme.activations == "uint8" and scheme.weights == "int8" and not scheme.reduce_range:
        yield from _saturation(weights)
    yield from _widened(weights, float_model, floats)
    yield from _transposed(weights)
    yield from _tied(weights, float_model, coverage)


def _saturation(weights: Weights) -> Iterator[Lint]:
    found = []
    for node in weights.nodes:
        for name in node.input[1:2]:
            stored = weights.stored(name)
            if stored is not None and stored[0].dtype == np.int8 and node.op_type in ("Conv", "Gemm", "MatMul"):
                share = float(np.mean(np.abs(stored[0].astype(np.int16)) > SAFE))
                found += [(share, node.name)] if share else []
    for share, name in sorted(found, reverse=True):
        yield Lint(
            kind="saturation",
            subject=name,
            text=f"{share:.1%} of its weights are above {SAFE}: sums of pairs can saturate on x86 CPUs without VNNI",
            action="`--set quantize.reduce_range=true` makes weights that cannot",
        )


def _widened(weights: Weights, float_model: onnx.ModelProto, floats: dict[str, onnx.TensorProto]) -> Iterator[Lint]:
    """Weights that lost bits to a large bias: onnxruntime widens their scales until the bias fits into int32."""
    by_name = {node.name: node for node in float_model.graph.node}
    for node in weights.nodes:
        bias = weights.stored(node.input[BIAS]) if len(node.input) > BIAS else None
        stored = weights.stored(node.input[1]) if bias is not None and bias[0].dtype == np.int32 else None
        before = by_name.get(node.name)
        if stored is None or before is None or before.input[1] not in floats:
            continue
        integers, pair = stored
        if list(floats[before.input[1]].dims) != list(integers.shape):
            continue  # The quantizer gave it another layout.
        axis = next((attribute.i for attribute in pair.attribute if attribute.name == "axis"), 1)
        scales = np.asarray(numpy_helper.to_array(weights.initializers[pair.input[1]]))
        points = np.asarray(numpy_helper.to_array(weights.initializers[pair.input[2]]))
        others = tuple(one for one in range(integers.ndim) if one != axis % integers.ndim) if scales.ndim else None
        values = np.abs(numpy_helper.to_array(floats[before.input[1]])).max(axis=others)
        steps = np.abs(integers.astype(np.int32) - (int(points.flat[0]) if points.size else 0)).max(axis=others)
        lost = (values > 0) & (steps < FILLED * steps.max(initial=0)) if scales.ndim else np.asarray(False)
        if lost.any():
            yield Lint(
                kind="bias-overflow",
                subject=node.name,
                text=f"{int(lost.sum())} channels have a bias that int32 cannot hold at the scale of their weights",
                action="their weights have a wider scale, and fewer bits",
            )


def _transposed(weights: Weights) -> Iterator[Lint]:
    for node in weights.nodes:
        stored = weights.stored(node.input[1]) if node.op_type == "ConvTranspose" else None
        if stored is None:
            continue
        integers, pair = stored
        if np.asarray(numpy_helper.to_array(weights.initializers[pair.input[1]])).size == 1:
            continue
        axis = next((attribute.i for attribute in pair.attribute if attribute.name == "axis"), 1)
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        if axis % integers.ndim != 1:
            text = f"its scales follow axis {axis} of its weights, and output channels are axis 1"
        elif groups > 1:
            text = f"its {groups} groups share scales: one for all channels at the same place of a group"
        else:
            continue
        yield Lint(kind="transposed-axis", subject=node.name, text=text, action="leave it in float if it loses much")


def _tied(weights: Weights, float_model: onnx.ModelProto, coverage: Coverage) -> Iterator[Lint]:
    """Weights that some of their users compute with in int8, and others in float."""
    large = {tensor.name for tensor in float_model.graph.initializer if len(tensor.dims) >= 2}
    after = {node.name: node for node in weights.nodes}
    skipped = {one.node for one in coverage.skipped}
    with_form = quantizable_ops()
    users: dict[str, dict[str, int]] = {}
    for node in float_model.graph.node:
        for index, name in enumerate(node.input):
            if name in large and node.name in after and node.op_type in with_form:
                users.setdefault(name, {})[node.name] = index
    for name, places in users.items():
        left = [node for node in places if node in skipped]
        if 0 < len(left) < len(places):
            as_int8 = any(weights.stored(after[node].input[places[node]]) for node in left)
            yield Lint(
                kind="tied-weights",
                subject=name,
                text=f"{len(places)} nodes share it, {', '.join(left)} in float",
                action="they read the 8-bit weights all the same" if as_int8 else "the file holds it twice",
            )
