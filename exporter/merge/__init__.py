"""Several trained models of one architecture into one.

Functions take state dicts (in memory, or .safetensors files that stay on disk) and return new ones; nothing that is
given is changed. Importing this room does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.merge.merging import Recipe, greedy_soup, merge_states
    from exporter.merge.states import LoadedState, State, check_alike, distances, open_states, strangers

__all__ = [
    "LoadedState",
    "Recipe",
    "State",
    "check_alike",
    "distances",
    "greedy_soup",
    "merge_states",
    "open_states",
    "strangers",
]

_LATE = {"Recipe": "merging", "greedy_soup": "merging", "merge_states": "merging"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATE.get(name, 'states')}"), name)
