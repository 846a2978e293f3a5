"""Statistics of batch norms, estimated again on unlabelled inputs (REPAIR, arXiv 2211.08403)."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from exporter.compress.calling import Batch, Call, plainly
from exporter.errors import DataError


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Norms that keep statistics."""
    return [one for one in module.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]


def reestimate_norms(module: nn.Module, batches: Iterable[Batch], *, call: Call = plainly) -> nn.Module:
    """A copy whose batch norms have the mean and variance of these inputs; everything else stays in eval mode.

    The mean over batches is exact for equal batches (`momentum=None` keeps a cumulative mean).

    Args:
        module: left unchanged.
        batches: unlabelled inputs; one batch of a few samples would give poor statistics.
        call: runs the module on a batch.

    Raises:
        DataError: there are norms, and no batch of several samples to estimate them on.
    """
    result = copy.deepcopy(module).eval()
    norms = batch_norms(result)
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.training = True
    seen = 0
    with torch.no_grad():
        for batch in batches:
            if batch[0].dim() and len(batch[0]) < 2:
                continue  # A batch of one has no variance over samples.
            call(result, batch)
            seen += 1
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.training = False
    if norms and not seen:
        raise DataError(
            "batch norms cannot be estimated on single samples",
            where="[calibration]",
            why="a variance over samples needs two of them in a batch",
            hint="give more samples, or leave the batch free: `[export] batch` and the first number of shapes in "
            "[model.inputs] fix it; without norms: `norms = false` in [merge], no step `norms` in [compress]",
        )
    return result
