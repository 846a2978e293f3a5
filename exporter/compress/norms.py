"""Statistics of batch norms, estimated again on unlabelled inputs (REPAIR, arXiv 2211.08403)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from exporter.compress.calling import Batch, Call, as_batch, first_input, plainly
from exporter.errors import DataError

AT_ONCE = 1 << 30
"""Bytes of inputs that are held at once, to be mixed."""


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Norms that keep statistics."""
    return [one for one in module.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]


def reestimate_norms(module: nn.Module, batches: Iterable[Batch], *, call: Call = plainly) -> nn.Module:
    """A copy whose batch norms have the mean and variance of these inputs; everything else stays in eval mode.

    Samples are mixed first, so that data sorted by class are as any other: each batch is normalised by its own
    statistics on the way to deeper norms. Not where batches have different shapes, nor beyond 1 GiB of inputs.
    Means and variances are those of all values.

    Args:
        module: left unchanged.
        batches: unlabelled inputs; one batch of a few samples would give poor statistics.
        call: runs the module on a batch.

    Raises:
        DataError: there are norms, and no batch of several samples to estimate them on.
    """
    result = copy.deepcopy(module).eval()
    norms = batch_norms(result)
    if not norms:
        return result
    seen = {id(norm): _Seen() for norm in norms}
    hooks = [norm.register_forward_pre_hook(seen[id(norm)].add, with_kwargs=True) for norm in norms]
    for norm in norms:
        norm.training = True
    with torch.no_grad():
        run = 0
        # A batch of one has no variance over samples.
        for batch in _mixed(batch for batch in batches if not as_batch(batch)[0].dim() or len(batch[0]) > 1):
            call(result, batch)
            run += 1
        for hook in hooks:
            hook.remove()
        for norm in norms:
            norm.training = False
            seen[id(norm)].put_into(norm)
    if not run:
        raise DataError(
            "batch norms cannot be estimated on single samples",
            where="[calibration]",
            why="a variance over samples needs two of them in a batch",
            hint="give more samples, or leave the batch free: `[export] batch` and the first number of shapes in "
            "[model.inputs] fix it; without norms: `norms = false` in [merge], no step `norms` in [compress]",
        )
    return result


class _Seen:
    """Sums over all values that a norm was given, by channel."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(1, dtype=torch.float64)

    def add(self, norm: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Counts what the norm is about to normalise (Chan 1979, which loses no digits where means are large)."""
        del norm
        values = first_input(inputs, named).detach().transpose(0, 1).flatten(1).double()
        count, mean = values.shape[1], values.mean(1)
        whole = self.count + count
        apart = mean - self.mean
        self.squares = (
            self.squares + (values - mean[:, None]).square().sum(1) + apart.square() * self.count * count / whole
        )
        self.mean = self.mean + apart * count / whole
        self.count = whole

    def put_into(self, norm: _BatchNorm) -> None:
        """Sets the norm's statistics; a norm that never ran keeps its own."""
        if self.count > 1 and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(self.mean)
            norm.running_var.copy_(self.squares / (self.count - 1))


def _mixed(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The samples of all batches in any order, in batches as large as those; as given where that cannot be."""
    remaining, taken, held = iter(batches), [], 0
    for batch in remaining:
        taken.append(batch)
        held += sum(tensor.nbytes for tensor in batch)
        if held > AT_ONCE:
            break
    shapes = {tuple((tensor.shape[1:], tensor.dtype) for tensor in batch) for batch in taken}
    even = all(tensor.dim() and len(tensor) == len(batch[0]) for batch in taken for tensor in batch)
    if held > AT_ONCE or len(shapes) != 1 or not even:
        yield from taken
        yield from remaining
        return
    sizes = [len(batch[0]) for batch in taken]
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(0))
    whole = tuple(torch.cat(tensors) for tensors in zip(*taken, strict=True))
    for chosen in order.tensor_split(math.ceil(len(order) / max(sizes))):
        yield tuple(tensor[chosen] for tensor in whole)
