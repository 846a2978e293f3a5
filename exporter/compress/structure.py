"""Changes of architecture as plain data: a factory's fresh module becomes the compressed one without a pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from exporter.artifacts import Value
from exporter.errors import ModelError


class LowRank(Value, frozen=True, kw_only=True, tag="low-rank"):
    """Linear layers and 1x1 convolutions that became a pair: the rank between them, by module name."""

    ranks: dict[str, int]


class Widths(Value, frozen=True, kw_only=True, tag="widths"):
    """Layers that became narrower.

    Attributes:
        attributes: whole numbers that changed, by module name and attribute, as in `out_channels`.
        shapes: new shapes of parameters and buffers, by name.
    """

    attributes: dict[str, dict[str, int]]
    shapes: dict[str, tuple[int, ...]]


class Sparse(Value, frozen=True, kw_only=True, tag="sparse"):
    """Weights whose zeros are meant, by name: what is taught later leaves them zero."""

    weights: tuple[str, ...]


Structure = tuple[LowRank | Widths | Sparse, ...]
"""Changes in the order in which they were made."""


def read_structure(data: bytes) -> Structure:
    """Reads what `write_structure` wrote."""
    return msgspec.json.decode(data, type=Structure)


def apply_structure(module: nn.Module, structure: Structure) -> nn.Module:
    """Makes a factory's module the compressed one, in place; its new weights hold nothing useful yet.

    Raises:
        ModelError: the module lacks what was changed: the factory is another one.
    """
    for change in structure:
        if isinstance(change, Widths):
            _apply_widths(module, change)
        elif isinstance(change, LowRank):
            from exporter.compress.low_rank import replace_by_pairs

            replace_by_pairs(module, change.ranks)
    return module


def sparse_weights(module: nn.Module, structure: Structure) -> tuple[str, ...]:
    """Names of the weights whose zeros are meant, as far as later changes have left them."""
    known = {name for name, _ in module.named_parameters()}
    names = [name for change in structure if isinstance(change, Sparse) for name in change.weights]
    return tuple(name for name in dict.fromkeys(names) if name in known)


def widths_between(before: nn.Module, after: nn.Module) -> Widths:
    """What distinguishes two modules of the same class that differ in widths only."""
    attributes: dict[str, dict[str, int]] = {}
    for name, module in after.named_modules(remove_duplicate=False):
        old = vars(before.get_submodule(name))
        changed = {
            key: value
            for key, value in vars(module).items()
            if type(value) is int and type(old.get(key)) is int and old[key] != value
        }
        # LayerNorm keeps its width as a tuple.
        for key, value in vars(module).items():
            if isinstance(value, tuple) and len(value) == 1 and type(value[0]) is int and old.get(key) != value:
                changed[key] = value[0]
        if changed:
            attributes[name] = changed
    old_shapes = {name: tuple(tensor.shape) for name, tensor in _tensors(before).items()}
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in _tensors(after).items()
        if tuple(tensor.shape) != old_shapes[name]
    }
    return Widths(attributes=attributes, shapes=shapes)


def names_in_common(module: nn.Module) -> dict[str, list[str]]:
    """For each parameter that has several names the others of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: [one for one in all_ if one != name] for all_ in names.values() if all_[1:] for name in all_}


def tie(module: nn.Module, common: Mapping[str, Sequence[str]]) -> nn.Module:
    """Makes parameters one again, in place, that were one before each was cut for itself, where they still agree.

    Args:
        module: after the cuts.
        common: names in common before them.
    """
    for name, others in common.items():
        for other in others:
            one, twin = module.get_parameter(name), module.get_parameter(other)
            if one is not twin and one.shape == twin.shape and torch.equal(one, twin):
                place, _, leaf = other.rpartition(".")
                setattr(module.get_submodule(place), leaf, one)
    return module


def _apply_widths(module: nn.Module, widths: Widths) -> None:
    common = names_in_common(module)
    for name, changed in widths.attributes.items():
        owner = _submodule(module, name)
        for key, value in changed.items():
            old = getattr(owner, key, None)
            if type(old) is not int and not isinstance(old, tuple):
                raise _other_factory(f"{name}.{key}")
            setattr(owner, key, (value,) if isinstance(old, tuple) else value)
    tensors = _tensors(module)
    for name, shape in widths.shapes.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dim() != len(shape) or any(new > old for new, old in zip(shape, tensor.shape)):  # noqa: B905
            raise _other_factory(name)
        narrowed = tensor.detach()[tuple(slice(size) for size in shape)].clone()
        place, _, leaf = name.rpartition(".")
        owner = _submodule(module, place)
        if isinstance(tensor, nn.Parameter):
            setattr(owner, leaf, nn.Parameter(narrowed, requires_grad=tensor.requires_grad))
        else:
            setattr(owner, leaf, narrowed)
    tie(module, common)


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise _other_factory(name) from error


def _other_factory(name: str) -> ModelError:
    return ModelError(
        "the factory does not make the module that was compressed",
        where=f"module {name}",
        hint="give the factory and arguments that the model was compressed with",
    )


def _tensors(module: nn.Module) -> Mapping[str, Tensor]:
    found: dict[str, Any] = dict(module.named_parameters(remove_duplicate=False))
    return found | dict(module.named_buffers(remove_duplicate=False))
