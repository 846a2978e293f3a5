"""Float ONNX to int8: streaming calibration, static and dynamic quantization, what they covered and what they cost.

Importing this room is cheap: its names are looked up when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.quantize.apart import largest_differences
    from exporter.quantize.correcting import correct_biases
    from exporter.quantize.damage import node_damage
    from exporter.quantize.dynamic import is_transformer, quantize_dynamic, suits_dynamic
    from exporter.quantize.energies import channel_decibels, decibels
    from exporter.quantize.equalize import paired_layers, uneven_pairs
    from exporter.quantize.idle import idle_names
    from exporter.quantize.lints import lint
    from exporter.quantize.prepare import PREPARED, prepare_float
    from exporter.quantize.static import calibrate, quantize_calibrated, quantize_static
    from exporter.quantize.tolerance import int8_tolerance

__all__ = [
    "PREPARED",
    "calibrate",
    "channel_decibels",
    "correct_biases",
    "decibels",
    "idle_names",
    "int8_tolerance",
    "is_transformer",
    "largest_differences",
    "lint",
    "node_damage",
    "paired_layers",
    "prepare_float",
    "quantize_calibrated",
    "quantize_dynamic",
    "quantize_static",
    "suits_dynamic",
    "uneven_pairs",
]

_HOMES = {
    "PREPARED": "prepare",
    "calibrate": "static",
    "channel_decibels": "energies",
    "correct_biases": "correcting",
    "decibels": "energies",
    "idle_names": "idle",
    "int8_tolerance": "tolerance",
    "is_transformer": "dynamic",
    "largest_differences": "apart",
    "lint": "lints",
    "node_damage": "damage",
    "paired_layers": "equalize",
    "prepare_float": "prepare",
    "quantize_calibrated": "static",
    "quantize_dynamic": "dynamic",
    "quantize_static": "static",
    "suits_dynamic": "dynamic",
    "uneven_pairs": "equalize",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
