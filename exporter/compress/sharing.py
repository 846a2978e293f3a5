"""What members of a stack have in common: equal weights, which a file keeps once."""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import nn

from exporter.errors import ModelError

FEW = 0.05
"""A share of equal weights that is by chance, as the ones of norms are."""


def kept_once(module: nn.Module) -> dict[tuple[str, tuple[int, ...]], int]:
    """Values of all parameters by content and shape: several equal ones are one entry."""
    found = {}
    for tensor in module.parameters():
        data = tensor.detach().cpu().contiguous()
        digest = sha256(data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest() if data.numel() else ""
        found[digest, tuple(tensor.shape)] = tensor.numel()
    return found


def check_sharing(before: nn.Module, after: nn.Module, where: str) -> tuple[str, ...]:
    """What became of weights that members share, which are computed and kept once as long as they are equal.

    Returns:
        A line for the user where members share less than they did.

    Raises:
        ModelError: so much less that the file becomes larger.
    """
    whole, found = sum(tensor.numel() for tensor in before.parameters()), kept_once(before)
    once = sum(found.values())
    if once > (1 - FEW) * whole:
        return ()
    found_after = kept_once(after)
    if len(list(after.parameters())) - len(found_after) >= len(list(before.parameters())) - len(found):
        return ()
    whole_after, once_after = sum(tensor.numel() for tensor in after.parameters()), sum(found_after.values())
    if once_after > once:
        raise ModelError(
            "what the members share would be changed in each of them apart: the file would become larger",
            where=where,
            why=f"equal weights are computed and kept once: {once:,} values before, {once_after:,} after",
            hint="compress the trunk before heads are trained on it, or use steps that change equal layers alike: "
            "norms, low-rank, prune-weights by magnitude or activation",
        )
    return (
        f"the members share less than before: of {whole:,} values a file kept {once:,}, of {whole_after:,} it keeps "
        f"{once_after:,} now",
    )
