"""How a module is run: the one convention of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from exporter.errors import closest

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


def first_input(given: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """What a layer is called with, as hooks are told: it may be passed by name."""
    tensor: Tensor = given[0] if given else next(iter(named.values()))
    return tensor


def learnable(module: nn.Module) -> nn.Module:
    """The module with gradients for all parameters that can have them: tables of whole numbers cannot."""
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return module


def is_computed(layer: nn.Module) -> bool:
    """Whether a layer's weight is made anew of other parameters at every run, as weight and spectral norm do."""
    return "weight" not in layer._parameters and isinstance(getattr(layer, "weight", None), Tensor)


COMPUTED = (
    "its weight is made anew of others at every run (weight or spectral norm): take that out in the factory and save "
    "the weights again"
)


def check_words(options: Any) -> None:
    """Holds that options with a closed set of words have one of them: another would act as none of them.

    Args:
        options: a dataclass with such fields.

    Raises:
        ValueError: one does not; the closest is proposed.
    """
    for name, kind in get_type_hints(type(options)).items():
        words = [str(word) for word in get_args(kind)] if get_origin(kind) is Literal else []
        if words and (given := getattr(options, name)) not in words:
            raise ValueError(f"there is no {name} '{given}'{closest(str(given), words)}: it is {', '.join(words)}")


def plainly(module: nn.Module, batch: Batch) -> Sequence[Tensor]:
    """`module(*batch)`; one tensor, or a tuple or list of tensors, comes out."""
    result = module(*batch)
    if isinstance(result, Tensor):
        return (result,)
    if isinstance(result, tuple | list) and all(isinstance(item, Tensor) for item in result):
        return result
    raise TypeError(f"the module returns {type(result).__name__}: give `call`, which makes a tuple of tensors of it")
