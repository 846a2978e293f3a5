"""Inputs of a torch.export program as specs."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from exporter.artifacts import BATCH, Dim, DType, TensorSpec
from exporter.errors import ModelError

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def program_inputs(program: ExportedProgram) -> tuple[TensorSpec, ...]:
    """Names, types and shapes of the tensors that a program takes, in order.

    torch names dynamic axes itself (`s77`); a dynamic axis 0 becomes `batch`, others keep torch's name unless the
    plan names them in `[model.inputs.NAME] shape`.

    Raises:
        ModelError: an input is no tensor, or has a type that the exporter does not handle.
    """
    import torch

    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for name in program.graph_signature.user_inputs:
        value = nodes[str(name)].meta.get("val") if str(name) in nodes else None
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"input '{name}' of the exported program is no tensor",
                where="[model] source",
                why=f"it is {type(value).__name__}: {value!r}",
                hint="export the program again with that argument bound in the module",
            )
        specs.append(
            TensorSpec(
                name=str(name),
                dtype=_dtype(value.dtype, str(name)),
                shape=tuple(_dim(size, axis) for axis, size in enumerate(value.shape)),
            )
        )
    return tuple(specs)


def _dim(size: object, axis: int) -> Dim:
    if isinstance(size, int):
        return size
    return BATCH if axis == 0 else str(size)


def _dtype(dtype: object, name: str) -> DType:
    from typing import get_args

    text = str(dtype).removeprefix("torch.")
    if text not in get_args(DType):
        raise ModelError(f"input '{name}' of the exported program has the type {text}, which is not supported")
    return cast(DType, text)
