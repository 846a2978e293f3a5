"""torch to ONNX: one calling convention, export, and a numerical check against torch.

Importing this room does not import torch; its names are looked up when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from exporter.onnx_export.versions import export_opset, opset_for_runtime

if TYPE_CHECKING:
    from exporter.onnx_export.compare import compare_with_torch
    from exporter.onnx_export.export import export_onnx
    from exporter.onnx_export.modules import module_paths
    from exporter.onnx_export.normalise import normalise_onnx
    from exporter.onnx_export.pixels import write_with_pixels
    from exporter.onnx_export.prepare import FlatModule, Prepared, flatten, prepare_module, tensors_of
    from exporter.onnx_export.program import save_program
    from exporter.onnx_export.reference import check_eval, mismatch_hint, torch_session
    from exporter.onnx_export.session import onnx_session
    from exporter.onnx_export.share import share_onnx

__all__ = [
    "FlatModule",
    "Prepared",
    "check_eval",
    "compare_with_torch",
    "export_onnx",
    "export_opset",
    "flatten",
    "mismatch_hint",
    "module_paths",
    "normalise_onnx",
    "onnx_session",
    "opset_for_runtime",
    "prepare_module",
    "save_program",
    "share_onnx",
    "tensors_of",
    "torch_session",
    "write_with_pixels",
]

_LATE = {
    "FlatModule": "prepare",
    "Prepared": "prepare",
    "check_eval": "reference",
    "compare_with_torch": "compare",
    "export_onnx": "export",
    "flatten": "prepare",
    "mismatch_hint": "reference",
    "module_paths": "modules",
    "normalise_onnx": "normalise",
    "onnx_session": "session",
    "prepare_module": "prepare",
    "save_program": "program",
    "share_onnx": "share",
    "tensors_of": "prepare",
    "torch_session": "reference",
    "write_with_pixels": "pixels",
}


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
