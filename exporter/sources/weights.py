"""Weights into a module: read without running code, compared completely, then loaded, all or nothing."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import ModelError, closest, shorten

if TYPE_CHECKING:
    import torch
    from torch import nn

SAFETENSORS = (".safetensors",)
TORCH = (".pt", ".pth", ".bin", ".ckpt")
MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format itself."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_SHOWN = 10


def load_weights(module: nn.Module, path: Path, *, allow_pickle: bool) -> None:
    """Loads a state dict into a module; element types stay the module's.

    Raises:
        ModelError: the file cannot be read, would run code, or its keys or shapes are not the module's. The
            module is then unchanged.
    """
    state = read_state(path, allow_pickle=allow_pickle)
    _compare(module, state, path)
    meta = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
    try:
        # Keys were compared above; tied parameters may be stored once only, which `strict` would refuse.
        module.load_state_dict(dict(state), strict=False, assign=bool(meta))
    except Exception as error:
        raise ModelError("the weights cannot be loaded", where=str(path), why=shorten(error)) from error


def read_state(path: Path, *, allow_pickle: bool) -> Mapping[str, torch.Tensor]:
    """Reads a state dict.

    Raises:
        ModelError: the file cannot be read, would run code, or holds no state dict.
    """
    if not path.is_file():
        raise ModelError("the weights file does not exist", where=str(path))
    suffix = path.suffix.lower()
    if suffix in SAFETENSORS:
        return _read_safetensors(path)
    if suffix in TORCH:
        return _read_torch(path, allow_pickle)
    raise ModelError(
        f"weights in a '{suffix}' file cannot be read",
        where=str(path),
        hint=f"save a state dict as one of {', '.join(SAFETENSORS + TORCH)}",
    )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > MAX_HEADER or 8 + length > size:
        raise ModelError(
            "the weights file is not a safetensors file, or is damaged",
            where=str(path),
            why=f"it says that its header has {length} bytes; the file has {size}",
            hint="copy or save the file again",
        )
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise ModelError(
            "the weights file is damaged", where=str(path), why=shorten(error), hint="copy or save the file again"
        ) from error


def _read_torch(path: Path, allow_pickle: bool) -> Mapping[str, torch.Tensor]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on pickle protocols, which the error covers
            found: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not allow_pickle:
            raise pickle_refused(path, error) from error
        found = _unpickle(path)
    except Exception as error:
        raise ModelError(
            "the weights file cannot be read",
            where=str(path),
            why=shorten(error),
            hint="save a state dict: `torch.save(model.state_dict(), path)`",
        ) from error
    return _state_dict(found, path)


def pickle_refused(path: Path, error: object, part: str = "the file") -> ModelError:
    """The error for a pickle that holds more than tensors, naming what it would have called."""
    offender = re.search(r"GLOBAL\s+(\S+)|Trying to call reduce for unrecognized function\s+(.+?)\s*$|"
                         r"Can only build .*? got <class '([^']+)'>", str(error), re.MULTILINE)  # fmt: skip
    named = next((group for group in offender.groups() if group), None) if offender else None
    return ModelError(
        f"pickle refused: {part} would run code when it is read" + (f" ({named})" if named else ""),
        where=str(path),
        why=_torch_words(error),
        hint="save weights as .safetensors, or as a plain state dict; if you trust this file, pass "
        "`--allow-pickle` or set `[model] allow_pickle = true`",
    )


def _torch_words(error: object) -> str:
    """The sentence of torch that names the fault; its advice on weights_only=False is left out."""
    text = str(error)
    _, mark, rest = text.partition("WeightsUnpickler error:")
    line = (rest if mark else text).strip().splitlines()
    return shorten(re.split(r"(?<=\.) Please use", line[0])[0] if line else "the pickle is not plain data", 200)


def _unpickle(path: Path) -> object:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch repeats that pickles run code; the user has just allowed it
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ModelError(
            f"the pickle cannot be read: {type(error).__name__}", where=str(path), why=shorten(error)
        ) from error


def _state_dict(found: object, path: Path) -> Mapping[str, torch.Tensor]:
    import torch

    if isinstance(found, torch.nn.Module):
        return found.state_dict()
    if isinstance(found, Mapping) and not all(isinstance(value, torch.Tensor) for value in found.values()):
        for name in _WRAPPERS:
            inner = found.get(name)
            if isinstance(inner, torch.nn.Module):
                return inner.state_dict()
            if isinstance(inner, Mapping):
                found = inner
                break
    if not isinstance(found, Mapping):
        raise ModelError(
            f"the weights file holds no state dict but a {type(found).__qualname__}",
            where=str(path),
            hint="save one: `torch.save(model.state_dict(), path)`",
        )
    odd = [
        str(key)
        for key, value in found.items()
        if not isinstance(key, str)
        or not (isinstance(value, torch.Tensor) or key.rpartition(".")[2] == "_extra_state")
    ]
    if odd:
        raise ModelError(
            f"the weights file holds more than tensors: {_some(odd)}",
            where=str(path),
            hint=f"save only the state dict, or put it under one of the keys {', '.join(_WRAPPERS)}",
        )
    return found


def _compare(module: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    own = module.state_dict()
    given = [name for name in own if name in state]
    places = {_place(own[name]) for name in given} - {None}
    missing = [name for name in own if name not in state and _place(own[name]) not in places]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name}: {_shape(state[name])} in the file, {_shape(own[name])} in the model"
        for name in given
        if _is_tensor(own[name]) and _shape(state[name]) != _shape(own[name])
    ]
    kinds = [
        f"{name}: {state[name].dtype} in the file, {own[name].dtype} in the model"
        for name in given
        if _is_tensor(own[name]) and state[name].is_floating_point() != own[name].is_floating_point()
    ]
    if not (missing or unexpected or shapes or kinds):
        return
    faults = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (
            ("missing in the file", missing),
            ("unknown to the model", [f"{name}{closest(name, missing)}" for name in unexpected]),
            ("of another shape", shapes),
            ("of another type", kinds),
        )
        if names
    ]
    raise ModelError(
        "the weights are not this model's" + "".join(f"\n  - {fault}" for fault in faults),
        where=str(path),
        hint=_prefix_hint(list(own), list(state))
        or "check the factory's arguments ([model] args) and that the weights are of the same architecture",
    )


def _prefix_hint(own: Sequence[str], given: Sequence[str]) -> str | None:
    """Says so when the keys would fit but for a prefix on one side."""
    for names, others, side in ((given, own, "file"), (own, given, "model")):
        firsts = Counter(name.partition(".")[0] for name in names if "." in name)
        if not firsts:
            continue
        prefix = firsts.most_common(1)[0][0] + "."
        fitting = sum(name.removeprefix(prefix) in set(others) for name in names if name.startswith(prefix))
        if fitting <= max(sum(name in set(others) for name in names), len(names) // 2):
            continue
        maker = {"module.": " (DataParallel writes it)", "_orig_mod.": " (torch.compile writes it)"}.get(prefix, "")
        if side == "file":
            return (
                f"the keys in the file begin with '{prefix}'{maker}: save them without it, "
                f"`{{k.removeprefix('{prefix}'): v for k, v in state.items()}}`"
            )
        return f"the keys in the model begin with '{prefix}', those in the file do not: return the inner module"
    return None


def _place(tensor: object) -> tuple[int, tuple[int, ...]] | None:
    """Identity of a parameter's memory; tied parameters share it."""
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.data_ptr() == 0:
        return None
    return tensor.data_ptr(), tuple(tensor.shape)


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _shape(tensor: torch.Tensor) -> list[int]:
    return list(tensor.shape)


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
