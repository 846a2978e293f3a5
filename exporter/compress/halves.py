"""Weights in half precision learn by copies in float32: small steps and squares of gradients get lost in halves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

HALVES = (torch.float16, torch.bfloat16)


class Learned:
    """A module's parameters as an optimizer is to have them.

    Attributes:
        parameters: the module's own, or the copies of those that are halves.
    """

    def __init__(self, module: nn.Module) -> None:
        self._pairs = [
            (one, one.detach().float().requires_grad_(one.requires_grad))
            for one in module.parameters()
            if one.dtype in HALVES
        ]
        copies = {id(one): copy for one, copy in self._pairs}
        self.parameters: list[Tensor] = [copies.get(id(one), one) for one in module.parameters()]

    def take_gradients(self) -> None:
        """Moves gradients to the copies, before a step."""
        for one, copy in self._pairs:
            copy.grad = None if one.grad is None else one.grad.float()
            one.grad = None

    def give_values(self) -> None:
        """Rounds the copies into the module, after a step."""
        with torch.no_grad():
            for one, copy in self._pairs:
                one.copy_(copy)

    def state(self) -> list[Tensor]:
        """The copies' values."""
        return [copy.detach() for _, copy in self._pairs]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Takes up values that `state` gave."""
        with torch.no_grad():
            for (_, copy), value in zip(self._pairs, state, strict=True):
                copy.copy_(value)
