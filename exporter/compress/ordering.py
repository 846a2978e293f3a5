"""Outputs of one model in the order of another's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Ordered(nn.Module):
    """Runs a module that gives a tuple, and gives it in another order."""

    def __init__(self, inner: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.inner, self.order = inner, tuple(order)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The module's outputs, the first being the one that `order` names first."""
        outputs = self.inner(*tensors)
        return tuple(outputs[index] for index in self.order)


def order_by_name(own: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Where outputs stand that are wanted in some order; () where they do, or where the names are others."""
    if list(own) == list(wanted) or sorted(own) != sorted(wanted) or len(set(own)) < len(own):
        return ()
    return tuple(list(own).index(name) for name in wanted)
