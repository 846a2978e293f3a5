"""What a plan's values must keep beyond their types: names, sections, files that are there, numbers that compute."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.errors import closest
from exporter.plan_types import (
    GOALS,
    CompressPlan,
    DistilStep,
    LowRankStep,
    MergePlan,
    ModelPlan,
    PruneChannelsStep,
    PruneWeightsStep,
    QuantizePlan,
)

Tables = dict[str, Any]

STATIC = (
    "weights", "activations", "symmetric_activations", "reduce_range", "observer", "observers", "equalize",
    "per_tensor", "correct_biases",
)  # fmt: skip
"""Keys of `[quantize]` that say how static int8 is made."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_top_level(
    tables: Tables, overrides: Tables, known: Sequence[str], default_name: str, problems: list[str]
) -> str:
    """Checks schema, name, and the names of sections; gives the name.

    Args:
        tables: the plan's.
        overrides: from `--set`.
        known: keys that a plan may have.
        default_name: the name of a plan that has none; made fit for a folder's name.
        problems: receives every fault found.
    """
    for key in [*tables, *overrides]:
        if key not in known:
            problems.append(f"{key}: unknown section or key{closest(key, known)}")
    targets = tables.get("targets", {})
    names = list(targets) if isinstance(targets, Mapping) else []
    for target in overrides.get("targets", {}):
        if target not in names:
            problems.append(f"--set targets.{target}: this target is not built{closest(target, names)}")
    problems += [
        f"--set {key}: no section of the plan, and not to be set" for key in ("schema", "name") if key in overrides
    ]
    schema = tables.get("schema")
    if type(schema) is not int or schema != 1:
        stated = "is missing" if schema is None else f"is {schema!r}"
        problems.append(f"schema {stated}: this version reads `schema = 1`")
    name = tables.get("name", re.sub(r"[^A-Za-z0-9._-]+", "-", default_name)[:64].strip("-._") or "model")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        problems.append(f"name: {name!r} cannot start a folder's name (letters, digits, '.', '_', '-'; at most 64)")
        return "model"
    return name


def file_part(reference: str) -> str | None:
    """The path in a source, data or metric reference, or None when it names an importable module."""
    path, colon, _ = reference.rpartition(":")
    if colon and path.endswith(".py"):
        return path
    return None if colon and "/" not in reference and "\\" not in reference else reference


def check_files(sections: Mapping[str, Any], problems: list[str]) -> None:
    """Names every file that the plan refers to and that is not there."""
    found: list[tuple[str, str | Path | None]] = []
    if model := sections.get("model"):
        found += [("model.source", file_part(model.source)), ("model.weights", model.weights)]
        found += [("model.depends", path) for path in model.depends]
    for section in ("calibration", "training", "evaluation"):
        if data := sections.get(section):
            found.append((f"{section}.data", file_part(data.data)))
    if merge := sections.get("merge"):
        found += [("merge.base", merge.base)]
        for index, model in enumerate(merge.models):
            found += [(f"merge.models[{index}].weights", model.weights)]
            found += [(f"merge.models[{index}].source", file_part(model.source) if model.source else None)]
    evaluation = sections.get("evaluation")
    if evaluation is not None and evaluation.metric != "accuracy":
        if ":" in evaluation.metric:
            found.append(("evaluation.metric", file_part(evaluation.metric)))
        else:
            word = Path(evaluation.metric).name
            proposal = closest(word, ["accuracy"])
            problems.append(f"evaluation.metric: neither `accuracy` nor `file.py:function`: '{word}'{proposal}")
    problems += [f"{key}: {path} does not exist" for key, path in found if path and not _exists(path)]


def _exists(path: str | Path) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # A name that is too long, or a folder that may not be entered.
        return False


def learns(merge: MergePlan | None, compress: CompressPlan | None) -> bool:
    """Whether a student is taught."""
    steps = compress.steps if compress is not None else ()
    return (merge is not None and merge.method == "transfer") or any(isinstance(step, DistilStep) for step in steps)


def check_compress(compress: CompressPlan | None, targets: Sequence[str], problems: list[str]) -> None:
    """Names steps whose numbers contradict each other, and targets that the plan does not build."""
    for index, step in enumerate(compress.steps if compress else ()):
        if isinstance(step, PruneChannelsStep):
            problems += [f"compress.steps[{index}]{text}" for text in _pruning_problems(step, targets)]
        if isinstance(step, PruneWeightsStep):
            problems += [f"compress.steps[{index}]{text}" for text in _sparsity_problems(step)]
        if isinstance(step, LowRankStep) and (step.energy is None) == (step.rank is None):
            problems.append(f"compress.steps[{index}]: 'low-rank' needs either `energy` or `rank`")
        if isinstance(step, DistilStep):
            problems += [
                f"compress.steps[{index}].teachers: {path} does not exist"
                for path in step.teachers
                if not _exists(path)
            ]
            if step.source is not None and (file := file_part(step.source)) and not _exists(file):
                problems.append(f"compress.steps[{index}].source: {file} does not exist")
            if step.hard is not None and step.labels is None:
                problems.append(f"compress.steps[{index}].hard: it weighs `labels`, and none are named")
            if step.hint_weight is not None and not step.hints:
                problems.append(f"compress.steps[{index}].hint_weight: there are no `hints`")
            if step.fuse == "confidence" and (step.loss == "mse" or len(step.teachers) < 2):
                problems.append(f"compress.steps[{index}].fuse: 'confidence' chooses among teachers by their softmax")


def _pruning_problems(step: PruneChannelsStep, targets: Sequence[str]) -> list[str]:
    found = []
    given = [name for name in GOALS if getattr(step, name) is not None]
    if len(given) != 1:
        got = f" (got {', '.join(given)})" if given else ""
        found.append(f": 'prune-channels' needs exactly one of {', '.join(f'`{name}`' for name in GOALS)}{got}")
    if step.target is not None and step.latency is None:
        found.append(".target: only `latency` is measured on a target")
    elif step.target is not None and step.target not in targets:
        found.append(f".target: the plan does not build '{step.target}'{closest(step.target, targets)}")
    elif step.latency is not None and step.target is None and len(targets) > 1:
        found.append(f".target is missing: the plan builds {', '.join(targets)}, and latency is measured on one")
    if step.importance == "lamp" and step.spread == "layer":
        found.append(".importance: within a layer 'lamp' is 'l2'; it needs `spread = \"global\"`")
    return found


def _sparsity_problems(step: PruneWeightsStep) -> list[str]:
    given = [name for name in ("sparsity", "threshold") if getattr(step, name) is not None]
    if step.pattern == "2:4":
        return [f".{name}: the pattern 2:4 is half zeros by itself" for name in given]
    if len(given) != 1:
        return [": 'prune-weights' needs either `sparsity` or `threshold`"]
    if step.threshold is not None and step.spread == "global":
        return [".spread: one `threshold` holds for all layers anyway"]
    return []


def check_preprocessing(model: ModelPlan | None, problems: list[str]) -> None:
    """Names every preprocessing value that cannot be computed with."""
    for name, spec in model.inputs.items() if model else ():
        where, given = f"model.inputs.{name}.preprocess", spec.preprocess
        if given is None:
            continue
        if given.size is not None and min(given.size) < 1:
            problems.append(f"{where}.size: height and width of at least 1 are expected (got {list(given.size)})")
        if not 0 < given.crop_fraction <= 1:
            problems.append(
                f"{where}.crop_fraction: a share above 0 and up to 1 is expected (got {given.crop_fraction})"
            )
        if 0 in given.std:
            problems.append(f"{where}.std: values are divided by it, so none can be 0 (got {list(given.std)})")


def check_dynamic(
    quantize: QuantizePlan, usual: Mapping[str, Any], own: Mapping[str, Any], where: str, problems: list[str]
) -> None:
    """Names keys that would be ignored: dynamic int8 takes its ranges at run time, and its types are given.

    Args:
        quantize: what is in force for a target.
        usual: what the target itself sets.
        own: what was said for this target alone; the rest may be meant for others, where that alone makes it dynamic.
        where: the target's section.
        problems: receives every fault found.
    """
    if not (quantize.enabled and quantize.dynamic):
        return
    default = QuantizePlan(**usual)
    for key in STATIC:
        if getattr(quantize, key) != getattr(default, key) and (key in own or not own.get("dynamic")):
            problems.append(f"{where}.{key}: `dynamic = true` makes no static int8, which is what this key is for")
