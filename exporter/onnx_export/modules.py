"""Which torch module each ONNX node came from, as the file keeps it."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

MODULE = "edge_exporter.module"
"""Metadata of a node: the dotted path of its module."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""What torch's exporter keeps: a list of paths from the outermost module to the operation, as Python's text."""
WEIGHT = ".weight"


def module_of(metadata: Mapping[str, str], initializers: Sequence[str] = ()) -> str | None:
    """The path of the module that a node came from, or None where the file does not tell.

    Args:
        metadata: of the node.
        initializers: names of the weights that it reads; a folded BatchNorm leaves its own path in the metadata of
            the convolution, whose weight still has the convolution's name.
    """
    if MODULE in metadata:
        return metadata[MODULE]
    scopes = _scopes(metadata.get(SCOPES, ""))
    named = [name.removesuffix(WEIGHT) for name in initializers if name.endswith(WEIGHT)]
    if scopes and len(named) == 1 and "." in initializers[0]:
        return named[0]
    return scopes[-2] if len(scopes) > 1 else None


def module_paths(model: Path) -> dict[str, str]:
    """Module paths by the name of a node and by the names of its results, which outlive most rewriting of graphs.

    Args:
        model: an ONNX file.
    """
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    found: dict[str, str] = {}
    for node in graph.node:
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        path = module_of(metadata, [name for name in node.input if name in stored])
        if path is not None:
            found |= dict.fromkeys([name for name in node.output if name], path)
            found |= {node.name: path} if node.name else {}
    return found


def _scopes(text: str) -> list[str]:
    try:
        found = ast.literal_eval(text) if text else []
    except (SyntaxError, ValueError):
        return []
    return [str(one) for one in found] if isinstance(found, list) else []
