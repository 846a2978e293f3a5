"""Channel pruning: every group of channels narrowed in steps until the whole model costs what was asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from exporter.compress.calling import Batch, Call, check_words, plainly
from exporter.compress.finding import channel_groups
from exporter.compress.groups import ChannelGroup, without
from exporter.compress.structure import Widths, apply_structure, widths_between
from exporter.compress.trials import example_of, shapes_of
from exporter.errors import ModelError

Importance = Literal["l2", "lamp", "fpgm", "bn-scale", "taylor", "random"]
CLOSE = 0.05
"""A noisy cost this little below the target ends the search."""
WHERE = '[[compress.steps]] method = "prune-channels"'


@dataclass(frozen=True, kw_only=True)
class ChannelPruning:
    """How channels are chosen; see `PruneChannelsStep` for what the values mean."""

    importance: Importance = "l2"
    spread: Literal["layer", "global"] = "layer"
    multiple: int = 8
    ignore: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PrunedChannels:
    """A narrower module.

    Attributes:
        module: in eval mode.
        change: what makes it from the factory's module again.
        cost: its share of the cost before.
        widths: channels before and after, by the layer that makes them.
        left: a line for each layer that was left alone.
        tried: candidates whose cost was looked at.
        wider: what the next wider candidate costs, which is more than the target; None where that is the module
            before, or a noisy search ended before it.
    """

    module: nn.Module
    change: Widths
    cost: float
    widths: Mapping[str, tuple[int, int]]
    left: tuple[str, ...]
    tried: int
    wider: float | None = None


def prune_channels(
    module: nn.Module,
    batches: Callable[[], Iterable[Batch]],
    pruning: ChannelPruning,
    *,
    target: float,
    cost: Callable[[nn.Module], float],
    what: str,
    noisy: bool = False,
    call: Call = plainly,
    progress: Callable[[int], None] = lambda tried: None,
) -> PrunedChannels:
    """A copy with fewer channels, the widest whose cost is at most the target.

    All groups of channels go down one ladder, a rung being one group narrowed to the next multiple. With `spread =
    "layer"` a ratio that rises from 0 to 1 is rounded to the nearest multiple in every layer; with `global` the
    channels of least importance in the whole model go first.

    Args:
        module: left unchanged.
        batches: inputs; the first batch is traced, all are used for gradients.
        pruning: how channels are chosen.
        target: share of the cost of `module`.
        cost: the share that a candidate costs; called for a few of them.
        what: names the cost in messages.
        noisy: the cost is measured: a candidate little below the target is good enough.
        call: runs the module on a batch.
        progress: told how many candidates were tried.

    Raises:
        MissingError: torch-pruning is not installed.
        ModelError: nothing can be pruned, the target cannot be reached (the best reachable is named), or `ignore`
            names no module.
    """
    check_words(pruning)
    batch = example_of(next(iter(batches())))
    traced, groups, left = channel_groups(module, batch, call=call, multiple=pruning.multiple, ignore=pruning.ignore)
    groups, scores = _scored(traced, groups, left, batches, pruning, call)
    if not groups:
        with torch.no_grad():
            floats = any(output.is_floating_point() for output in call(module, batch))
        raise ModelError(
            "no channels can be pruned" + "".join(f"\n  - {line}" for line in left[:20]),
            where=WHERE,
            why=None if floats else "the outputs are whole numbers; channels are followed back from floats",
            hint="lower `multiple`, use another `importance`, or use low-rank or prune-weights instead",
        )
    orders = {name: sorted(range(len(one)), key=one.__getitem__) for name, one in scores.items()}
    rungs = _ladder(groups, scores, orders, pruning.spread)
    made: dict[int, tuple[nn.Module, float]] = {}

    def at(height: int) -> float:
        if height not in made:
            candidate = without(module, groups, _removed(groups, orders, rungs[:height])).eval()
            made[height] = (candidate, cost(candidate))
            progress(len(made))
        return made[height][1]

    if at(len(rungs)) > target:
        raise ModelError(
            f"{what} of {target:.3g}x cannot be reached by pruning channels: the best reachable is "
            f"{at(len(rungs)):.3g}x",
            where=WHERE,
            why="; ".join(left[:6]) or None,
            hint="raise the target, lower `multiple`, or ignore fewer modules",
        )
    low, high = 0, len(rungs)
    while high - low > 1:
        middle = (low + high) // 2
        if at(middle) <= target:
            high = middle
            if noisy and made[middle][1] >= (1 - CLOSE) * target:
                break
        else:
            low = middle
    chosen, reached = made[high]
    change = widths_between(module, chosen)
    _check(module, chosen, change, batch, call)
    removed = _removed(groups, orders, rungs[:high])
    widths = {
        group.name: (group.width, group.width - len(removed[group.name]) * len(group.units[0]))
        for group in groups
        if removed.get(group.name)
    }
    return PrunedChannels(
        module=chosen,
        change=change,
        cost=reached,
        widths=widths,
        left=tuple(left),
        tried=len(made),
        wider=made[high - 1][1] if high - 1 in made else None,
    )


def _ladder(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Sequence[float]],
    orders: Mapping[str, Sequence[int]],
    spread: str,
) -> list[str]:
    """Names of groups in the order in which they are narrowed by one level."""
    rungs = []
    for group in groups:
        count, order = len(group.units), orders[group.name]
        for level, (before, after) in enumerate(zip(group.levels, group.levels[1:], strict=False)):
            going = [scores[group.name][unit] for unit in order[count - before : count - after]]
            score = sum(going) / len(going)
            # A ratio rounds to the smaller of two widths from their middle on.
            key = (1 - (before + after) / 2 / count, score) if spread == "layer" else (score, 0.0)
            rungs.append((key, level, group.name))
    # Within a group scores rise with the level, so the order of its rungs holds.
    return [name for _, _, name in sorted(rungs)]


def _removed(
    groups: Sequence[ChannelGroup], orders: Mapping[str, Sequence[int]], rungs: Sequence[str]
) -> dict[str, Sequence[int]]:
    """Units that are gone after some rungs."""
    return {
        group.name: orders[group.name][: len(group.units) - group.levels[rungs.count(group.name)]] for group in groups
    }


def _scored(
    traced: nn.Module,
    groups: Sequence[ChannelGroup],
    left: list[str],
    batches: Callable[[], Iterable[Batch]],
    pruning: ChannelPruning,
    call: Call,
) -> tuple[list[ChannelGroup], dict[str, list[float]]]:
    """Importance of each unit, comparable across groups; groups without one are left alone."""
    import torch_pruning as tp

    kinds = {
        "l2": tp.importance.GroupMagnitudeImportance,
        "lamp": tp.importance.LAMPImportance,
        "fpgm": tp.importance.FPGMImportance,
        "bn-scale": tp.importance.BNScaleImportance,
        "taylor": tp.importance.GroupTaylorImportance,
        "random": tp.importance.RandomImportance,
    }
    importance = kinds[pruning.importance]()
    if pruning.importance == "taylor":
        accumulate_gradients(traced, batches(), call)
    kept, scores = [], {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pruning.seed)
        for group in groups:
            values: Tensor | None = importance(group.scored)
            if values is None or len(values) != group.width or not bool(torch.isfinite(values).all()):
                left.append(f"{group.name} left alone: nothing in it that '{pruning.importance}' could score")
                continue
            kept.append(group)
            scores[group.name] = [float(values[list(unit)].mean()) for unit in group.units]
    traced.zero_grad(set_to_none=True)
    return kept, scores


def accumulate_gradients(module: nn.Module, batches: Iterable[Batch], call: Call) -> None:
    """Gradients of the mean square of the outputs, which needs no labels, summed over batches.

    Raises:
        ModelError: no output has gradients.
    """
    module.zero_grad(set_to_none=True)
    with torch.enable_grad():
        for batch in batches:
            outputs = [one for one in call(module, batch) if one.is_floating_point() and one.requires_grad]
            if not outputs:
                raise ModelError(
                    "no output of the model has a gradient, which `taylor` needs",
                    where='[[compress.steps]] importance = "taylor"',
                    why="outputs in whole numbers have none",
                    hint="use another `importance`, or let the factory's module return what they are made from",
                )
            torch.autograd.backward(torch.stack([one.square().mean() for one in outputs]).sum())


def _check(module: nn.Module, pruned: nn.Module, change: Widths, batch: Batch, call: Call) -> None:
    """Holds that outputs keep their shapes and that the widths make the module again."""
    with torch.no_grad():
        before, after = call(module, batch), call(pruned, batch)
        if shapes_of(before) != shapes_of(after):
            raise ModelError(
                "pruning would change the outputs' shapes",
                where=WHERE,
                why=f"from {shapes_of(before)} to {shapes_of(after)}",
                hint="name the layers that make the outputs in `ignore`",
            )
        again = apply_structure(copy.deepcopy(module), (change,))
        again.load_state_dict(pruned.state_dict())
        same = all(torch.equal(one, other) for one, other in zip(call(again.eval(), batch), after, strict=True))
    if not same:
        raise ModelError(
            "the pruned architecture cannot be made again from its widths",
            where=WHERE,
            hint="keep widths as whole-number attributes of modules, or name the modules in `ignore`",
        )
