"""Calibration and evaluation sets: reading, preprocessing, checking, batching.

Importing this package is cheap: numpy, Pillow and safetensors are loaded when a set is opened.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.data.checks import check, overlap
    from exporter.data.digest import content_digest, files_of
    from exporter.data.sets import CalibrationSet, open_set
    from exporter.data.specs import has_array, infer_inputs
    from exporter.data.values import Batch, DataReport

__all__ = [
    "Batch",
    "CalibrationSet",
    "DataReport",
    "check",
    "content_digest",
    "files_of",
    "has_array",
    "infer_inputs",
    "open_set",
    "overlap",
]

_HOMES = {
    "Batch": "values",
    "CalibrationSet": "sets",
    "DataReport": "values",
    "check": "checks",
    "content_digest": "digest",
    "files_of": "digest",
    "has_array": "specs",
    "infer_inputs": "specs",
    "open_set": "sets",
    "overlap": "checks",
}


def __getattr__(name: str) -> Any:
    """Loads the module that defines a public name when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
