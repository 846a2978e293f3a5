"""Weight pruning: weights, runs of them or two of four set to zero; files compress better, nothing gets faster."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from exporter.compress.calling import COMPUTED, Batch, Call, check_words, first_input, is_computed, learnable, plainly
from exporter.compress.channels import accumulate_gradients
from exporter.compress.low_rank import check_names
from exporter.compress.structure import Sparse
from exporter.errors import ModelError

WHERE = '[[compress.steps]] method = "prune-weights"'
RUN = 4
"""Weights of a block or of a 2:4 pattern; they lie along the layer's inputs."""


@dataclass(frozen=True, kw_only=True)
class WeightPruning:
    """Which weights become zero; see `PruneWeightsStep` for what the values mean."""

    importance: Literal["magnitude", "activation", "taylor"] = "magnitude"
    sparsity: float | None = None
    threshold: float | None = None
    spread: Literal["layer", "global"] = "layer"
    pattern: Literal["free", "2:4", "blocks"] = "free"
    ignore: tuple[str, ...] = ()


def prune_weights(
    module: nn.Module,
    batches: Callable[[], Iterable[Batch]],
    pruning: WeightPruning,
    *,
    call: Call = plainly,
) -> tuple[nn.Module, Sparse, tuple[str, ...]]:
    """A copy with weights of linear layers and convolutions set to zero; biases and norms stay.

    Args:
        module: left unchanged.
        batches: inputs, for `activation` (arXiv 2306.11695) and `taylor` (arXiv 1906.10771).
        pruning: which weights.
        call: runs the module on a batch.

    Returns:
        The new module in eval mode, the names of its sparse weights, and a line for each layer that was left alone.

    Raises:
        ModelError: no weight or every weight would become zero, or `ignore` names no module.
    """
    if pruning.pattern != "2:4" and (pruning.sparsity is None) == (pruning.threshold is None):
        raise ValueError("give sparsity or threshold")
    check_words(pruning)
    check_names(module, pruning.ignore)
    result = copy.deepcopy(module).eval()
    left: list[str] = []
    layers = dict(_layers(result, pruning, left))
    left += _other_weights(result, layers, pruning.ignore)
    scores = _scores(result, layers, batches, pruning, call, left)
    # Runs share their fate: one score for each.
    shared = {name: _grouped(layers[name], one) for name, one in scores.items()}
    gone = total = 0
    emptied = []
    for name, lost in _lost(shared, pruning).items():
        weight = layers[name].weight
        with torch.no_grad():
            weight.masked_fill_(_ungrouped(layers[name], lost), 0)
        zeros = int((weight == 0).sum())
        gone, total = gone + zeros, total + weight.numel()
        emptied += [name] if zeros == weight.numel() else []
    if gone in (0, total):
        raise ModelError(
            f"{'every' if gone else 'no'} weight would become zero" + "".join(f"\n  - {line}" for line in left[:10]),
            where=WHERE,
            hint="change `sparsity` or `threshold`, or ignore fewer modules",
        )
    names = tuple(f"{name}.weight" for name in shared)
    told = [f"{name}: every weight is zero now: what it gives does not depend on the input" for name in emptied]
    return result.requires_grad_(False), Sparse(weights=names), (
        f"{gone / total:.1%} of {total:,} weights in {len(names)} layers are zero", *told, *left
    )  # fmt: skip


def _layers(
    module: nn.Module, pruning: WeightPruning, left: list[str]
) -> Iterable[tuple[str, nn.Linear | nn.modules.conv._ConvNd]]:
    first: dict[int, str] = {}
    kept = {
        id(one): name
        for name, one in module.named_parameters(remove_duplicate=False)
        if _within(name, pruning.ignore)
    }
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            continue
        if is_computed(layer):
            left.append(f"{name} left alone: {COMPUTED}")
        elif (one := first.setdefault(id(layer.weight), name)) != name:
            left.append(f"{name} has its weight in common with {one}: it counts once")
        elif _within(name, pruning.ignore):
            left.append(f"{name} left alone: ignored as asked")
        elif id(layer.weight) in kept:
            left.append(f"{name} left alone: its weight is {kept[id(layer.weight)]} too, which is ignored as asked")
        elif pruning.pattern != "free" and _inputs_last(layer, layer.weight).shape[-1] % RUN:
            left.append(f"{name} left alone: its inputs do not divide into runs of {RUN}")
        else:
            yield name, layer


def _other_weights(module: nn.Module, layers: Mapping[str, nn.Module], ignore: Sequence[str]) -> list[str]:
    """A line for each module with weights that are no layer's: attention's fused projections, LSTMs, embeddings."""
    known = {id(layer.weight) for layer in layers.values()}
    found: dict[str, list[str]] = {}
    for name, parameter in module.named_parameters():
        place, _, leaf = name.rpartition(".")
        owner = module.get_submodule(place)
        layer = isinstance(owner, nn.Linear | nn.modules.conv._ConvNd)
        if parameter.dim() > 1 and not layer and id(parameter) not in known and not _within(place, ignore):
            found.setdefault(place, []).append(leaf)
    return [
        f"{'.'.join(filter(None, (place, leaves[0])))}{f' and {len(leaves) - 1} more' if leaves[1:] else ''} left "
        f"alone: of a {type(module.get_submodule(place)).__name__}, which is no linear layer or convolution"
        for place, leaves in found.items()
    ]


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in modules)


def _scores(
    module: nn.Module,
    layers: Mapping[str, nn.Linear | nn.modules.conv._ConvNd],
    batches: Callable[[], Iterable[Batch]],
    pruning: WeightPruning,
    call: Call,
    left: list[str],
) -> dict[str, Tensor]:
    """Importance of every weight, in its shape."""
    if pruning.importance == "magnitude":
        return {name: layer.weight.detach().abs() for name, layer in layers.items()}
    if pruning.importance == "taylor":
        learnable(module)
        accumulate_gradients(module, batches(), call)
        found = {name: (layer.weight.detach(), layer.weight.grad) for name, layer in layers.items()}
        module.zero_grad(set_to_none=True)
        left += [f"{name} left alone: the outputs do not depend on it" for name in found if found[name][1] is None]
        return {name: (weight * grad).abs() for name, (weight, grad) in found.items() if grad is not None}
    squares: dict[str, Tensor] = {}
    # A weight that several layers have in common sees the inputs of all of them.
    named = {id(layer.weight): name for name, layer in layers.items()}
    hooks = [
        layer.register_forward_hook(partial(_add_squares, squares, named[id(layer.weight)]), with_kwargs=True)
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) and id(layer.weight) in named
    ]
    with torch.no_grad():
        for batch in batches():
            call(module, batch)
    for hook in hooks:
        hook.remove()
    left += [f"{name} left alone: its inputs are not seen" for name in layers if name not in squares]
    return {
        name: layer.weight.detach().abs() * _as_weight(layer, squares[name].sqrt())
        for name, layer in layers.items()
        if name in squares
    }


def _add_squares(
    squares: dict[str, Tensor], name: str, layer: nn.Linear | nn.modules.conv._ConvNd, inputs: tuple[Any, ...],
    given: dict[str, Any], output: Tensor,
) -> None:  # fmt: skip
    del output
    values = first_input(inputs, given).detach()
    values = values if isinstance(layer, nn.Linear) else values.movedim(1, -1)
    squares[name] = squares.get(name, torch.zeros(values.shape[-1])) + values.reshape(
        -1, values.shape[-1]
    ).square().sum(0)


def _as_weight(layer: nn.Linear | nn.modules.conv._ConvNd, norms: Tensor) -> Tensor:
    """Norms of a layer's inputs in a shape that multiplies its weight."""
    if isinstance(layer, nn.Linear):
        return norms[None]
    spatial = (1,) * len(layer.kernel_size)
    if layer.transposed:
        return norms.view(-1, 1, *spatial)
    # Outputs of a group read the inputs of that group.
    rows = norms.view(layer.groups, 1, -1).expand(-1, layer.out_channels // layer.groups, -1)
    return rows.reshape(layer.out_channels, -1, *spatial)


def _inputs_last(layer: nn.Linear | nn.modules.conv._ConvNd, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return weight
    return weight.movedim(0 if layer.transposed else 1, -1)


def _grouped(layer: nn.Linear | nn.modules.conv._ConvNd, scores: Tensor) -> Tensor:
    """Scores with runs along the inputs on the last axis; layers whose inputs do not divide have runs of one."""
    last = _inputs_last(layer, scores)
    size = RUN if last.shape[-1] % RUN == 0 else 1
    return last.reshape(*last.shape[:-1], -1, size)


def _ungrouped(layer: nn.Linear | nn.modules.conv._ConvNd, grouped: Tensor) -> Tensor:
    flat = grouped.flatten(-2)
    if isinstance(layer, nn.Linear):
        return flat
    return flat.movedim(-1, 0 if layer.transposed else 1)


def _lost(shared: Mapping[str, Tensor], pruning: WeightPruning) -> dict[str, Tensor]:
    """Which weights of each layer go, by their scores; runs lie on the last axis."""
    if pruning.pattern == "2:4":
        return {name: _lowest(one, 2) for name, one in shared.items()}
    # A block goes as a whole, by its mean.
    scores = {
        name: one.mean(-1, keepdim=True) if pruning.pattern == "blocks" else one for name, one in shared.items()
    }
    if pruning.threshold is not None:
        lost = {name: one < pruning.threshold for name, one in scores.items()}
    elif pruning.spread == "global":
        flat = torch.cat([one.flatten() for one in scores.values()])
        gone = _lowest(flat, round(float(pruning.sparsity or 0) * len(flat)))
        parts = torch.split(gone, [one.numel() for one in scores.values()])
        lost = {name: part.view(one.shape) for (name, one), part in zip(scores.items(), parts, strict=True)}
    else:
        lost = {
            name: _lowest(one.flatten(), round(float(pruning.sparsity or 0) * one.numel())).view(one.shape)
            for name, one in scores.items()
        }
    return {name: part.expand(shared[name].shape) for name, part in lost.items()}


def _lowest(scores: Tensor, count: int) -> Tensor:
    """Exactly so many of the lowest along the last axis; of equal ones the first."""
    order = scores.argsort(stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
