"""Trained models in: a Python factory with weights, a torch.export program, or a ready ONNX file.

Nothing here imports torch or onnx until a function that needs them is called.
"""

from exporter.sources.factory import load_factory
from exporter.sources.identify import Source, SourceKind, identify
from exporter.sources.onnx_file import OnnxFacts, check_opset, inspect_onnx
from exporter.sources.program import load_program
from exporter.sources.program_inputs import program_inputs
from exporter.sources.reference import is_factory
from exporter.sources.weights import load_weights, read_state

__all__ = [
    "OnnxFacts",
    "Source",
    "SourceKind",
    "check_opset",
    "identify",
    "inspect_onnx",
    "is_factory",
    "load_factory",
    "load_program",
    "load_weights",
    "program_inputs",
    "read_state",
]
