"""Several state dicts of one architecture into one, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.errors import ModelError, closest
from exporter.merge import methods
from exporter.merge.states import State, as_state, check_alike, check_finite

MEAN, VARIANCE = ".running_mean", ".running_var"

KNOWING = {"fisher": methods.fisher, "regmean": methods.regmean}
"""Methods that use what is known of each model beside its weights."""
NEED_BASE = ("task-arithmetic", "ties", "dare")
METHODS = ("average", "slerp", *NEED_BASE, *KNOWING)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method of merging and its numbers; see `MergePlan` for what they mean."""

    method: str = "average"
    weights: Mapping[str, float] | None = None
    scale: float = 0.5
    density: float = 0.2
    drop: float = 0.5
    position: float = 0.5
    seed: int = 0


def merge_states(
    models: Mapping[str, State | Mapping[str, Tensor]],
    recipe: Recipe,
    *,
    base: State | Mapping[str, Tensor] | None = None,
    knowledge: Mapping[str, State | Mapping[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Merges state dicts; memory holds the result and one tensor of each model.

    Weights keep the first model's element types. Statistics of batch norms become those of the mixture, counters the
    largest of all; other integers and flags must agree.

    Args:
        models: what is merged, by name: state dicts, or what `open_states` gives.
        recipe: how.
        base: what all were fine-tuned from; needed by methods that work on task vectors.
        knowledge: of each model what `fisher` (importances) or `regmean` (grams) knows, by tensor name; tensors of
            which nothing is known are averaged.

    Returns:
        The merged state dict.

    Raises:
        ModelError: tensors differ in name or shape, or hold NaN.
        ValueError: the method is unknown, lacks its base, or gives weights to models that are not there.
    """
    return _merged(
        {label: as_state(state) for label, state in models.items()},
        recipe,
        None if base is None else as_state(base),
        None if knowledge is None else {label: as_state(known) for label, known in knowledge.items()},
    )


def _merged(
    models: Mapping[str, State], recipe: Recipe, base: State | None, knowledge: Mapping[str, State] | None
) -> dict[str, Tensor]:
    _check(models, recipe)
    check_alike({**models, **({"base": base} if base is not None else {})})
    random = torch.Generator().manual_seed(recipe.seed)
    labels = list(models)
    shares = [(recipe.weights or {}).get(label, 1.0) for label in labels]
    merged: dict[str, Tensor] = {}
    names = list(next(iter(models.values())).names())
    for name in names:
        if name in merged:
            continue
        tensors = [state.get(name) for state in models.values()]
        kind = tensors[0].dtype
        start = None if base is None else base.get(name)
        variance = name.removesuffix(MEAN) + VARIANCE
        paired = name.endswith(MEAN) and variance in names
        others = [*tensors[1:], *([] if start is None else [start])]
        if not paired and all(_equal(tensors[0], other) for other in others):
            merged[name] = tensors[0].clone()  # Also a mask of -inf, which all share.
            continue
        for label, tensor in zip(labels, tensors, strict=True):
            check_finite(name, label, tensor)
            if _is_continuous(tensor) != _is_continuous(tensors[0]) or tensor.is_complex() != kind.is_complex:
                raise ModelError(
                    f"'{labels[0]}' has {kind} values where '{label}' has {tensor.dtype}", where=f"tensor {name}"
                )
        if not _is_continuous(tensors[0]):
            merged[name] = _discrete(name, labels, tensors)
            continue
        floats = [_floats(tensor) for tensor in tensors]
        if paired:
            variances = [
                check_finite(variance, label, state.get(variance)).float() for label, state in models.items()
            ]
            parts = [1 - recipe.position, recipe.position] if recipe.method == "slerp" else shares
            mean, spread = methods.statistics(floats, variances, parts)
            merged[name], merged[variance] = mean.to(kind), spread.to(kind)
            continue
        if knowledge is not None and all(name in set(known.names()) for known in knowledge.values()):
            known_of = [knowledge[label].get(name) for label in labels]
            merged[name] = KNOWING[recipe.method](floats, known_of, shares).to(kind)
            continue
        origin = None if start is None else _floats(check_finite(name, "base", start))
        result = _continuous(recipe, floats, shares, origin, random)
        merged[name] = (torch.view_as_complex(result.contiguous()) if kind.is_complex else result).to(kind)
    return {name: merged[name] for name in names}


def _check(models: Mapping[str, State], recipe: Recipe) -> None:
    if recipe.method not in METHODS:
        raise ValueError(f"no method is called '{recipe.method}'{closest(recipe.method, METHODS)}")
    weights = recipe.weights or {}
    if unknown := [label for label in weights if label not in models]:
        raise ValueError(f"there is no model '{unknown[0]}' to give a weight to{closest(unknown[0], list(models))}")
    if not models or (recipe.method == "slerp" and len(models) != 2):
        raise ValueError(f"'{recipe.method}' cannot merge {len(models)} models")
    if recipe.method not in (*NEED_BASE, "slerp") and not sum(weights.get(label, 1.0) for label in models) > 0:
        raise ValueError("the weights of the models sum to nothing")


def _continuous(
    recipe: Recipe, tensors: list[Tensor], shares: list[float], base: Tensor | None, random: torch.Generator
) -> Tensor:
    if recipe.method in ("average", *KNOWING):
        return methods.average(tensors, shares)
    if recipe.method == "slerp":
        return methods.slerp(tensors[0], tensors[1], recipe.position)
    if base is None:
        raise ValueError(f"'{recipe.method}' needs a base")
    if recipe.method == "task-arithmetic":
        return methods.task_arithmetic(base, tensors, shares, recipe.scale)
    if recipe.method == "ties":
        return methods.ties(base, tensors, shares, recipe.scale, recipe.density)
    return methods.dare(base, tensors, shares, recipe.scale, recipe.drop, random)


def _is_continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _floats(tensor: Tensor) -> Tensor:
    """In float32; complex numbers are two of them each."""
    return torch.view_as_real(tensor.to(torch.complex64)) if tensor.is_complex() else tensor.float()


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)


def _discrete(name: str, labels: list[str], tensors: list[Tensor]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.stack(tensors).amax(0)
    for label, tensor in zip(labels[1:], tensors[1:], strict=True):
        if not torch.equal(tensor, tensors[0]):
            raise ModelError(
                f"'{labels[0]}' and '{label}' differ in whole numbers that have no mean",
                where=f"tensor {name} ({tensor.dtype})",
                hint="such tensors are tables or masks: merge models that share them",
            )
    return tensors[0].clone()


def greedy_soup(
    models: Mapping[str, State | Mapping[str, Tensor]], score: Callable[[Mapping[str, Tensor], int], float]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Adds models to the mean, best first, while the score does not fall (greedy soup, arXiv 2203.05482).

    Args:
        models: candidates by name.
        score: higher is better; called with a state dict and the number of models in it.

    Returns:
        The state dict of the soup, and the names that went into it.
    """
    given = {label: as_state(state) for label, state in models.items()}
    check_alike(given)
    alone = {label: score({name: state.get(name) for name in state.names()}, 1) for label, state in given.items()}
    order = sorted(models, key=lambda label: -alone[label])
    chosen, best = [order[0]], alone[order[0]]
    soup = merge_states({order[0]: models[order[0]]}, Recipe())
    for label in order[1:]:
        candidate = merge_states({one: models[one] for one in [*chosen, label]}, Recipe())
        if (reached := score(candidate, len(chosen) + 1)) >= best:
            chosen, best, soup = [*chosen, label], reached, candidate
    return soup, tuple(chosen)
