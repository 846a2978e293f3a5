"""Trained modules into smaller ones.

Every function that takes a module leaves it unchanged and makes a new one. Importing this room does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.compress.calling import Batch, Batches, Call
    from exporter.compress.channels import ChannelPruning, PrunedChannels, prune_channels
    from exporter.compress.counting import compressed_bytes, count_bytes, count_macs, measure_cost, share_of_macs
    from exporter.compress.low_rank import factorise
    from exporter.compress.norms import batch_norms, reestimate_norms
    from exporter.compress.ordering import Ordered, order_by_name
    from exporter.compress.sharing import check_sharing, tie_members
    from exporter.compress.structure import (
        LowRank,
        Sparse,
        Structure,
        Widths,
        apply_structure,
        read_structure,
        sparse_weights,
    )
    from exporter.compress.teaching import Taught, Teaching, distil
    from exporter.compress.weights import WeightPruning, prune_weights

__all__ = [
    "Batch",
    "Batches",
    "Call",
    "ChannelPruning",
    "LowRank",
    "Ordered",
    "PrunedChannels",
    "Sparse",
    "Structure",
    "Taught",
    "Teaching",
    "WeightPruning",
    "Widths",
    "apply_structure",
    "batch_norms",
    "check_sharing",
    "compressed_bytes",
    "count_bytes",
    "count_macs",
    "distil",
    "factorise",
    "measure_cost",
    "order_by_name",
    "prune_channels",
    "prune_weights",
    "read_structure",
    "reestimate_norms",
    "share_of_macs",
    "sparse_weights",
    "tie_members",
]

_LATE = {
    "Taught": "teaching",
    "Teaching": "teaching",
    "distil": "teaching",
    "factorise": "low_rank",
    "Ordered": "ordering",
    "order_by_name": "ordering",
    "ChannelPruning": "channels",
    "PrunedChannels": "channels",
    "prune_channels": "channels",
    "WeightPruning": "weights",
    "prune_weights": "weights",
    "Sparse": "structure",
    "sparse_weights": "structure",
    "Batch": "calling",
    "Batches": "calling",
    "Call": "calling",
    "compressed_bytes": "counting",
    "count_bytes": "counting",
    "count_macs": "counting",
    "measure_cost": "counting",
    "share_of_macs": "counting",
    "batch_norms": "norms",
    "check_sharing": "sharing",
    "tie_members": "sharing",
    "reestimate_norms": "norms",
    "LowRank": "structure",
    "Structure": "structure",
    "Widths": "structure",
    "apply_structure": "structure",
    "read_structure": "structure",
}


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
