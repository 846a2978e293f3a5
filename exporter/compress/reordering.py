"""A group's channels in another order: what follows them rightly computes the same, also where norms mix them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exporter.compress.groups import ChannelGroup


def reordered(module: nn.Module, group: ChannelGroup) -> nn.Module | None:
    """A copy with the group's units in another order, in every layer that has them.

    Args:
        module: left unchanged; the module that the group was found in.
        group: of channels.

    Returns:
        The copy; None where some layer has the channels in a form that cannot be reordered axis by axis, as attention
        in one piece and grouped convolutions do, or only a part of them.
    """
    result = copy.deepcopy(module).requires_grad_(False)
    order = torch.randperm(len(group.units), generator=torch.Generator().manual_seed(0)).tolist()
    source = {
        channel: other
        for unit, wanted in zip(group.units, order, strict=True)
        for channel, other in zip(unit, group.units[wanted], strict=True)
    }
    done: set[tuple[int, int]] = set()
    for cut in group.cuts:
        taken = _taken(cut.channels, source)
        if cut.handler is None:
            place, _, leaf = cut.name.rpartition(".")
            axes: dict[str, int] | None = {leaf: cut.dim}
        else:
            place = cut.name
            axes = _axes(result.get_submodule(cut.name), cut.handler, sorted(cut.channels))
        if axes is None or taken is None:
            return None
        owner = result.get_submodule(place)
        for name, axis in axes.items():
            tensor: Tensor = getattr(owner, name)
            if max(taken) >= tensor.shape[axis]:
                return None
            if (id(tensor), axis) in done:
                continue  # Layers may have one weight in common.
            done.add((id(tensor), axis))
            places = torch.arange(tensor.shape[axis])
            places[list(taken)] = torch.tensor(list(taken.values()))
            tensor.data = tensor.data.index_select(axis, places)
    return result


def _taken(channels: Mapping[int, int], source: Mapping[int, int]) -> dict[int, int] | None:
    """Where the value of each index along an axis comes from; a channel's several indices keep their order."""
    of: dict[int, list[int]] = {}
    for index, channel in sorted(channels.items()):
        of.setdefault(channel, []).append(index)
    if any(len(of.get(source[channel], ())) != len(indices) for channel, indices in of.items()):
        return None
    return {
        index: of[source[channel]][place] for channel, indices in of.items() for place, index in enumerate(indices)
    }


def _axes(
    layer: nn.Module, handler: Callable[[Any, list[int]], Any], indices: Sequence[int]
) -> dict[str, int] | None:
    """Along which axis each tensor of a layer has these indices; None where it does not have them one by one."""
    few = list(indices[: max(1, len(indices) // 2)])
    narrow = copy.deepcopy(layer)
    handler(narrow, few)
    axes: dict[str, int] = {}
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        new = getattr(narrow, name, None) if "." not in name else None
        if not isinstance(new, Tensor) or new.dim() != tensor.dim():
            return None
        changed = [axis for axis in range(tensor.dim()) if new.shape[axis] != tensor.shape[axis]]
        if len(changed) > 1 or any(tensor.shape[axis] - new.shape[axis] != len(few) for axis in changed):
            return None
        axes |= dict.fromkeys([name], changed[0]) if changed else {}
    return axes
