"""What members of a stack have in common: equal weights, which a file keeps once."""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import nn

from exporter.errors import ModelError

FEW = 0.05
"""A share of equal weights that is by chance, as the ones of norms are."""


def tie_members(members: nn.Module) -> int:
    """Makes one module of those that members have alike, at the same place, so that a step changes it once.

    Args:
        members: has the members as its children; changed in place, and computes the same.

    Returns:
        How many modules became another's.
    """
    children = list(members.children())
    return sum(_tie(one, other) for index, one in enumerate(children) for other in children[index + 1 :])


def _tie(one: nn.Module, other: nn.Module) -> int:
    twins = {name: getattr(other, name, None) for name, _ in one.named_children()}
    alike = {
        name: child
        for name, child in one.named_children()
        if isinstance(twin := twins[name], nn.Module) and _equal(child, twin)
    }
    if not any(tensor.dim() > 1 for child in alike.values() for tensor in child.parameters()):
        alike = {}  # Norms that nobody trained are alike in models that have nothing to do with each other.
    count = 0
    for name, child in one.named_children():
        twin = twins[name]
        if name in alike and twin is not child:
            setattr(other, name, child)
            count += 1
        elif isinstance(twin, nn.Module) and twin is not child:
            count += _tie(child, twin)
    return count


def _kind(module: nn.Module) -> tuple[str, str]:
    """Which class it is of; a factory's file makes its classes anew for each member."""
    return type(module).__module__, type(module).__qualname__


def _equal(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return (
        bool(left)
        and _kind(one) == _kind(other)
        and repr(one) == repr(other)
        and list(left) == list(right)
        and all(torch.equal(left[name], right[name]) for name in left if isinstance(left[name], torch.Tensor))
    )


def kept_once(module: nn.Module) -> dict[tuple[str, tuple[int, ...]], int]:
    """Values of all parameters by content and shape: several equal ones are one entry."""
    found = {}
    for tensor in all_of(module):
        data = tensor.detach().cpu().contiguous()
        digest = sha256(data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest() if data.numel() else ""
        found[digest, tuple(tensor.shape)] = tensor.numel()
    return found


def all_of(module: nn.Module) -> list[torch.Tensor]:
    """Parameters by all their names: those that are one already count as often as those that are only equal."""
    return [tensor for _, tensor in module.named_parameters(remove_duplicate=False)]


def check_sharing(before: nn.Module, after: nn.Module, where: str) -> tuple[str, ...]:
    """What became of weights that members share, which are computed and kept once as long as they are equal.

    Returns:
        A line for the user where members share less than they did.

    Raises:
        ModelError: so much less that the file becomes larger.
    """
    whole, found = sum(tensor.numel() for tensor in all_of(before)), kept_once(before)
    once = sum(found.values())
    if once > (1 - FEW) * whole:
        return ()
    found_after = kept_once(after)
    if len(all_of(after)) - len(found_after) >= len(all_of(before)) - len(found):
        return ()
    whole_after, once_after = sum(tensor.numel() for tensor in all_of(after)), sum(found_after.values())
    if once_after > once:
        raise ModelError(
            "what the members share would be changed in each of them apart: the file would become larger",
            where=where,
            why=f"equal weights are computed and kept once: {once:,} values before, {once_after:,} after",
            hint='compress what is stacked (`order = "merge-first"`), where equal layers change as one, or the trunk '
            "before heads are trained on it",
        )
    return (
        f"the members share less than before: of {whole:,} values a file kept {once:,}, of {whole_after:,} it keeps "
        f"{once_after:,} now",
    )
