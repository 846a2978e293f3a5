"""Weight pruning: weights, runs of them or two of four set to zero; files compress better, nothing gets faster."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from exporter.compress.calling import Batch, Call, plainly
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
    check_names(module, pruning.ignore)
    result = copy.deepcopy(module).eval()
    left: list[str] = []
    layers = dict(_layers(result, pruning, left))
    scores = _scores(result, layers, batches, pruning, call, left)
    # Runs share their fate: one score for each.
    shared = {name: _grouped(layers[name], one) for name, one in scores.items()}
    limits = _limits(shared, pruning)
    gone = total = 0
    for name, grouped in shared.items():
        if pruning.pattern == "2:4":
            order = grouped.argsort(-1)
            lost = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, order[..., :2], True)
        else:
            if pruning.pattern == "blocks":
                grouped = grouped.mean(-1, keepdim=True).expand(grouped.shape)
            lost = grouped < limits[name] if pruning.threshold is not None else grouped <= limits[name]
        weight = layers[name].weight
        with torch.no_grad():
            weight.masked_fill_(_ungrouped(layers[name], lost), 0)
        gone, total = gone + int((weight == 0).sum()), total + weight.numel()
    if gone in (0, total):
        raise ModelError(
            f"{'every' if gone else 'no'} weight would become zero" + "".join(f"\n  - {line}" for line in left[:10]),
            where=WHERE,
            hint="change `sparsity` or `threshold`, or ignore fewer modules",
        )
    names = tuple(f"{name}.weight" for name in shared)
    return result.requires_grad_(False), Sparse(weights=names), (
        f"{gone / total:.1%} of {total:,} weights in {len(names)} layers are zero", *left
    )  # fmt: skip


def _layers(
    module: nn.Module, pruning: WeightPruning, left: list[str]
) -> Iterable[tuple[str, nn.Linear | nn.modules.conv._ConvNd]]:
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            continue
        if any(name == one or name.startswith(f"{one}.") for one in pruning.ignore):
            left.append(f"{name} left alone: ignored as asked")
        elif pruning.pattern != "free" and _inputs_last(layer, layer.weight).shape[-1] % RUN:
            left.append(f"{name} left alone: its inputs do not divide into runs of {RUN}")
        else:
            yield name, layer


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
        module.requires_grad_(True)
        accumulate_gradients(module, batches(), call)
        found = {name: (layer.weight.detach(), layer.weight.grad) for name, layer in layers.items()}
        module.zero_grad(set_to_none=True)
        left += [f"{name} left alone: the outputs do not depend on it" for name in found if found[name][1] is None]
        return {name: (weight * grad).abs() for name, (weight, grad) in found.items() if grad is not None}
    squares: dict[str, Tensor] = {}
    hooks = [layer.register_forward_hook(partial(_add_squares, squares, name)) for name, layer in layers.items()]
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
    squares: dict[str, Tensor], name: str, layer: nn.Linear | nn.modules.conv._ConvNd, inputs: tuple[Tensor, ...],
    output: Tensor,
) -> None:  # fmt: skip
    del output
    values = inputs[0].detach()
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


def _limits(shared: Mapping[str, Tensor], pruning: WeightPruning) -> dict[str, float]:
    """The score up to which weights of a layer go."""
    if pruning.pattern == "2:4":
        return {}
    if pruning.threshold is not None:
        return dict.fromkeys(shared, pruning.threshold)
    means = {
        name: one.mean(-1).flatten() if pruning.pattern == "blocks" else one.flatten() for name, one in shared.items()
    }
    if pruning.spread == "global":
        return dict.fromkeys(shared, _quantile(list(means.values()), float(pruning.sparsity or 0)))
    return {name: _quantile([one], float(pruning.sparsity or 0)) for name, one in means.items()}


def _quantile(parts: Sequence[Tensor], share: float) -> float:
    """The value up to which a share of all values lies; below all of them where the share rounds to none."""
    values = torch.cat(list(parts))
    count = round(share * len(values))
    return float(values.kthvalue(count).values) if count else -1.0
