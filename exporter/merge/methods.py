"""How one tensor is merged out of its counterparts in several models. All of them work in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PARALLEL = 0.9995
"""Cosine above which a great circle is a straight line, as far as float32 can tell."""
TINY = 1e-6
"""Share of a tensor's mean importance that is added to each, so that values that matter to no model are averaged."""
SHRINK = 0.9


def average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted mean (model soups, arXiv 2203.05482); weights need not sum to one."""
    total = sum(weights)
    merged = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        merged += tensor * (weight / total)
    return merged


def slerp(first: Tensor, second: Tensor, position: float) -> Tensor:
    """Goes along the great circle between two tensors, taken as vectors (Shoemake 1985), and keeps lengths.

    Args:
        first: where position 0 is.
        second: where position 1 is.
        position: between 0 and 1.
    """
    # Lengths of masks of the smallest float have no place in float32.
    left, right = first.flatten().double(), second.flatten().double()
    norms = float(left.norm() * right.norm())
    cosine = float(left @ right) / norms if norms > 0 else 1.0
    if abs(cosine) > PARALLEL:
        return torch.lerp(first, second, position)
    angle = math.acos(cosine)
    shares = math.sin((1 - position) * angle) / math.sin(angle), math.sin(position * angle) / math.sin(angle)
    return shares[0] * first + shares[1] * second


def task_arithmetic(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], scale: float) -> Tensor:
    """Base + scale * sum of weighted task vectors (arXiv 2212.04089)."""
    merged = base.clone()
    for tensor, weight in zip(tensors, weights, strict=True):
        merged += scale * weight * (tensor - base)
    return merged


def ties(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], scale: float, density: float) -> Tensor:
    """Trim, elect a sign, and take the mean of those that agree (TIES, arXiv 2306.01708).

    Trimming keeps the share `density` of largest magnitude in each task vector, tensor by tensor.
    """
    vectors = torch.stack([_trimmed(tensor - base, density) for tensor in tensors])
    shares = torch.tensor(weights, dtype=vectors.dtype).reshape(-1, *[1] * base.dim())
    elected = (vectors * shares).sum(0).sign()
    agree = (vectors.sign() == elected) & (vectors != 0)
    counted = (agree * shares).sum(0)
    return base + scale * (vectors * shares * agree).sum(0) / torch.where(counted > 0, counted, 1.0)


def dare(
    base: Tensor,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    scale: float,
    drop: float,
    random: torch.Generator,
) -> Tensor:
    """Task arithmetic on task vectors of which a random share is dropped, the rest rescaled (arXiv 2311.03099)."""
    merged = base.clone()
    for tensor, weight in zip(tensors, weights, strict=True):
        kept = torch.rand(base.shape, generator=random) >= drop
        merged += scale * weight * (tensor - base) * kept / (1 - drop)
    return merged


def fisher(tensors: Sequence[Tensor], importances: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Mean weighted by how much each value matters to each model (Fisher merging, arXiv 2111.09832).

    Args:
        tensors: counterparts.
        importances: the diagonal of each model's Fisher information, of the same shape.
        weights: one a model.
    """
    # Squared gradients may be as small as they like: what counts is how large they are beside each other.
    scale = max((float(importance.double().mean()) for importance in importances), default=0.0)
    if not scale > 0:
        return average(tensors, weights)
    above, below = torch.zeros_like(tensors[0]).double(), torch.zeros_like(tensors[0]).double()
    for tensor, importance, weight in zip(tensors, importances, weights, strict=True):
        share = weight * (importance.double() / scale + TINY)
        above += share * tensor
        below += share
    return (above / below).to(tensors[0].dtype)


def regmean(tensors: Sequence[Tensor], grams: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The layer that answers most like each model's own on what that model sees (RegMean, arXiv 2212.09849).

    Args:
        tensors: weights [outputs, ...inputs].
        grams: [inputs, inputs] of each model.
        weights: one a model.
    """
    above: Tensor | float = 0.0
    below: Tensor | float = 0.0
    for tensor, gram, weight in zip(tensors, grams, weights, strict=True):
        inner = gram.double()
        # Off the diagonal shrunk, as the paper does: the products of few samples are no good estimate.
        inner = weight * (SHRINK * inner + (1 - SHRINK) * torch.diag(inner.diagonal()))
        above = above + inner @ tensor.reshape(len(tensor), -1).double().T
        below = below + inner
    assert isinstance(below, Tensor)
    ridge = 1e-6 * below.diagonal().mean().clamp_min(1e-12)
    solved: Tensor = torch.linalg.solve(below + ridge * torch.eye(len(below), dtype=below.dtype), above)
    return solved.T.reshape(tensors[0].shape).to(tensors[0].dtype)


def statistics(
    means: Sequence[Tensor], variances: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the mixture of what the models saw: the means' own spread is part of its variance."""
    mean = average(means, weights)
    second = average([variance + mean.square() for mean, variance in zip(means, variances, strict=True)], weights)
    return mean, (second - mean.square()).clamp_min(0)


def _trimmed(vector: Tensor, density: float) -> Tensor:
    keep = max(1, round(density * vector.numel()))
    if keep >= vector.numel():
        return vector
    chosen = vector.abs().flatten().topk(keep).indices
    mask = torch.zeros(vector.numel(), dtype=torch.bool)
    mask[chosen] = True
    return vector * mask.reshape(vector.shape)
