"""What [merge] must keep beyond its types: a method has what it needs, and no key is given that it does not read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from exporter.plan_types import (
    CompressPlan,
    DistilStep,
    LowRankStep,
    MergeModelPlan,
    MergePlan,
    ModelPlan,
    PruneChannelsStep,
)

COMPOSED = ("stack", "fuse")
"""Methods that keep every member in the graph."""
FREE = (*COMPOSED, "transfer")
"""Methods whose members may have different architectures."""
NEEDS_BASE = ("task-arithmetic", "ties", "dare")
RESHAPING = {PruneChannelsStep: "prune-channels", LowRankStep: "low-rank"}
"""Steps of [compress] after which weights at one place of two models stand for different things."""
KNOWING = ("fisher", "regmean")
"""Methods that look at what members do with the calibration inputs."""
COMMON = ("method", "models", "base", "norms", "order", "accept")
"""Keys that every method that merges weights reads; those of the others are listed in full."""
READS: Mapping[str, tuple[str, ...]] = {
    "average": (*COMMON, "search", "labels"),
    "slerp": (*COMMON, "position", "search", "labels"),
    "greedy-soup": (*COMMON, "labels"),
    "task-arithmetic": (*COMMON, "scale", "search", "labels"),
    "ties": (*COMMON, "scale", "density", "search", "labels"),
    "dare": (*COMMON, "scale", "drop", "seed", "search", "labels"),
    "fisher": (*COMMON, "loss", "seed", "search", "labels"),
    "regmean": (*COMMON, "search", "labels"),
    "stack": ("method", "models", "order", "expose"),
    "fuse": ("method", "models", "order", "accept", "by", "labels"),
    "transfer": ("method", "models", "order", "accept", "teaching"),
}
MEMBER_READS: Mapping[str, tuple[str, ...]] = {
    "stack": ("weights", "name", "source", "args", "inputs", "outputs"),
    "fuse": ("weights", "name", "source", "args", "inputs", "outputs", "weight", "classes"),
    "transfer": ("weights", "name", "source", "args", "inputs", "classes", "hints"),
}
WEIGHED = ("weights", "name", "weight")
UNWEIGHTED = ("slerp", "greedy-soup")
UNWEIGHTED_FUSIONS = ("max", "learned")
LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def default_source(tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tables whose [model] takes its source from the first member, where each member brings its own."""
    model, merge = tables.get("model", {}), tables.get("merge")
    members = merge.get("models") if isinstance(merge, Mapping) else None
    if not isinstance(model, Mapping) or "source" in model or not isinstance(members, list) or not members:
        return tables
    sources = [member.get("source") if isinstance(member, Mapping) else None for member in members]
    return tables if None in sources else {**tables, "model": {**model, "source": sources[0]}}


def check_merge(
    merge: MergePlan | None, model: ModelPlan | None, compress: CompressPlan | None, problems: list[str]
) -> None:
    """Names what the method of a merge lacks or does not read, and models that tables could not tell apart."""
    if merge is None or model is None:
        return
    _check_order(merge, compress, problems)
    labels = [member.label for member in merge.models]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        problems.append(f"merge.models: {', '.join(map(repr, twice))} names two of them: give each a `name`")
    _check_read(merge, problems)
    if merge.method in COMPOSED:
        _check_composed(merge, model, problems)
    elif merge.method == "transfer":
        _check_transfer(merge, problems)
    else:
        _check_weights(merge, model, problems)


def _check_order(merge: MergePlan, compress: CompressPlan | None, problems: list[str]) -> None:
    """Names steps of [compress] that cannot come before, or after, what the method does."""
    if merge.order == "compress-first" and compress is None:
        problems.append("merge.order: 'compress-first' does the steps of [compress] on each model; there are none")
    if compress is None:
        return
    if merge.order == "compress-first" and compress.save is not None:
        problems.append("compress.save: 'compress-first' leaves several compressed models, and there is one folder")
    if merge.order == "compress-first" and merge.method not in FREE:
        problems.extend(
            f"merge.order: 'compress-first' with '{RESHAPING[type(step)]}' leaves each model other channels or "
            'factors, whose weights have nothing to do with each other: merge first, or keep all (`method = "stack"`)'
            for step in compress.steps
            if type(step) in RESHAPING
        )
    if merge.order == "merge-first" and merge.method == "fuse" and merge.by != "mean":
        problems.extend(
            f"compress.steps[{index}].loss: 'kl' takes a softmax, and `by = \"{merge.by}\"` has taken one already: "
            'set `loss = "mse"`, or fuse by `mean`'
            for index, step in enumerate(compress.steps)
            if isinstance(step, DistilStep) and step.loss == "kl"
        )


def _check_read(merge: MergePlan, problems: list[str]) -> None:
    """Names keys that are set and would not act."""
    for key in _changed(merge):
        if key not in READS[merge.method]:
            problems.append(f"merge.{key}: '{merge.method}' does not use it")
    allowed = MEMBER_READS.get(merge.method, WEIGHED)
    for index, member in enumerate(merge.models):
        problems.extend(
            f"merge.models[{index}].{key}: '{merge.method}' does not use it"
            for key in _changed(member)
            if key not in allowed
        )


def _changed(table: MergePlan | MergeModelPlan) -> list[str]:
    fields = msgspec.structs.fields(table)
    defaults = {
        field.name: field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        for field in fields
        if not field.required
    }
    return [name for name, default in defaults.items() if getattr(table, name) != default]


def _check_weights(merge: MergePlan, model: ModelPlan, problems: list[str]) -> None:
    count = len(merge.models)
    for index, member in enumerate(merge.models):
        if member.weights is None:
            problems.append(f"merge.models[{index}].weights is missing")
    if merge.method in NEEDS_BASE and merge.base is None and model.weights is None:
        problems.append(
            f"merge.base is missing: '{merge.method}' adds what the models learned to the weights that they were "
            "fine-tuned from"
        )
    if (merge.base or model.weights) and any(member.label == "base" for member in merge.models):
        problems.append("merge.models: 'base' is what tables call the base: give the model another `name`")
    if merge.method == "slerp" and count != 2:
        problems.append(f"merge.models: 'slerp' goes from one model to another, so two are expected (got {count})")
    elif merge.method not in NEEDS_BASE and count < 2:
        problems.append(f"merge.models: '{merge.method}' needs two or more models (got {count})")
    if merge.labels is not None and not merge.search and merge.method != "greedy-soup":
        problems.append("merge.labels: nothing is chosen by them without `search`")
    weighted = [member.label for member in merge.models if member.weight != 1.0]
    if merge.method in UNWEIGHTED and weighted:
        problems.append(f"merge.models: '{merge.method}' does not use `weight` (given for {', '.join(weighted)})")


def _check_composed(merge: MergePlan, model: ModelPlan, problems: list[str]) -> None:
    if len(merge.models) < 2:
        problems.append(f"merge.models: '{merge.method}' needs two or more models (got {len(merge.models)})")
    if model.weights is not None:
        problems.append(f"model.weights: '{merge.method}' takes each model's own: give them in [[merge.models]]")
    for index, member in enumerate(merge.models):
        if twice := sorted({name for name in member.outputs if member.outputs.count(name) > 1}):
            problems.append(f"merge.models[{index}].outputs: two outputs are called {', '.join(map(repr, twice))}")
        if not LABEL.fullmatch(member.label):
            problems.append(
                f"merge.models[{index}].name: {member.label!r} cannot start the name of an output (letters, digits, "
                "'_' and '-'): give the model a `name`"
            )
    if merge.method == "fuse":
        _check_fusion(merge, problems)
    if merge.order == "compress-first" and any(member.inputs for member in merge.models):
        problems.append("merge.order: models with `inputs` of their own cannot be compressed alone; merge first")


def _check_fusion(merge: MergePlan, problems: list[str]) -> None:
    if merge.by == "learned" and merge.labels is None:
        problems.append(
            'merge.labels is missing: `by = "learned"` learns from labelled calibration data; name the array'
        )
    if merge.by != "learned" and merge.labels is not None:
        problems.append(f'merge.labels: `by = "{merge.by}"` learns nothing from labels')
    if merge.by in UNWEIGHTED_FUSIONS and any(member.weight != 1.0 for member in merge.models):
        problems.append(f'merge.models: `by = "{merge.by}"` does not use `weight`')
    if merge.by == "mean" and any(member.classes for member in merge.models):
        problems.append("merge.by: models that know different classes are fused by `probabilities`, `max` or `vote`")
    _check_classes(merge, problems)


def _check_transfer(merge: MergePlan, problems: list[str]) -> None:
    """Teachers are run alone, on the inputs of the plan."""
    labels = [member.label for member in merge.models]
    for index, member in enumerate(merge.models):
        if fed := [source for source in member.inputs.values() if source.partition(".")[0] in labels]:
            problems.append(f"merge.models[{index}].inputs: a teacher is run alone, and '{fed[0]}' is another's")
    teaching = merge.teaching
    if teaching.fuse == "confidence" and (teaching.loss == "mse" or len(merge.models) < 2):
        problems.append("merge.teaching.fuse: 'confidence' chooses among teachers by their softmax")
    if teaching.loss == "mse" and any(member.classes for member in merge.models):
        problems.append("merge.models: `classes` tell what softmax outputs stand for; `mse` has none")
    if teaching.hint_weight is not None and not any((teaching.hints, *(member.hints for member in merge.models))):
        problems.append("merge.teaching.hint_weight: there are no `hints`")
    _check_classes(merge, problems)


def _check_classes(merge: MergePlan, problems: list[str]) -> None:
    some = [member.label for member in merge.models if member.classes]
    if some and len(some) < len(merge.models):
        rest = [member.label for member in merge.models if not member.classes]
        problems.append(f"merge.models: {', '.join(rest)} lacks `classes`, which the others have")
    if any(len(set(member.classes)) < len(member.classes) for member in merge.models):
        problems.append("merge.models: `classes` names a class twice")
