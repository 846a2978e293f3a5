"""Channels that can only go together, found by torch-pruning's dependency graph (arXiv 2301.12900) and tried out."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from exporter.compress.calling import Batch, Call
from exporter.compress.low_rank import check_names
from exporter.errors import MissingError, ModelError, shorten

if TYPE_CHECKING:
    import torch_pruning

HEADS = ("num_heads", "heads", "n_heads", "n_head", "nhead", "num_attention_heads")
"""Attributes by which attention modules keep their number of heads."""
FUNCTIONAL = {f"conv{kind}" for kind in ("1d", "2d", "3d", "_transpose1d", "_transpose2d", "_transpose3d")} | {
    "linear"
}
SAME = 1e-3
"""Largest difference, relative to the outputs, between channels that are gone and channels that nobody reads."""


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
        heads: attention module and its attribute that counts the units; None where they are no heads.
        exact: whether removing channels that nobody reads changes nothing; norms over channels do.
        scored: torch-pruning's group, for its importances.
    """

    name: str
    width: int
    units: tuple[tuple[int, ...], ...]
    levels: tuple[int, ...]
    cuts: tuple[Cut, ...]
    heads: tuple[str, str] | None
    exact: bool
    scored: torch_pruning.dependency.Group = field(repr=False)

    def channels_at(self, level: int) -> int:
        """Width at a level."""
        return self.levels[level] * len(self.units[0])


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
    traced = copy.deepcopy(module).eval().requires_grad_(True)
    graph = _graph(traced, batch, call)
    names: dict[Any, str] = {one: name for name, one in traced.named_modules()}
    parameters = {id(one): name for name, one in traced.named_parameters()}
    left = [*_bare(traced, batch, call), *_recurrent(traced)]
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
        made = _sized(traced, name, found, cuts, multiple)
        reason = made if isinstance(made, str) else _tried(traced, made, batch, call)
        if reason:
            left.append(f"{shown} left alone: {reason}")
        elif isinstance(made, ChannelGroup):
            groups.append(made)
    return traced, groups, left


def without(module: nn.Module, groups: Sequence[ChannelGroup], removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy without some units of some groups.

    Args:
        module: left unchanged; the module that the groups were found in, or one of the same widths.
        groups: all that are meant.
        removed: indices of units, by the name of the group.
    """
    result = copy.deepcopy(module)
    found: dict[tuple[str, Any], tuple[Cut, set[int]]] = {}
    for group in groups:
        gone = {channel for unit in removed.get(group.name, ()) for channel in group.units[unit]}
        if not gone:
            continue
        for cut in group.cuts:
            # One layer may read several groups, after a concatenation: its indices are removed at once.
            _, indices = found.setdefault((cut.name, cut.handler), (cut, set()))
            indices |= {index for index, channel in cut.channels.items() if channel in gone}
        if group.heads is not None:
            owner, attribute = group.heads
            count = len(group.units) - len(removed[group.name])
            setattr(result.get_submodule(owner), attribute, count)
    for cut, indices in found.values():
        if cut.handler is not None:
            cut.handler(result.get_submodule(cut.name), sorted(indices))
            continue
        place, _, leaf = cut.name.rpartition(".")
        old = result.get_parameter(cut.name)
        kept = torch.tensor([index for index in range(old.shape[cut.dim]) if index not in indices])
        narrow = nn.Parameter(old.detach().index_select(cut.dim, kept), requires_grad=old.requires_grad)
        setattr(result.get_submodule(place), leaf, narrow)
    return result


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
            return graph.build_dependency(
                traced, batch, forward_fn=lambda one, _: tuple(call(one, batch)), verbose=False
            )
    except Exception as error:
        raise ModelError(
            "torch-pruning cannot follow this model's channels",
            where='[[compress.steps]] method = "prune-channels"',
            why=shorten(f"{type(error).__name__}: {error}"),
            hint="use low-rank, prune-weights or a smaller student (distil) instead",
        ) from error


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
    heads = _heads(module, name, cuts)
    if heads is not None:
        owner, attribute, inner = heads
        count = int(getattr(module.get_submodule(owner), attribute))
        size = inner // count
        # A fused projection makes queries, keys and values of all heads, one after the other.
        units = [tuple(i for i in range(width) if i % inner // size == head) for head in range(count)]
        levels = list(range(count, 0, -1))
    else:
        blocks = _blocks(module, cuts, width)
        if width % blocks:
            return f"its {width} channels do not divide into {blocks} blocks"
        size = width // blocks
        units = [tuple(range(index, width, size)) for index in range(size)]
        step = math.lcm(multiple, blocks) // blocks
        levels = [size, *range((size - 1) // step * step, 0, -step)]
    if len(levels) < 2:
        return f"its {width} channels cannot become a smaller multiple of {multiple}" if heads is None else "one head"
    kinds = [type(module.get_submodule(cut.name)) for cut in cuts if cut.handler is not None]
    mixing = (nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention, nn.RMSNorm)
    return ChannelGroup(
        name=name,
        width=width,
        units=tuple(units),
        levels=tuple(levels),
        cuts=cuts,
        heads=heads[:2] if heads is not None else None,
        exact=not any(issubclass(kind, mixing) for kind in kinds),
        scored=found,
    )


def _heads(module: nn.Module, name: str, cuts: Sequence[Cut]) -> tuple[str, str, int] | None:
    """Attention module, attribute and width of all heads, where these are the channels inside an attention."""
    owner = name.rpartition(".")[0]
    parent = module.get_submodule(owner)
    attribute = next((one for one in HEADS if type(getattr(parent, one, None)) is int), None)
    if attribute is None:
        return None
    for cut in cuts:
        layer = module.get_submodule(cut.name) if cut.handler is not None else None
        if cut.reads and isinstance(layer, nn.Linear) and cut.name.rpartition(".")[0] == owner:
            return (
                (owner, attribute, layer.in_features) if layer.in_features % getattr(parent, attribute) == 0 else None
            )
    return None


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


def _tried(module: nn.Module, group: ChannelGroup, batch: Batch, call: Call) -> str:
    """Why a group cannot be pruned; empty when the model without some of its channels is right."""
    count, few = group.levels[0], group.levels[0] - group.levels[1]
    with torch.no_grad():
        whole = call(module, batch)
        # The first and the last: what is split into parts must not fit by chance.
        for gone in (range(few), range(count - few, count)):
            try:
                got = call(without(module, [group], {group.name: gone}).eval(), batch)
                if shapes_of(whole) != shapes_of(got):
                    return "its channels are an output of the model"
                wanted = call(_unread(module, group, gone), batch) if group.exact else got
            except Exception as error:
                return f"the model does not run without some of its channels: {shorten(error, 100)}"
            for one, other in zip(got, wanted, strict=True):
                if not torch.allclose(one, other, rtol=0, atol=SAME * (float(other.abs().max()) or 1.0)):
                    return "the model mixes its channels in a way that torch-pruning does not follow"
    return ""


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


def _bare(module: nn.Module, batch: Batch, call: Call) -> list[str]:
    known = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention, nn.RNNBase)
    with torch.no_grad(), _Bare() as watch:
        call(module, batch)
    found = []
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        if id(parameter) in watch.seen and not isinstance(owner, known):
            found.append(f"{name} left alone: a bare parameter of a functional {watch.seen[id(parameter)]}")
    return found


def _recurrent(module: nn.Module) -> list[str]:
    return [
        f"{name} left alone: channels of {type(one).__name__} cannot be pruned"
        for name, one in module.named_modules()
        if isinstance(one, nn.RNNBase)
    ]


def example_of(batch: Batch) -> Batch:
    """A few samples of a batch, which are enough to follow channels."""
    return tuple(tensor[:2] if tensor.dim() else tensor for tensor in batch)


def shapes_of(outputs: Sequence[Tensor]) -> list[list[int]]:
    """Shapes of outputs."""
    return [list(one.shape) for one in outputs]
