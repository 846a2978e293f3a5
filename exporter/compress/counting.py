"""What a model costs: parameters, multiply-accumulates, bytes, and bytes after compression."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from exporter.artifacts import ModelCost
from exporter.compress.calling import Batch, Call, as_batch, plainly
from exporter.errors import ModelError

LEVEL = 10
"""zstd level: what a download or an update would use."""


def count_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers; what several layers have in common counts once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _state(module))


def measure_cost(module: nn.Module, batch: Batch, *, call: Call = plainly) -> ModelCost:
    """Counts a module's cost; MACs are counted while it runs on `batch`, and divided by its samples."""
    parameters = list(module.parameters())
    values = sum(tensor.numel() for tensor in parameters)
    zeros = sum(int((tensor == 0).sum()) for tensor in parameters)
    return ModelCost(
        parameters=values,
        macs=count_macs(module, batch, call=call),
        bytes=count_bytes(module),
        compressed_bytes=compressed_bytes(module),
        zeros=zeros / values if values else 0.0,
    )


def count_macs(module: nn.Module, batch: Batch, *, call: Call = plainly) -> int:
    """Multiply-accumulates of one sample: those of products and convolutions, whatever computes them."""
    from torch.utils.flop_counter import FlopCounterMode

    samples = len(batch[0]) if as_batch(batch) and batch[0].dim() else 1
    aten = torch.ops.aten
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten.mv: _of_matrix_and_vector,
            aten.addmv: _of_added_matrix_and_vector,
            aten.dot: _of_vectors,
            aten._trilinear: _of_bilinear,
        },
    )
    with torch.no_grad(), _unfused(), counter:
        call(module, batch)
    return int(counter.get_total_flops()) // (2 * samples)


def share_of_macs(module: nn.Module, batch: Batch, *, call: Call = plainly) -> Callable[[nn.Module], float]:
    """What tells the share of a module's multiply-accumulates that a narrower one has.

    Raises:
        ModelError: the module has none that could be counted.
    """
    whole = count_macs(module, batch, call=call)
    if not whole:
        raise ModelError(
            "no multiply-accumulate can be counted in this model, so that a share of them says nothing",
            where='[[compress.steps]] method = "prune-channels", macs',
            hint="ask for a share of `parameters`, `size` or `latency` instead",
        )
    return lambda candidate: count_macs(candidate, batch, call=call) / whole


@contextmanager
def _unfused() -> Iterator[None]:
    """Makes torch compute attention and LSTMs by products, which are counted; nothing is in their fused forms."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    onednn, *_ = _set_onednn(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        _set_onednn(onednn)


def _set_onednn(enabled: bool) -> Sequence[Any]:
    """Gives what was set before. `mkldnn.flags()` sets precisions too, and warns of hardware that is not there."""
    set_flags: Callable[..., Sequence[Any]] = torch.backends.mkldnn.set_flags
    return set_flags(_enabled=enabled, _fp32_precision=None)


# What FlopCounterMode has no formula for; two operations are one multiply-accumulate.


def _of_matrix_and_vector(matrix: Sequence[int], *rest: object, **named: object) -> int:
    return 2 * math.prod(matrix)


def _of_added_matrix_and_vector(added: object, matrix: Sequence[int], *rest: object, **named: object) -> int:
    return 2 * math.prod(matrix)


def _of_vectors(vector: Sequence[int], *rest: object, **named: object) -> int:
    return 2 * math.prod(vector)


def _of_bilinear(left: Sequence[int], weight: Sequence[int], *rest: object, **named: object) -> int:
    """`nn.Bilinear`: each output reads every pair of inputs, and the sum over pairs is as a product of matrices."""
    return 2 * left[0] * math.prod(weight)


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
    """Parameters and buffers, each once: a file keeps what several layers have in common once, too."""
    found: dict[object, torch.Tensor] = {}
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
            found.setdefault(place, tensor.detach().contiguous())
    return list(found.values())
