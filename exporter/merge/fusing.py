"""Outputs of several models into one, inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from exporter.artifacts import Value
from exporter.errors import ModelError

By = Literal["mean", "probabilities", "vote", "max", "learned"]
FILL = -1e4
"""A logit that softmax makes zero, at any temperature that is used."""
ROUNDS = 500


class Fusion(Value, frozen=True, kw_only=True):
    """How outputs are fused.

    Attributes:
        by: `mean` of the outputs as they are; of their softmax: the mean (`probabilities`, and `learned`, whose
            weights come from `learn_weights`), or the largest of each class (`max`); `vote`, the share of votes.
        weights: one a member; need not sum to one.
        classes: for each member the classes that its outputs stand for; () where it knows them all.
        total: number of classes of the result where some member knows only a part of them.
    """

    by: By
    weights: tuple[float, ...]
    classes: tuple[tuple[int, ...], ...] = ()
    total: int = 0

    def places(self, member: int) -> tuple[int, ...]:
        """For each class of the result the member's own column; one past its last for a class it does not know."""
        own = self.classes[member] if self.classes else ()
        return tuple(own.index(one) if one in own else len(own) for one in range(self.total)) if own else ()


def fuse(outputs: Sequence[Tensor], fusion: Fusion) -> Tensor:
    """One tensor out of those of several models.

    Args:
        outputs: one of each member, [..., its classes].
        fusion: how.

    Returns:
        [..., classes]: outputs of the same kind for `mean`, else probabilities or shares of votes.

    Raises:
        ModelError: their shapes differ.
    """
    parts = []
    for index, output in enumerate(outputs):
        own = _kind(output, fusion)
        places = fusion.places(index)
        parts.append(placed(own, places, len(fusion.classes[index]), 0.0) if places else own)
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1 or len({part.dim() for part in parts}) > 1:
        raise ModelError(
            "the outputs that are to be fused have different shapes",
            where="[[merge.models]]",
            why=f"for one sample: {', '.join(str(list(part.shape[1:])) for part in parts)}",
            hint='name each model\'s `classes`, or stack the models instead (`method = "stack"`)',
        )
    if fusion.by == "max":
        return torch.stack(parts).amax(0)
    total = sum(fusion.weights)
    result = parts[0] * (fusion.weights[0] / total)
    for part, weight in zip(parts[1:], fusion.weights[1:], strict=True):
        result = result + part * (weight / total)
    return result


def placed(values: Tensor, places: Sequence[int], count: int, fill: float) -> Tensor:
    """Columns of a member's classes at their places among all classes; the others hold `fill`.

    Args:
        values: [..., count].
        places: see `Fusion.places`.
        count: of classes that the member knows.
        fill: for classes that it does not know.

    Raises:
        ModelError: the member has another number of outputs.
    """
    if values.shape[-1] != count:
        raise ModelError(
            f"a model with {values.shape[-1]} outputs was given {count} classes", where="[[merge.models]] classes"
        )
    missing = torch.full_like(values[..., :1], fill)
    return torch.cat([values, missing], -1)[..., torch.tensor(list(places), device=values.device)]


class Teacher(nn.Module):
    """A teacher whose logits stand at their classes' places among all; a class it does not know has no chance."""

    def __init__(self, inner: nn.Module, classes: Sequence[int], total: int) -> None:
        super().__init__()
        self.inner = inner
        known = tuple(classes)
        self.count = len(known)
        self.places = Fusion(by="mean", weights=(1.0,), classes=(known,), total=total).places(0)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the teacher; gives its outputs, [..., total classes] where it was told which it knows."""
        outputs = self.inner(*tensors)
        if not self.places:
            return tuple(outputs)
        return tuple(placed(output, self.places, self.count, FILL) for output in outputs)


def learn_weights(probabilities: Sequence[Tensor], labels: Tensor) -> tuple[float, ...]:
    """Weights of a mixture of classifiers that make the labels most likely (EM, Dempster 1977), from equal ones on.

    Args:
        probabilities: of each member, [samples, classes].
        labels: class of each sample, [samples].

    Returns:
        One weight a member; they sum to one.
    """
    rows = torch.arange(len(labels))
    likelihood = torch.stack([member[rows, labels] for member in probabilities]).double().clamp_min(1e-12)
    weights = torch.full((len(probabilities), 1), 1 / len(probabilities), dtype=torch.float64)
    for _ in range(ROUNDS):
        shares = weights * likelihood
        after = (shares / shares.sum(0)).mean(1, keepdim=True)
        if float((after - weights).abs().max()) < 1e-7:
            break
        weights = after
    return tuple(float(weight) for weight in weights[:, 0])


def _kind(output: Tensor, fusion: Fusion) -> Tensor:
    if fusion.by == "mean":
        return output
    if fusion.by == "vote":
        return torch.nn.functional.one_hot(output.argmax(-1), output.shape[-1]).to(output.dtype)
    return torch.softmax(output, -1)
