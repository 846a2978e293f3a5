"""Groups of channels tried out: running the model finds what the dependency graph gets wrong or does not see."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from exporter.compress.calling import Batch, Call, as_batch
from exporter.compress.groups import ChannelGroup, without
from exporter.compress.reordering import reordered
from exporter.errors import shorten

FUNCTIONAL = {f"conv{kind}" for kind in ("1d", "2d", "3d", "_transpose1d", "_transpose2d", "_transpose3d")} | {
    "linear"
}
MIXED = "the model mixes its channels in a way that torch-pruning does not follow"
SAME = 1e-3
"""Largest difference, relative to the outputs, between channels that are gone and channels that nobody reads."""


def unfit_group(module: nn.Module, group: ChannelGroup, batch: Batch, call: Call, whole: Sequence[Tensor]) -> str:
    """Why a group cannot be pruned; empty when the model without some of its channels is right.

    Args:
        module: left unchanged.
        group: of its channels.
        batch: that it is tried on.
        call: runs the module on a batch.
        whole: what the module answers.
    """
    count, few = group.levels[0], group.levels[0] - group.levels[1]
    with torch.no_grad():
        # The first, the last, and some from everywhere: what is split into parts must not fit by chance.
        everywhere = [int((index + 0.5) * count / few) for index in range(few)]
        for gone in (range(few), range(count - few, count), everywhere):
            try:
                got = call(without(module, [group], {group.name: gone}).eval(), batch)
                if shapes_of(whole) != shapes_of(got):
                    return "its channels are an output of the model"
                wanted = call(_unread(module, group, gone), batch) if group.exact else got
            except Exception as error:
                return f"the model does not run without some of its channels: {shorten(error, 100)}"
            if not _all_close(got, wanted):
                return MIXED
        # What norms over channels give depends on those that are gone, but not on their order.
        if (
            not group.exact
            and (other := reordered(module, group))
            and not _all_close(call(other.eval(), batch), whole)
        ):
            return MIXED
    return ""


def _all_close(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(_close(one, other) for one, other in zip(some, others, strict=True))


def _close(one: Tensor, other: Tensor) -> bool:
    if not other.numel():
        return True
    one, other = (tensor if tensor.is_floating_point() else tensor.double() for tensor in (one, other))
    return torch.allclose(one, other, rtol=0, atol=SAME * (float(other.abs().max()) or 1.0))


def _unread(module: nn.Module, group: ChannelGroup, gone: Sequence[int]) -> nn.Module:
    """A copy of full width whose layers do not read some units."""
    channels = {channel for unit in gone for channel in group.units[unit]}
    result = copy.deepcopy(module).requires_grad_(False)
    for cut in group.cuts:
        if cut.reads:
            layer = result.get_submodule(cut.name)
            weight = result.get_parameter(f"{cut.name}.weight")
            indices = [index for index, channel in cut.channels.items() if channel in channels]
            if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1:
                # Within a group an input has a number of its own.
                per = layer.in_channels // layer.groups
                rows = layer.out_channels // layer.groups
                for index in indices:
                    if layer.transposed:
                        weight[index] = 0
                    else:
                        weight[index // per * rows : (index // per + 1) * rows, index % per] = 0
            elif getattr(layer, "transposed", False):
                weight[indices] = 0
            else:
                weight[:, indices] = 0
    return result


class _Bare(TorchFunctionMode):
    """Notes which parameters functional convolutions and linear maps are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, str] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        weight = (kwargs or {}).get("weight", args[1] if len(args) > 1 else None)
        if name in FUNCTIONAL and isinstance(weight, nn.Parameter):
            self.seen[id(weight)] = name
        return func(*args, **(kwargs or {}))


def bare_parameters(module: nn.Module, batch: Batch, call: Call) -> list[str]:
    """A line for each parameter that a functional convolution or linear map takes from outside such a layer."""
    known = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention, nn.RNNBase)
    with torch.no_grad(), _Bare() as watch:
        call(module, batch)
    layers = {id(one) for layer in module.modules() if isinstance(layer, known) for one in layer.parameters(False)}
    found = []
    for name, parameter in module.named_parameters():
        # A layer's weight may have another name as well, as an embedding's.
        if id(parameter) in watch.seen and id(parameter) not in layers:
            found.append(f"{name} left alone: a bare parameter of a functional {watch.seen[id(parameter)]}")
    return found


def recurrent_layers(module: nn.Module) -> list[str]:
    """A line for each layer that keeps its channels because of what it is."""
    return [
        f"{name} left alone: channels of {type(one).__name__} cannot be pruned"
        for name, one in module.named_modules()
        if isinstance(one, nn.RNNBase)
    ]


def example_of(batch: Batch) -> Batch:
    """A few samples of a batch, which are enough to follow channels."""
    return tuple(tensor[:2] if tensor.dim() else tensor for tensor in as_batch(batch))


def shapes_of(outputs: Sequence[Tensor]) -> list[list[int]]:
    """Shapes of outputs."""
    return [list(one.shape) for one in outputs]
