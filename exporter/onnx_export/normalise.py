"""A user's own ONNX file into the pipeline: the same graph and names, in a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import BATCH
from exporter.errors import ModelError, shorten

if TYPE_CHECKING:
    import onnx

SINGLE_FILE_LIMIT = 1_900_000_000
"""Bytes; protobuf ends at 2 GiB."""


def normalise_onnx(source: Path, target: Path, fixed_axes: Mapping[str, int] | None = None) -> None:
    """Copies an ONNX model, its external data included; one file where it fits, else `<target>.data` beside it.

    Of several nodes with one name, which runtimes refuse, all but the first get a number behind it.

    Args:
        source: a model that was inspected before, so that its external data are known to be safe.
        target: the file to write; its folder exists.
        fixed_axes: dynamic axes by name, to be given a fixed size; a nameless axis 0 of an input is `batch`, another
            one `<input>_axis<k>`. Shapes of outputs follow where they can be told.

    Raises:
        ModelError: the shapes in the file contradict its operators.
    """
    import onnx
    from onnx import external_data_helper as external

    graph = onnx.load(str(source), load_external_data=False)
    outside = any(external.uses_external_data(tensor) for tensor in external._get_all_tensors(graph))
    if outside:
        # Loaded before shapes are checked: sizes may depend on values of initializers.
        external.load_external_data_for_model(graph, str(source.parent))
    renamed = _told_apart(graph.graph)
    if fixed_axes:
        _fix(graph.graph, fixed_axes)
    large = graph.ByteSize() >= SINGLE_FILE_LIMIT
    if fixed_axes and not large:
        _settle_outputs(graph)
    if not large:
        _check_shapes(graph, source)
    if not (outside or fixed_axes or renamed):
        shutil.copyfile(source, target)
    elif not large:
        onnx.save(graph, str(target))
    else:
        onnx.save(
            graph,
            str(target),
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=f"{target.name}.data",
        )


def _told_apart(graph: onnx.GraphProto) -> bool:
    """Gives nodes names of their own; True where one had that of another."""
    taken = {node.name for node in graph.node}
    seen: set[str] = set()
    renamed = False
    for node in graph.node:
        if node.name in seen:
            number = next(number for number in count(1) if f"{node.name}_{number}" not in taken)
            node.name = f"{node.name}_{number}"
            taken.add(node.name)
            renamed = True
        if node.name:
            seen.add(node.name)
    return renamed


def _check_shapes(model: onnx.ModelProto, source: Path) -> None:
    from onnx import shape_inference

    try:
        shape_inference.infer_shapes(model, strict_mode=True)
    except shape_inference.InferenceError as error:
        raise ModelError(
            "the shapes in the ONNX model contradict its operators",
            where=str(source),
            why=shorten(error),
            hint="export the model again",
        ) from error


def _settle_outputs(model: onnx.ModelProto) -> None:
    """Gives outputs the sizes that follow from those of the inputs."""
    from onnx import shape_inference

    # What is said of tensors inside holds for dynamic sizes too, and would be believed.
    bare = type(model)()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
    found = shape_inference.infer_shapes(bare, data_prop=True).graph.output
    for output, settled in zip(model.graph.output, found, strict=True):
        pairs = zip(output.type.tensor_type.shape.dim, settled.type.tensor_type.shape.dim, strict=False)
        for dim, known in pairs:
            if not dim.HasField("dim_value") and known.HasField("dim_value"):
                dim.dim_value = known.dim_value


def _fix(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> None:
    stored = {tensor.name for tensor in graph.initializer}
    for value in (one for one in graph.input if one.name not in stored):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            name = BATCH if axis == 0 else f"{value.name}_axis{axis}"
            nameless = not dim.dim_param and not (dim.HasField("dim_value") and dim.dim_value >= 0)
            if nameless and name in sizes:
                dim.dim_value = sizes[name]
    values: Iterable[onnx.ValueInfoProto] = [*graph.input, *graph.output, *graph.value_info]
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
