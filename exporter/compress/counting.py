"""What a model costs: parameters, multiply-accumulates, bytes, and bytes after compression."""

from __future__ import annotations

import torch
from torch import nn

from exporter.artifacts import ModelCost
from exporter.compress.calling import Batch, Call, plainly

LEVEL = 10
"""zstd level: what a download or an update would use."""


def measure_cost(module: nn.Module, batch: Batch, *, call: Call = plainly) -> ModelCost:
    """Counts a module's cost; MACs are counted while it runs on `batch`, and divided by its samples."""
    parameters = list(module.parameters())
    values = sum(tensor.numel() for tensor in parameters)
    state = _state(module)
    zeros = sum(int((tensor == 0).sum()) for tensor in parameters)
    return ModelCost(
        parameters=values,
        macs=count_macs(module, batch, call=call),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in state),
        compressed_bytes=compressed_bytes(module),
        zeros=zeros / values if values else 0.0,
    )


def count_macs(module: nn.Module, batch: Batch, *, call: Call = plainly) -> int:
    """Multiply-accumulates of one sample, counted by torch's FlopCounterMode (two operations each)."""
    from torch.utils.flop_counter import FlopCounterMode

    samples = len(batch[0]) if batch and batch[0].dim() else 1
    counter = FlopCounterMode(display=False)
    # Attention has no formula in its fused form for inference; with autograd's view it is counted by its products.
    with torch.no_grad(), counter:
        call(module, batch)
    return int(counter.get_total_flops()) // (2 * samples)


def compressed_bytes(module: nn.Module) -> int | None:
    """Bytes of parameters and buffers after zstd, each tensor for itself; None where zstandard is not installed."""
    try:
        import zstandard
    except ImportError:
        return None
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    return sum(
        len(compressor.compress(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()))
        for tensor in _state(module)
        if tensor.numel()
    )


def _state(module: nn.Module) -> list[torch.Tensor]:
    return [
        tensor.detach().contiguous() for tensor in module.state_dict().values() if isinstance(tensor, torch.Tensor)
    ]
