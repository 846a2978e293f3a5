"""`method = "prune-channels"` and `method = "prune-weights"`: what they cost, measured where the plan asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from exporter.pipeline.making import Bench, Made
from exporter.pipeline.models import TorchModel
from exporter.pipeline.racing import Race
from exporter.pipeline.steps import versions
from exporter.plan_types import PruneChannelsStep, PruneWeightsStep
from exporter.registry import load_target
from exporter.tables import human_size

if TYPE_CHECKING:
    from torch import nn


def sparse(step: PruneWeightsStep, bench: Bench, model: TorchModel) -> Made:
    """The model with single weights set to zero, and what that does to its compressed size."""
    from exporter.compress import WeightPruning, compressed_bytes, prune_weights

    module = bench.models.prepared(model, bench.inputs).flat.inner
    changed, change, notes = prune_weights(
        module,
        lambda: bench.models.calibration(bench.inputs),
        WeightPruning(**{key: getattr(step, key) for key in WeightPruning.__dataclass_fields__}),
        call=bench.models.call(model, bench.inputs),
    )
    before, after = compressed_bytes(module), compressed_bytes(changed)
    sizes = (
        f"weights after zstd {human_size(before)} -> {human_size(after)}"
        if before is not None and after is not None
        else "their compressed size is not known: `pip install edge-exporter[compress]`"
    )
    notes = (f"{notes[0]}; {sizes}; file size and latency stay", *notes[1:])
    return Made(module=changed, structure=(*model.structure, change), notes=notes)


def narrowed(step: PruneChannelsStep, bench: Bench, model: TorchModel, label: str) -> Made:
    """The model with fewer channels; `label` names the step for its progress."""
    from exporter.compress import ChannelPruning, prune_channels

    module = bench.models.prepared(model, bench.inputs).flat.inner
    what, target = step.goal
    race = _race(step, bench, model, module) if what == "latency" else None
    pruned = prune_channels(
        module,
        lambda: bench.models.calibration(bench.inputs),
        ChannelPruning(**{key: getattr(step, key) for key in ChannelPruning.__dataclass_fields__}),
        target=target,
        cost=race.share if race else _share(what, bench, module, model),
        what=what,
        noisy=race is not None,
        call=bench.models.call(model, bench.inputs),
        progress=bench.models.steps.progress(label),
    )
    widths = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in pruned.widths.items())
    how = f" on {race.target.name} ({race.host}, {pruned.tried} candidates measured)" if race else ""
    wider = f" (the next wider candidate has {pruned.wider:.3f}x)" if pruned.wider is not None else ""
    notes = (
        f"{what} {pruned.cost:.3f}x of the model before{how}, {target:.3g}x asked for{wider}; channels: {widths}",
    )
    return Made(module=pruned.module, structure=(*model.structure, pruned.change), notes=notes + pruned.left)


def race_parts(step: PruneChannelsStep, bench: Bench) -> object:
    """What decides a latency, beside the machine, which no key holds: for the step's key."""
    if step.latency is None:
        return None
    name = step.target or bench.models.plan.targets[0].name
    plan = next(one for one in bench.models.plan.targets if one.name == name)
    target = load_target(name)
    versions_ = versions(*target.distributions)
    return [
        name,
        target.version,
        plan.options,
        plan.profile,
        plan.export.opset,
        bench.checked.cases_digest,
        versions_,
    ]


def _race(step: PruneChannelsStep, bench: Bench, model: TorchModel, module: nn.Module) -> Race:
    name = step.target or bench.models.plan.targets[0].name
    plan = next(one for one in bench.models.plan.targets if one.name == name)
    return Race(load_target(name), plan, bench.inputs, model.plan.outputs, bench.checked, bench.data, module)


def _share(what: str, bench: Bench, module: nn.Module, model: TorchModel) -> Callable[[nn.Module], float]:
    """The share that a candidate has of a module's cost."""
    if what == "macs":
        from exporter.compress import share_of_macs

        batch = next(iter(bench.models.calibration(bench.inputs)))
        return share_of_macs(module, batch, call=bench.models.call(model, bench.inputs))

    from exporter.compress import count_bytes

    def values(one: nn.Module) -> int:
        return sum(tensor.numel() for tensor in one.parameters()) if what == "parameters" else count_bytes(one)

    whole = values(module)
    return lambda candidate: values(candidate) / whole
