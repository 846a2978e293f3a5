"""Dynamic int8: weights in int8, ranges of activations taken at run time, for each inference anew.

For transformers and recurrent nets: their matrix products take most of the time, and their activations have outliers
that one calibrated range serves badly. Convolutions stay float: their dynamic form is slower than float.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import Coverage, QuantScheme, Skipped
from exporter.errors import InputError, StageError, shorten
from exporter.quantize.coverage import EXCLUDED
from exporter.quantize.details import check_names, quant_type
from exporter.quantize.prepare import PREPARED, external_size, is_large, prepare
from exporter.quantize.widening import in_float32

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("MatMul", "Gemm", "Attention")
OPS = ("MatMul", "LSTM", "Attention", "Gather", "EmbedLayerNormalization")
"""What onnxruntime quantizes dynamically, but convolutions; a Gemm becomes a MatMul first."""
RECURRENT = ("LSTM", "GRU", "RNN")
AS_MATMUL = "_MatMul"
"""What onnxruntime adds to the name of a Gemm when it makes a MatMul of it, before it looks what to leave alone."""
NOT_ASKED = "its operator is not among those to quantize"
STACKED = "its weights are no matrix, of which onnxruntime has no dynamic form with one scale a channel"


def suits_dynamic(model: Path, ops: Collection[str] = ()) -> bool:
    """Whether a float ONNX file is a transformer or a recurrent net: what dynamic int8 is worth trying for.

    Args:
        model: the float file.
        ops: operators to quantize, where not all that can be are.
    """
    graph = _graph(model)
    return _is_transformer(graph, ops) or any(node.op_type == "LSTM" for node in _nodes(graph, ops))


def is_transformer(model: Path, ops: Collection[str] = ()) -> bool:
    """Whether a float ONNX file multiplies activations by each other, and by weights; see `suits_dynamic`."""
    return _is_transformer(_graph(model), ops)


def _is_transformer(graph: onnx.GraphProto, ops: Collection[str]) -> bool:
    constant = {tensor.name for tensor in graph.initializer}
    attention = any(
        node.op_type in ("Attention", "MultiHeadAttention")
        or (node.op_type == "MatMul" and constant.isdisjoint(node.input))
        for node in graph.node
    )
    return attention and any(
        node.op_type in PRODUCTS and not constant.isdisjoint(node.input) for node in _nodes(graph, ops)
    )


def _nodes(graph: onnx.GraphProto, ops: Collection[str]) -> list[onnx.NodeProto]:
    return [node for node in graph.node if not ops or node.op_type in ops]


def _graph(model: Path) -> onnx.GraphProto:
    import onnx

    return onnx.load(model, load_external_data=False).graph


def quantize_dynamic(model: Path, output: Path, *, scheme: QuantScheme) -> Coverage:
    """Quantizes the weights of a float ONNX file's products and recurrent layers.

    Args:
        model: the float file.
        output: where the quantized file is written.
        scheme: type and granularity of weights, nodes to leave in float.

    Returns:
        Which nodes became int8.

    Raises:
        InputError: the scheme names a node or operator that does not exist, or no operator with a dynamic form.
        StageError: onnxruntime failed.
    """
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory(dir=output.parent, prefix="prepared-") as temp:
        prepared = Path(temp) / PREPARED
        source = in_float32(model, Path(temp))
        prepare(source, prepared, large=is_large(source), equalized=scheme.equalize)
        graph = onnx.load(prepared, load_external_data=False).graph
        check_names(graph, scheme, ())
        ops = _asked_ops(scheme)
        stacked = _stacked(graph) if scheme.per_channel else set()
        left = {node.name for node in graph.node if node.name in scheme.exclude or not _asked(node.op_type, scheme)}
        left |= stacked
        turned = {f"{node.name}{AS_MATMUL}" for node in graph.node if node.op_type == "Gemm" and node.name in left}
        try:
            quantization.quantize_dynamic(
                prepared,
                output,
                op_types_to_quantize=ops,
                per_channel=scheme.per_channel,
                reduce_range=scheme.reduce_range,
                weight_type=quant_type(scheme.weights),
                nodes_to_exclude=sorted(left | turned),
                use_external_data_format=external_size(prepared) > 0,
                extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
            )
        except Exception as error:  # onnxruntime raises everything from ValueError to its own C++ errors here.
            raise StageError(
                "onnxruntime could not quantize the model dynamically",
                where=output.name,
                why=shorten(f"{type(error).__name__}: {error}"),
                hint="`--set quantize.try_dynamic=false` leaves this variant out",
            ) from error
        return _coverage(graph, output, scheme, stacked)


def _asked_ops(scheme: QuantScheme) -> list[str]:
    """The operators to quantize, in onnxruntime's words; it would take none for all."""
    found = [op for op in OPS if _asked(op, scheme) or (op == "MatMul" and "Gemm" in scheme.ops)]
    if not found:
        raise InputError(
            f"no dynamic int8 is made of {', '.join(scheme.ops)}",
            where="quantize.ops",
            why="their ranges would be taken at run time, and onnxruntime has no fast form of them that does",
            hint=f"operators that have one: {', '.join(sorted((*OPS, 'Gemm')))}",
        )
    return found


def _asked(op: str, scheme: QuantScheme) -> bool:
    return not scheme.ops or op in scheme.ops


def _stacked(graph: onnx.GraphProto) -> set[str]:
    """Names of products of weights that are one row or several matrices.

    With one scale a channel, onnxruntime's quantizer makes files of them that cannot be run.
    """
    flat = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    constant = {tensor.name for tensor in graph.initializer}
    return {node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in constant - flat}


def _coverage(graph: onnx.GraphProto, output: Path, scheme: QuantScheme, stacked: Collection[str]) -> Coverage:
    import onnx

    constant = {tensor.name for tensor in graph.initializer}
    kept = {(node.name, node.op_type) for node in onnx.load(output, load_external_data=False).graph.node}
    quantized: Counter[str] = Counter()
    skipped = []
    for node in graph.node:
        if node.op_type not in (*PRODUCTS, *RECURRENT, "Conv", "ConvTranspose"):
            continue
        computed = node.op_type in PRODUCTS and constant.isdisjoint(node.input)
        stays = (node.name, node.op_type) in kept
        stays |= node.op_type == "Gemm" and (f"{node.name}{AS_MATMUL}", "MatMul") in kept
        if not stays and not computed:
            quantized[node.op_type] += 1
            continue
        reason = "none of its inputs is constant" if computed else "onnxruntime has no fast dynamic form of it"
        reason = STACKED if node.name in stacked else reason
        reason = reason if _asked(node.op_type, scheme) else NOT_ASKED
        reason = EXCLUDED if node.name in scheme.exclude else reason
        skipped.append(Skipped(node=node.name, op=node.op_type, reason=reason))
    return Coverage(
        eligible=quantized.total() + len(skipped),
        quantized=quantized.total(),
        skipped=tuple(skipped),
        quantized_ops=dict(sorted(quantized.items())),
    )
