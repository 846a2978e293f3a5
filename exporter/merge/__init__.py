"""Several trained models into one: their weights, their graphs, or their outputs.

Weights are state dicts (in memory, or .safetensors files that stay on disk); nothing that is given is changed.
Importing this room does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.merge.composite import Composite, Part
    from exporter.merge.fusing import Fusion, Teacher, fuse, learn_weights
    from exporter.merge.merging import Recipe, greedy_soup, merge_states
    from exporter.merge.onnx_stack import OnnxPart, stack_onnx
    from exporter.merge.searching import Found, search
    from exporter.merge.states import (
        LoadedState,
        State,
        TiedState,
        check_alike,
        distances,
        open_states,
        strangers,
        tied_names,
    )
    from exporter.merge.statistics import fisher_information, grams

__all__ = [
    "Composite",
    "Found",
    "Fusion",
    "LoadedState",
    "OnnxPart",
    "Part",
    "Recipe",
    "State",
    "Teacher",
    "TiedState",
    "check_alike",
    "distances",
    "fisher_information",
    "fuse",
    "grams",
    "greedy_soup",
    "learn_weights",
    "merge_states",
    "open_states",
    "search",
    "stack_onnx",
    "strangers",
    "tied_names",
]

_LATE = {
    "Composite": "composite",
    "Found": "searching",
    "Fusion": "fusing",
    "OnnxPart": "onnx_stack",
    "Part": "composite",
    "Recipe": "merging",
    "Teacher": "fusing",
    "fisher_information": "statistics",
    "fuse": "fusing",
    "grams": "statistics",
    "greedy_soup": "merging",
    "learn_weights": "fusing",
    "merge_states": "merging",
    "search": "searching",
    "stack_onnx": "onnx_stack",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATE.get(name, 'states')}"), name)
