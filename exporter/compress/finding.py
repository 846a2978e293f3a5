"""Channels that can only go together, found by torch-pruning's dependency graph (arXiv 2301.12900) and tried out."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from exporter.compress.calling import COMPUTED, Batch, Call, is_computed, learnable
from exporter.compress.groups import ChannelGroup, Cut
from exporter.compress.heads import possible_heads
from exporter.compress.low_rank import check_names
from exporter.compress.trials import bare_parameters, recurrent_layers, unfit_group
from exporter.errors import MissingError, ModelError, shorten

if TYPE_CHECKING:
    import torch_pruning

SLACK = 4
"""How many times the largest size of a parameter a list of indices may be long, for what is flattened on the way."""


def channel_groups(
    module: nn.Module, batch: Batch, *, call: Call, multiple: int, ignore: Sequence[str] = ()
) -> tuple[nn.Module, list[ChannelGroup], list[str]]:
    """Finds the groups whose removal leaves a model that runs, with the outputs' shapes, and computes the same.

    Each group is tried: the model without some of its channels is compared with the model whose layers do not read
    them. So what the graph gets wrong is left alone instead of pruned.

    Args:
        module: left unchanged.
        batch: two or more samples.
        call: runs the module on a batch.
        multiple: of channels that are left.
        ignore: names of modules that keep their outputs' width, with all that is in them.

    Returns:
        A copy of the module, which the groups' scores refer to; the groups; a line for each that is left alone.

    Raises:
        MissingError: torch-pruning is not installed.
        ModelError: `ignore` names no module, or the model cannot be followed at all.
    """
    check_names(module, ignore)
    traced = learnable(copy.deepcopy(module).eval())
    graph = _graph(traced, batch, call)
    names: dict[Any, str] = {one: name for name, one in traced.named_modules()}
    parameters = {id(one): name for name, one in traced.named_parameters()}
    left = [*bare_parameters(traced, batch, call), *recurrent_layers(traced)]
    with torch.no_grad():
        whole = call(traced, batch)
    groups: list[ChannelGroup] = []
    for root, found in _found(graph, names, left):
        name = names[root]
        makers = [
            names[one] for item in found.items if _makes(graph, item) and (one := item.dep.target.module) in names
        ]
        shown = ", ".join(makers[:3]) + (f" and {len(makers) - 3} more" if len(makers) > 3 else "")
        if any(maker == one or maker.startswith(f"{one}.") for maker in makers for one in ignore):
            left.append(f"{shown} left alone: ignored as asked")
            continue
        cuts = tuple(_cuts(graph, found, names, parameters))
        if any(cut.handler and is_computed(traced.get_submodule(cut.name)) for cut in cuts):
            left.append(f"{shown} left alone: {COMPUTED}")
            continue
        made = _sized(traced, name, found, cuts, multiple)
        reason = unfit_group(traced, made, batch, call, whole) if isinstance(made, ChannelGroup) else made
        if reason and (heads := _by_heads(traced, name, found, cuts, batch, call, whole)) is not None:
            groups.append(heads)
        elif reason:
            left.append(f"{shown} left alone: {reason}")
        elif isinstance(made, ChannelGroup):
            groups.append(made)
    return traced, groups, left


def _graph(traced: nn.Module, batch: Batch, call: Call) -> Any:
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise MissingError(
            "channel pruning needs torch-pruning", hint='pip install "edge-exporter[compress]"'
        ) from error
    try:
        graph: Any = tp.DependencyGraph()  # type: ignore[no-untyped-call]
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.build_dependency(traced, batch, forward_fn=lambda one, _: tuple(call(one, batch)), verbose=False)
    except Exception as error:
        raise ModelError(
            "torch-pruning cannot follow this model's channels",
            where='[[compress.steps]] method = "prune-channels"',
            why=shorten(f"{type(error).__name__}: {error}"),
            hint="use low-rank, prune-weights or a smaller student (distil) instead",
        ) from error
    widest = max((size for one in traced.parameters() for size in one.shape), default=0)
    for node in graph.module2node.values():
        for dependency in node.dependencies:
            dependency.index_mapping = _Bounded(dependency.index_mapping, SLACK * widest)
    return graph


class _Bounded(list[Any]):
    """Maps of indices of which none leads beyond what layers have.

    Where two branches are multiplied and flattened, torch-pruning goes round in circles, with more indices each time.
    """

    def __init__(self, maps: Sequence[Any], most: int) -> None:
        super().__init__([None] * len(maps))
        self.most = most
        for place, one in enumerate(maps):
            self[place] = one

    def __setitem__(self, place: Any, one: Any) -> None:
        super().__setitem__(place, one and self._bounded(one))

    def _bounded(self, one: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def mapped(indices: Any) -> Any:
            found = one(indices)
            if len(found) > self.most or any(index.idx >= self.most for index in found):
                raise ValueError("they multiply at every turn")
            return found

        return mapped


def _found(
    graph: Any, names: Mapping[Any, str], left: list[str]
) -> Iterator[tuple[nn.Module, torch_pruning.dependency.Group]]:
    """Each group once, by the first layer that makes its channels."""
    import torch_pruning as tp

    seen: set[int] = set()
    for root in list(graph.module2node):
        if not isinstance(root, (tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR)) or id(root) in seen or root not in names:
            continue
        pruner = graph.get_pruner_of_module(root)
        width = pruner.get_out_channels(root)
        try:
            group = graph.get_pruning_group(root, pruner.prune_out_channels, list(range(width)))
        except Exception as error:
            left.append(f"{names[root]} left alone: its channels cannot be followed: {shorten(error, 100)}")
            continue
        seen |= {id(item.dep.target.module) for item in group.items if _makes(graph, item)}
        yield root, group


def _makes(graph: Any, item: Any) -> bool:
    return bool(graph.is_out_channel_pruning_fn(item.dep.handler))


def _cuts(
    graph: Any,
    group: torch_pruning.dependency.Group,
    names: Mapping[Any, str],
    parameters: Mapping[int, str],
) -> Iterator[Cut]:
    import torch_pruning as tp

    reading = (tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR)
    for item in group.items:
        target = item.dep.target
        channels = dict(zip(item.idxs, item.root_idxs, strict=True))
        if isinstance(target.module, nn.Parameter):
            name = parameters[id(target.module)]
            yield Cut(name=name, handler=None, dim=target.pruning_dim, channels=channels, reads=False)
        elif target.module in names:
            reads = isinstance(target.module, reading) and not _makes(graph, item)
            yield Cut(name=names[target.module], handler=item.dep.handler, dim=0, channels=channels, reads=reads)


def _sized(
    module: nn.Module, name: str, found: torch_pruning.dependency.Group, cuts: tuple[Cut, ...], multiple: int
) -> ChannelGroup | str:
    """The group with the sizes that it may have, or why it can have no other."""
    width = len(found[0].idxs)
    blocks = _blocks(module, cuts, width)
    if width % blocks:
        return f"its {width} channels do not divide into {blocks} blocks"
    size = width // blocks
    step = math.lcm(multiple, blocks) // blocks
    levels = [size, *range((size - 1) // step * step, 0, -step)]
    if len(levels) < 2:
        return f"its {width} channels cannot become a smaller multiple of {multiple}"
    units = tuple(tuple(range(index, width, size)) for index in range(size))
    return _group(module, name, found, cuts, units, tuple(levels))


def _by_heads(
    module: nn.Module,
    name: str,
    found: torch_pruning.dependency.Group,
    cuts: tuple[Cut, ...],
    batch: Batch,
    call: Call,
    whole: Sequence[torch.Tensor],
) -> ChannelGroup | None:
    """The group as attention heads, where taking whole ones away is right."""
    for heads in possible_heads(module, name, cuts, len(found[0].idxs)):
        levels = tuple(range(len(heads.units), 0, -1))
        group = _group(module, name, found, cuts, heads.units, levels, heads.counters)
        if not unfit_group(module, group, batch, call, whole):
            return group
    return None


def _group(
    module: nn.Module,
    name: str,
    found: torch_pruning.dependency.Group,
    cuts: tuple[Cut, ...],
    units: tuple[tuple[int, ...], ...],
    levels: tuple[int, ...],
    counters: tuple[tuple[str, str, int], ...] = (),
) -> ChannelGroup:
    kinds = [type(module.get_submodule(cut.name)) for cut in cuts if cut.handler is not None]
    mixing = (nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention, nn.RMSNorm)
    return ChannelGroup(
        name=name,
        width=len(found[0].idxs),
        units=units,
        levels=levels,
        cuts=cuts,
        counters=counters,
        exact=not any(issubclass(kind, mixing) for kind in kinds),
        scored=found,
    )


def _blocks(module: nn.Module, cuts: Sequence[Cut], width: int) -> int:
    """Into how many blocks grouped layers divide the channels; each must lose the same ones."""
    found = {1}
    for cut in cuts:
        layer = module.get_submodule(cut.name) if cut.handler is not None else None
        if isinstance(layer, nn.GroupNorm):
            found.add(layer.num_groups)
        elif isinstance(layer, nn.MultiheadAttention):
            found.add(layer.num_heads)
        elif isinstance(layer, nn.modules.conv._ConvNd) and 1 < layer.groups < layer.out_channels:
            found.add(layer.groups)
    return math.lcm(*found)
