"""State dicts read one tensor at a time, and whether they belong to one architecture."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from exporter.errors import ModelError, closest, shorten

SHOWN = 8
SHARED_BASE = 1.0
"""Two models that are further apart than they are long (a cosine below 1/2) were not fine-tuned from one base."""


class State(Protocol):
    """What merging needs of a state dict: names, and one tensor at a time."""

    def names(self) -> Sequence[str]:
        """Names of the tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def get(self, name: str) -> Tensor:
        """A tensor."""


class LoadedState:
    """A state dict in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> Sequence[str]:
        """Names of the tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def get(self, name: str) -> Tensor:
        """A tensor."""
        return self._tensors[name].detach().cpu()


def as_state(state: State | Mapping[str, Tensor]) -> State:
    """A state dict as what merging reads; what is that already stays."""
    return LoadedState(state) if isinstance(state, Mapping) else state


class _FileState:
    """A .safetensors file that stays on disk."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def names(self) -> Sequence[str]:
        return list(self._handle.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle.get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor


@contextmanager
def open_states(paths: Sequence[Path]) -> Iterator[list[State]]:
    """Opens .safetensors files without reading their tensors.

    Raises:
        ModelError: a file is damaged.
    """
    from safetensors import safe_open

    with ExitStack() as stack:
        states: list[State] = []
        for path in paths:
            try:
                handle = stack.enter_context(safe_open(path, framework="pt"))
            except Exception as error:
                raise ModelError("the weights file is damaged", where=str(path), why=shorten(error)) from error
            states.append(_FileState(handle))
        yield states


def check_alike(states: Mapping[str, State]) -> None:
    """Holds that all states have the same tensors with the same shapes.

    Raises:
        ModelError: names, for each model that differs from the first, what is missing, unknown or of another shape.
    """
    (first, own), *others = states.items()
    names = list(own.names())
    faults: list[str] = []
    for label, state in others:
        given = set(state.names())
        missing = [name for name in names if name not in given]
        unknown = [f"{name}{closest(name, missing)}" for name in state.names() if name not in set(names)]
        shapes = [
            f"{name} {list(state.shape(name))} instead of {list(own.shape(name))}"
            for name in names
            if name in given and state.shape(name) != own.shape(name)
        ]
        for what, found in (("lacks", missing), ("has besides", unknown), ("has other shapes:", shapes)):
            if found:
                more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
                faults.append(f"'{label}' {what} {', '.join(found[:SHOWN])}{more}")
    if faults:
        raise ModelError(
            f"the models are not of one architecture: compared with '{first}'"
            + "".join(f"\n  - {fault}" for fault in faults),
            where="[[merge.models]]",
            hint="weights can be merged only where every tensor has its counterpart of the same shape",
        )


def distances(states: Mapping[str, State], among: Collection[str] | None = None) -> dict[tuple[str, str], float]:
    """How far models are from each other: |a - b| / sqrt(|a| |b|) over all weights of two or more axes.

    Fine-tunes of one base are near 0; independently trained models are near sqrt(2).

    Args:
        states: the models.
        among: names of what is learned; tables and masks, which all models have alike, would make them look related.
    """
    labels = list(states)
    squares = dict.fromkeys(labels, 0.0)
    between = {(a, b): 0.0 for index, a in enumerate(labels) for b in labels[index + 1 :]}
    for name in next(iter(states.values())).names():
        if len(next(iter(states.values())).shape(name)) < 2 or (among is not None and name not in among):
            continue  # Norms' scales and biases begin alike in every model.
        tensors = {label: state.get(name) for label, state in states.items()}
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            continue
        tensors = {label: tensor.double() for label, tensor in tensors.items()}
        for label, tensor in tensors.items():
            squares[label] += float(tensor.square().sum())
        for a, b in between:
            between[a, b] += float((tensors[a] - tensors[b]).square().sum())
    return {
        (a, b): (square**0.5 / max((squares[a] * squares[b]) ** 0.25, 1e-30)) for (a, b), square in between.items()
    }


def strangers(states: Mapping[str, State], among: Collection[str] | None = None) -> list[tuple[str, str, float]]:
    """Pairs that cannot have been fine-tuned from one base, with their distance; see `distances`."""
    return [(a, b, far) for (a, b), far in distances(states, among).items() if far > SHARED_BASE]


class TiedState:
    """A state with the names that its file left out because their tensors are other names' as well."""

    def __init__(self, state: State, groups: Sequence[Sequence[str]]) -> None:
        own = set(state.names())
        self._state = state
        self._from = {
            name: next(other for other in group if other in own)
            for group in groups
            if any(other in own for other in group)
            for name in group
            if name not in own
        }

    def names(self) -> Sequence[str]:
        """Names of the tensors."""
        return [*self._state.names(), *self._from]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._state.shape(self._from.get(name, name))

    def get(self, name: str) -> Tensor:
        """A tensor."""
        return self._state.get(self._from.get(name, name))


def tied_names(module: nn.Module) -> list[tuple[str, ...]]:
    """Names in a module's state dict that are one tensor."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.numel():
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            groups.setdefault(place, []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def check_finite(name: str, label: str, tensor: Tensor) -> Tensor:
    """The tensor, when all of its values are finite.

    Raises:
        ModelError: names the model and the tensor.
    """
    if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
        broken = int((~torch.isfinite(tensor)).sum())
        raise ModelError(
            f"'{label}' holds {broken} NaN or infinite values: merging would spread them",
            where=f"tensor {name}",
            hint="train that model again, or leave it out",
        )
    return tensor
