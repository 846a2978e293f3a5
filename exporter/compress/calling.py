"""How a module is run: the one convention of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

Batch = tuple[Tensor, ...]
"""Tensors of one batch in the order of the model's inputs; axis 0 is the sample's."""

Batches = Callable[[], Iterator[Batch]]
"""One pass over the inputs each time it is called."""

Call = Callable[[nn.Module, Batch], Sequence[Tensor]]
"""Runs a module on a batch; gives its outputs in order."""


def as_batch(batch: Batch | Tensor) -> Batch:
    """A batch as it was given.

    Raises:
        TypeError: it is a bare tensor, whose samples would pass for inputs.
    """
    if isinstance(batch, Tensor):
        raise TypeError("a batch is a tuple of tensors, one for each input, and not a tensor: give `(tensor,)`")
    return batch


def plainly(module: nn.Module, batch: Batch) -> Sequence[Tensor]:
    """`module(*batch)`; one tensor, or a tuple or list of tensors, comes out."""
    result = module(*batch)
    if isinstance(result, Tensor):
        return (result,)
    if isinstance(result, tuple | list) and all(isinstance(item, Tensor) for item in result):
        return result
    raise TypeError(f"the module returns {type(result).__name__}: give `call`, which makes a tuple of tensors of it")
