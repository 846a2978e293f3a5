"""Linear layers and 1x1 convolutions as products of two thinner ones (truncated SVD, Eckart-Young)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from exporter.compress.calling import COMPUTED, Batch, Call, is_computed, plainly
from exporter.compress.structure import LowRank, names_in_common
from exporter.errors import ModelError, closest, shorten


def factorise(
    module: nn.Module,
    *,
    rank: int | None = None,
    energy: float | None = None,
    ignore: Sequence[str] = (),
    batch: Batch | None = None,
    call: Call = plainly,
) -> tuple[nn.Module, LowRank, tuple[str, ...]]:
    """A copy whose linear layers and 1x1 convolutions are pairs, wherever that is less work.

    Args:
        module: left unchanged.
        rank: of every pair; or
        energy: share of the sum of squared singular values that each pair keeps at least.
        ignore: names of modules that are left alone, with all that is in them.
        batch: a few samples that the result is tried on: layers whose weights the model reads itself stay.
        call: runs the module on a batch.

    Returns:
        The new module, its change of architecture, and a line for each layer that was left alone.

    Raises:
        ModelError: nothing could be factorised, or `ignore` names no module.
    """
    if (rank is None) == (energy is None):
        raise ValueError("give rank or energy")
    if rank is not None and rank < 1:
        raise ValueError(f"a rank is 1 at least, and not {rank}")
    check_names(module, ignore)
    result = copy.deepcopy(module)
    ranks: dict[str, int] = {}
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    left: list[str] = []
    common = names_in_common(result)
    for name, layer in result.named_modules():
        if not name:
            continue  # The model itself cannot be replaced within itself.
        if not (reason := _unfit(layer)):
            matrix = result.get_parameter(f"{name}.weight").detach().flatten(1).double()
            u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
            chosen = min(rank, len(s)) if rank is not None else _rank_for(s, float(energy or 0))
            outputs, inputs = matrix.shape
            if any(name == one or name.startswith(f"{one}.") for one in ignore):
                reason = "ignored as asked"
            elif others := common.get(f"{name}.weight"):
                reason = f"its weight is that of {others[0]} too"
            elif chosen * (outputs + inputs) >= outputs * inputs:
                reason = f"rank {chosen} of {len(s)} is no less work"
            else:
                root = s[:chosen].sqrt()
                ranks[name] = chosen
                pairs[name] = ((root[:, None] * vh[:chosen]), (u[:, :chosen] * root))
        if reason and reason != "other":
            left.append(f"{name} left alone: {reason}")
    if batch is not None:
        for name, reason in _read_itself(module, ranks, batch, call).items():
            del ranks[name], pairs[name]
            left.append(f"{name} left alone: {reason}")
    if not ranks:
        raise ModelError(
            "no layer becomes less work at this rank" + "".join(f"\n  - {line}" for line in left[:10]),
            where='[[compress.steps]] method = "low-rank"',
            hint="lower `rank` or `energy`, or remove the step",
        )
    replace_by_pairs(result, ranks)
    for name, (down, up) in pairs.items():
        with torch.no_grad():
            for leaf, matrix in (("0", down), ("1", up)):
                weight = result.get_parameter(f"{name}.{leaf}.weight")
                weight.copy_(matrix.reshape(weight.shape))
            if getattr(module.get_submodule(name), "bias", None) is not None:
                result.get_parameter(f"{name}.1.bias").copy_(module.get_parameter(f"{name}.bias"))
    return result, LowRank(ranks=ranks), tuple(left)


def _read_itself(module: nn.Module, ranks: Mapping[str, int], batch: Batch, call: Call) -> dict[str, str]:
    """Layers that the model cannot do without, with the reason: it takes their weights instead of calling them."""

    def fault(one: nn.Module) -> str:
        try:
            call(one, batch)
        except Exception as error:
            return (
                f"the model does not run with a pair in its place: {shorten(f'{type(error).__name__}: {error}', 100)}"
            )
        return ""

    found = {}
    trial = copy.deepcopy(module).eval()
    with torch.no_grad():
        whole = copy.deepcopy(trial)
        replace_by_pairs(whole, ranks)
        if not fault(whole) or fault(trial):
            return {}  # What does not run by itself is no fault of pairs.
        for name, rank in ranks.items():
            place, _, leaf = name.rpartition(".")
            layer = trial.get_submodule(name)
            replace_by_pairs(trial, {name: rank})
            if reason := fault(trial):
                found[name] = reason
            setattr(trial.get_submodule(place), leaf, layer)
    return found


def replace_by_pairs(module: nn.Module, ranks: Mapping[str, int]) -> None:
    """Puts pairs of fresh layers in the place of layers, in place; the first keeps the stride, the second the bias.

    Raises:
        ModelError: a name is no linear layer or 1x1 convolution.
    """
    for name, rank in ranks.items():
        try:
            layer = module.get_submodule(name)
        except AttributeError:
            layer = None
        if layer is None or _unfit(layer):
            raise ModelError(
                "the factory does not make the module that was compressed",
                where=f"module {name}",
                hint="give the factory and arguments that the model was compressed with",
            )
        place, _, leaf = name.rpartition(".")
        pair = _pair(layer, rank).to(module.get_parameter(f"{name}.weight").dtype).train(layer.training)
        setattr(module.get_submodule(place), leaf, pair)


def check_names(module: nn.Module, names: Sequence[str]) -> None:
    """Holds that names are those of modules, so that none is silently without effect.

    Raises:
        ModelError: one is not; the closest is proposed.
    """
    known = [name for name, _ in module.named_modules() if name]
    if unknown := [f"'{name}'{closest(name, known)}" for name in names if name not in known]:
        raise ModelError(
            f"the model has no module {', '.join(unknown)}",
            where="[[compress.steps]] ignore",
            hint=f"its modules: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}",
        )


def _pair(layer: nn.Module, rank: int) -> nn.Sequential:
    if isinstance(layer, nn.Linear):
        return nn.Sequential(
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=layer.bias is not None),
        )
    if not isinstance(layer, nn.Conv2d):
        raise TypeError(type(layer).__name__)
    return nn.Sequential(
        nn.Conv2d(layer.in_channels, rank, 1, stride=(layer.stride[0], layer.stride[-1]), bias=False),
        nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None),
    )


def _unfit(layer: nn.Module) -> str:
    """Why a layer cannot be a pair; empty when it can, `other` when it has nothing to do with pairs."""
    if isinstance(layer, nn.Linear | nn.Conv2d) and is_computed(layer):
        return COMPUTED
    if type(layer) is nn.Linear:
        return ""
    if type(layer) is nn.Conv2d:
        if layer.kernel_size != (1, 1):
            return f"a {'x'.join(map(str, layer.kernel_size))} convolution"
        return "a grouped convolution" if layer.groups > 1 else "padded" if layer.padding not in ((0, 0), 0) else ""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        return f"a {type(layer).__name__}, which may do more than its base"
    return "other"


def _rank_for(singular: Tensor, energy: float) -> int:
    squares = singular.square()
    total = float(squares.sum())
    if not math.isfinite(total) or total == 0:
        return 1
    reached = torch.cumsum(squares, 0) / total
    return min(len(singular), int((reached < energy - 1e-12).sum()) + 1)
