"""Groups of channels that can only go together, and models without some of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from exporter.compress.structure import names_in_common, tie

if TYPE_CHECKING:
    import torch_pruning


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One axis of one layer that a group takes channels from.

    Attributes:
        name: of the module, or of the bare parameter.
        handler: torch-pruning's function that removes indices in place; None for a parameter.
        dim: of the parameter.
        channels: of the group, by index along the axis; one channel may be many indices (after a flatten).
        reads: whether the layer reads the channels, as the next convolution does.
    """

    name: str
    handler: Callable[[Any, list[int]], Any] | None
    dim: int
    channels: Mapping[int, int]
    reads: bool


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Channels that several layers share, and the sizes that they may have.

    Attributes:
        name: of the layer that makes them.
        width: how many there are.
        units: channels that go together: one, an attention head, or one of each block of a grouped convolution.
        levels: numbers of units that may be left, from all to the fewest.
        cuts: where they are taken from.
        counters: of attention heads: module, attribute, and what that counts of each unit which is left.
        exact: whether removing channels that nobody reads changes nothing; norms over channels do.
        scored: torch-pruning's group, for its importances.
    """

    name: str
    width: int
    units: tuple[tuple[int, ...], ...]
    levels: tuple[int, ...]
    cuts: tuple[Cut, ...]
    counters: tuple[tuple[str, str, int], ...]
    exact: bool
    scored: torch_pruning.dependency.Group = field(repr=False)

    def channels_at(self, level: int) -> int:
        """Width at a level."""
        return self.levels[level] * len(self.units[0])


def without(module: nn.Module, groups: Sequence[ChannelGroup], removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy without some units of some groups.

    Args:
        module: left unchanged; the module that the groups were found in, or one of the same widths.
        groups: all that are meant.
        removed: indices of units, by the name of the group.
    """
    result, common = copy.deepcopy(module), names_in_common(module)
    found: dict[tuple[str, Any], tuple[Cut, set[int]]] = {}
    for group in groups:
        gone = {channel for unit in removed.get(group.name, ()) for channel in group.units[unit]}
        if not gone:
            continue
        for cut in group.cuts:
            # One layer may read several groups, after a concatenation: its indices are removed at once.
            _, indices = found.setdefault((cut.name, cut.handler), (cut, set()))
            indices |= {index for index, channel in cut.channels.items() if channel in gone}
        for owner, attribute, each in group.counters:
            setattr(result.get_submodule(owner), attribute, each * (len(group.units) - len(removed[group.name])))
    for cut, indices in found.values():
        if cut.handler is not None:
            cut.handler(result.get_submodule(cut.name), sorted(indices))
            continue
        place, _, leaf = cut.name.rpartition(".")
        old = result.get_parameter(cut.name)
        kept = torch.tensor([index for index in range(old.shape[cut.dim]) if index not in indices])
        narrow = nn.Parameter(old.detach().index_select(cut.dim, kept), requires_grad=old.requires_grad)
        setattr(result.get_submodule(place), leaf, narrow)
    return tie(result, common)
