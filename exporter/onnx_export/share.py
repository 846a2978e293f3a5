"""Sub-graphs that occur twice are computed once: equal weights become one, then equal nodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

EVERY = 1 << 62
"""Values of a tensor up to which duplicates are looked for; the passes' own defaults leave convolutions' weights."""


def share_subgraphs(model: ir.Model) -> None:
    """Lets nodes that compute the same from the same share one result, in place; names of outputs stay."""
    from onnx_ir.passes import Sequential
    from onnx_ir.passes import common as passes

    wanted = [value.name for value in model.graph.outputs]
    Sequential(
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(size_limit=EVERY),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
    )(model)
    # Two outputs that turned out to be one are told apart again by an Identity.
    passes.OutputFixPass()(model)
    for value, name in zip(model.graph.outputs, wanted, strict=True):
        value.name = name


def share_onnx(path: Path) -> tuple[int, int]:
    """The same for a file, which is written again.

    Returns:
        How many nodes there were, and how many there are now.
    """
    import onnx_ir as ir

    from exporter.onnx_export.normalise import SINGLE_FILE_LIMIT

    model = ir.load(path)
    ir.external_data.load_to_model(model)
    before = len(model.graph)
    share_subgraphs(model)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=f"{path.name}.data" if size >= SINGLE_FILE_LIMIT else None)
    return before, len(model.graph)
