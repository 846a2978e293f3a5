"""torch to ONNX through torch.export, with named axes, the user's names, and nothing of this machine in the file."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exporter.artifacts import Signature, TensorSpec
from exporter.errors import StageError
from exporter.onnx_export.failures import export_failure, specialised
from exporter.onnx_export.graph import read_signature
from exporter.onnx_export.modules import MODULE, module_of
from exporter.onnx_export.prepare import Prepared, tensors_of

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir
    from numpy.typing import NDArray

SINGLE_FILE_LIMIT = 1_900_000_000
"""Bytes of weights; protobuf ends at 2 GiB, and a graph with its names needs some of that."""
WRAPPER = "inner"
"""Where FlatModule keeps the user's module."""
_NOISY = ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")


def export_onnx(
    prepared: Prepared,
    *,
    example: Mapping[str, NDArray[np.generic]],
    inputs: tuple[TensorSpec, ...],
    opset: int,
    ir_version: int,
    path: Path,
) -> Signature:
    """Exports a module to an ONNX file, one file where it fits, else with `<path>.data` beside it.

    Args:
        prepared: the module.
        example: one array per input; sizes of dynamic axes must be at least 2, because torch specialises 0 and 1.
        inputs: the signature's inputs; a string in a shape is a dynamic axis, equal strings are equal sizes.
        opset: ONNX opset to write.
        ir_version: newest IR version that may be written.
        path: the file to write.

    Returns:
        Inputs and outputs as they stand in the file.

    Raises:
        StageError: torch cannot export the model, or a dynamic axis was specialised.
        ModelError: outputs are no tensors or their names clash.
    """
    output_names = prepared.names(example)
    tensors = tensors_of(prepared, example)
    with quiet():
        program, dims = capture(prepared, tensors, inputs)
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(prepared.inputs),
                output_names=list(output_names),
                opset_version=opset,
                verbose=False,
                external_data=False,
            )
        except Exception as error:
            raise export_failure(error, inputs, dims) from error
        if exported is None:
            raise StageError("torch exported nothing", hint="export the .onnx yourself")
        _separate_names(exported.model.graph)
        _clean(exported.model, inputs, ir_version)
        exported.save(str(path), external_data=_size(program) >= SINGLE_FILE_LIMIT)
    signature = read_signature(path)
    _check_read_back(signature, inputs, output_names, opset, exported.model.opset_imports.get(""))
    return signature


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps advice of torch's exporter out of the way; errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def capture(
    prepared: Prepared, tensors: tuple[torch.Tensor, ...], inputs: Sequence[TensorSpec]
) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    """torch.export of the module, and torch's names of axes with the user's."""
    axes = list(dict.fromkeys(dim for spec in inputs for dim in spec.shape if isinstance(dim, str)))
    # Names of one's own: torch takes identifiers only, a user's axis may be called anything.
    names = {axis: f"axis{index}_" for index, axis in enumerate(axes)}
    dims = {name: axis for axis, name in names.items()}
    shapes: list[Any] = [
        {axis: torch.export.Dim(names[dim]) for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in inputs
    ]
    try:
        return _export(prepared, tensors, shapes), dims
    except Exception as error:
        if "Not all values of" not in str(error):
            raise export_failure(error, inputs, dims) from error
        first = error
    # A range that follows from the model, such as a length up to that of its position table, is no fault: an axis
    # may be bounded, it must not be specialised.
    for index, spec in enumerate(inputs):
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str):
                dims[f"L['tensors'][{index}].size()[{axis}]"] = dim
    bounded = [dict.fromkeys(shape, torch.export.Dim.DYNAMIC) for shape in shapes]
    try:
        return _export(prepared, tensors, bounded), dims
    except Exception as error:
        raise export_failure(error, inputs, dims) from first


def _export(
    prepared: Prepared, tensors: tuple[torch.Tensor, ...], shapes: Sequence[Any]
) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(prepared.flat, tensors, dynamic_shapes=(tuple(shapes),), strict=False)


def _size(program: torch.export.ExportedProgram) -> int:
    held = [*program.state_dict.values(), *program.constants.values()]
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, torch.Tensor))


def _separate_names(graph: onnx_ir.Graph) -> None:
    """Renames inner values that are called like an input or output.

    Inner names come from torch's operators and from parameters, so that an output that its user calls `embedding` may
    meet an operator's result of that name.
    """
    import onnx_ir as ir

    ends = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    inner = [value for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.outputs]
    taken = {value.name for value in [*inner, *graph.initializers.values()]} | set(ends)
    for value in [*inner, *graph.initializers.values()]:
        name = value.name
        if name is None or ends.get(name, value) is value:
            continue
        while name in taken:
            name += "_inner"
        taken.add(name)
        if value.is_initializer():
            graph.initializers.pop(str(value.name))
            value.name = name
            graph.initializers[name] = value
        else:
            value.name = name


def _clean(model: onnx_ir.Model, inputs: Sequence[TensorSpec], ir_version: int) -> None:
    """Gives axes the user's names, keeps paths of modules, and drops what depends on the machine."""
    import onnx_ir as ir

    model.ir_version = min(model.ir_version, ir_version)
    renamed: dict[str, str] = {}
    for value, spec in zip(model.graph.inputs, inputs, strict=False):
        for dim, wanted in zip(value.shape or (), spec.shape, strict=False):
            if isinstance(dim, ir.SymbolicDim) and isinstance(wanted, str) and dim.value:
                renamed[dim.value] = wanted
    model.metadata_props.clear()
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        graph.doc_string = None
        values = [*graph.inputs, *graph.outputs]
        if isinstance(graph, ir.Graph):
            values += graph.initializers.values()
        for node in ir.traversal.RecursiveGraphIterator(graph):
            module = _module(node)
            node.metadata_props.clear()
            node.metadata_props.update({MODULE: module} if module else {})
            node.doc_string = None
            values += node.outputs
        for value in values:
            value.metadata_props.clear()
            value.doc_string = None
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(dim, renamed) for dim in value.shape])


def _module(node: onnx_ir.Node) -> str:
    """Path of the user's module that a node came from, without what wraps it for the export."""
    weights = [str(value.name) for value in node.inputs if value is not None and value.is_initializer()]
    found = module_of(node.metadata_props, weights) or ""
    return found.removeprefix(WRAPPER).removeprefix(".")


def _renamed(dim: Any, names: Mapping[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    text: str | None = dim.value
    # Derived sizes are expressions, as in `2*s77`.
    return re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), text) if text else None


def _check_read_back(
    signature: Signature, inputs: Sequence[TensorSpec], outputs: Sequence[str], opset: int, written: int | None
) -> None:
    if written != opset:
        raise StageError(
            f"torch wrote ONNX opset {written} although {opset} was asked for",
            hint=f"set `[export] opset = {written}` and raise the target's `min_runtime` accordingly",
        )
    found = [spec.name for spec in signature.inputs]
    if found != [spec.name for spec in inputs] or [spec.name for spec in signature.outputs] != list(outputs):
        raise StageError(
            "the exported file has other inputs or outputs than the model",
            why=f"it has {', '.join(found)} -> {', '.join(spec.name for spec in signature.outputs)}; expected "
            f"{', '.join(spec.name for spec in inputs)} -> {', '.join(outputs)}",
            hint="export the .onnx yourself and use it as `source`",
        )
    fixed = {
        str(wanted): have
        for spec, read in zip(inputs, signature.inputs, strict=True)
        for wanted, have in zip(spec.shape, read.shape, strict=True)
        if isinstance(wanted, str) and isinstance(have, int)
    }
    if fixed:
        raise specialised(fixed, inputs, why="torch's exporter replaced the axis by the example's size")
