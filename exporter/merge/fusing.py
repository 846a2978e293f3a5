"""Outputs of several models into one, inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import Literal

import torch
from torch import Tensor, nn

from exporter.artifacts import Value
from exporter.errors import ModelError

By = Literal["mean", "probabilities", "vote", "max", "learned"]
FILL = -1e4
"""A logit that softmax makes zero, at any temperature that is used."""
ROUNDS = 500
LARGEST_COUNT = 2048
"""Up to here float16 has every whole number."""


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

    def shares(self) -> tuple[tuple[float, ...], float]:
        """What each member is multiplied by, and what their sum is then multiplied by.

        Votes are counted in whole numbers, which sums keep: a tie is one, whatever the weights.
        """
        if self.by != "vote":
            return tuple(weight / sum(self.weights) for weight in self.weights), 1.0
        exact = [Fraction(repr(float(weight))) for weight in self.weights]
        whole = lcm(*(weight.denominator for weight in exact))
        counts = [float(weight * whole) for weight in exact]
        if sum(counts) > LARGEST_COUNT:
            return tuple(weight / sum(self.weights) for weight in self.weights), 1.0
        return tuple(counts), 1 / sum(counts)


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
        if not output.is_floating_point():
            raise no_numbers(str(output.dtype).removeprefix("torch."))
        places = fusion.places(index)
        axis = -1 if fusion.by == "mean" else class_axis(output.shape, lone=bool(places))
        own = _kind(output, fusion, axis)
        parts.append(placed(own, places, len(fusion.classes[index]), 0.0, axis) if places else own)
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
    shares, scale = fusion.shares()
    result = parts[0] * shares[0]
    for part, share in zip(parts[1:], shares[1:], strict=True):
        result = result + part * share
    return result * scale if scale != 1 else result


def class_axis(
    shape: Sequence[object], *, where: str = "[merge] by", instead: str = '`by = "mean"`', lone: bool = False
) -> int:
    """The axis that classes stand on: the last of [N, C] and [N, T, C], the second of [N, C, H, W].

    Args:
        shape: of an output, the batch first.
        where: said when there are no classes.
        instead: what to take then.
        lone: one class alone is meant: it has a place among others.

    Raises:
        ModelError: there is no such axis, or it has one place: a softmax over it says nothing.
    """
    axis = 1 if len(shape) > 3 else len(shape) - 1
    if axis < 1 or (shape[axis] == 1 and not lone):
        raise ModelError(
            "an output tells no classes apart, and a softmax over it says nothing",
            where=where,
            why=f"its shape is [{', '.join(map(str, shape))}]",
            hint=f"take {instead}",
        )
    return axis


def no_numbers(kind: str) -> ModelError:
    """Why classes that a model has already chosen are not fused."""
    return ModelError(
        f"outputs of {kind} cannot be fused: they are no numbers that have a mean, nor logits",
        where="[[merge.models]]",
        hint='let forward() return the logits that they are chosen by, or keep them apart (`method = "stack"`)',
    )


def placed(values: Tensor, places: Sequence[int], count: int, fill: float, axis: int = -1) -> Tensor:
    """Columns of a member's classes at their places among all classes; the others hold `fill`.

    Args:
        values: [..., count].
        places: see `Fusion.places`.
        count: of classes that the member knows.
        fill: for classes that it does not know.
        axis: that its classes stand on.

    Raises:
        ModelError: the member has another number of outputs.
    """
    if values.shape[axis] != count:
        raise ModelError(
            f"a model with {values.shape[axis]} outputs was given {count} classes", where="[[merge.models]] classes"
        )
    missing = torch.full_like(values.narrow(axis, 0, 1), fill)
    places_of = torch.tensor(list(places), device=values.device)
    return torch.cat([values, missing], axis).index_select(axis, places_of)


class Teacher(nn.Module):
    """A teacher whose logits stand at their classes' places among all; a class it does not know has no chance."""

    def __init__(self, inner: nn.Module, classes: Sequence[int], total: int) -> None:
        super().__init__()
        self.inner = inner
        known = tuple(classes)
        self.count = len(known)
        self.places = Fusion(by="mean", weights=(1.0,), classes=(known,), total=total).places(0)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the teacher; gives its outputs, with all classes where it was told which it knows."""
        outputs = self.inner(*tensors)
        if not self.places:
            return tuple(outputs)
        return tuple(
            placed(output, self.places, self.count, FILL, class_axis(output.shape, lone=True))
            if output.is_floating_point()
            else output
            for output in outputs
        )


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


def _kind(output: Tensor, fusion: Fusion, axis: int) -> Tensor:
    if fusion.by == "mean":
        return output
    if fusion.by == "vote":
        chosen = torch.nn.functional.one_hot(output.argmax(axis), output.shape[axis])
        return chosen.movedim(-1, axis).to(output.dtype)
    return torch.softmax(output, axis)
