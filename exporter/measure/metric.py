"""Task metrics: accuracy, or the user's own function."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import MetricResult
from exporter.errors import DataError, InputError, closest, shorten
from exporter.measure.user_code import code_digest, load_file, module_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

Metric = Callable[["Arrays", "NDArray[np.generic]"], float]
"""Takes all outputs by name, concatenated over the evaluation set, and the labels; higher is better."""


def load_metric(reference: str, output: str | None) -> Metric:
    """`accuracy`, or the function that `pkg.module:function` / `file.py:function` names.

    Raises:
        InputError: the function cannot be found or its module cannot be imported.
    """
    if reference == "accuracy":
        return lambda outputs, labels: _accuracy(outputs, labels, output)
    place, _, name = reference.rpartition(":")
    if not place:
        raise InputError(
            f"there is no metric '{reference}'",
            where="evaluation.metric",
            hint='use `accuracy`, or name a function: `metric = "file.py:function"`',
        )
    try:
        module = load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise InputError(
            "the metric's module cannot be imported",
            where=f"evaluation.metric = {reference}",
            why=shorten(f"{type(error).__name__}: {error}"),
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(
            f"the metric's module has no function '{name}'{closest(name, dir(module))}",
            where=f"evaluation.metric = {reference}",
        )
    return _checked(reference, function)


def metric_digest(reference: str, output: str | None) -> str:
    """What a metric's result depends on, besides its arguments: its name, or its file and what that imports."""
    place = reference.rpartition(":")[0]
    if place.endswith(".py"):
        return f"{reference.rpartition(':')[2]}@{code_digest(Path(place))}"
    if place and (digest := module_digest(place)) is not None:
        return f"{reference}@{digest}"
    return f"{reference}({output or ''})"


def compare_metric(name: str, reference: float, value: float) -> MetricResult:
    """Relative loss of a candidate; a reference of zero can only be kept or gained on."""
    loss = 0.0 if value >= reference else (reference - value) / abs(reference) if reference else math.inf
    return MetricResult(name=name, reference=reference, value=value, relative_loss=min(loss, 1e9))


def _accuracy(outputs: Arrays, labels: NDArray[np.generic], output: str | None) -> float:
    """Share of labels that have the highest score, whether there is one for each sample, position or pixel."""
    name = output or next(iter(outputs))
    if name not in outputs:
        raise InputError(
            f"the model has no output '{name}'{closest(name, list(outputs))}",
            where="evaluation.output",
            hint=f"outputs: {', '.join(outputs)}",
        )
    scores = outputs[name]
    if scores.ndim >= 4 and (scores.shape[0], *scores.shape[2:]) == labels.shape:
        import numpy as np

        scores = np.moveaxis(scores, 1, -1)  # Maps (N, C, H, W) have a label for each pixel.
    if scores.ndim < 2 or scores.shape[:-1] != labels.shape:
        raise DataError(
            f"accuracy does not apply: output '{name}' has shape {scores.shape}, labels have shape {labels.shape}",
            where="[evaluation]",
            hint='use another output (`output = "..."`) or a metric of your own (`metric = "file.py:function"`)',
        )
    classes = scores.shape[-1]
    outside = [label for label in labels.reshape(-1).tolist() if not 0 <= label < classes]
    if outside:
        raise DataError(
            f"{len(outside)} of {labels.size} labels are no class of the model, which has {classes}",
            where=f"[evaluation] labels, against output '{name}'",
            why=f"for example {outside[0]}; classes count from 0",
            hint='number the labels as the model does, or use a metric of your own (`metric = "file.py:function"`)',
        )
    return float((scores.argmax(-1) == labels).mean())


def _checked(reference: str, function: Callable[..., Any]) -> Metric:
    def metric(outputs: Arrays, labels: NDArray[np.generic]) -> float:
        try:
            value = float(function(dict(outputs), labels))
        except (Exception, SystemExit) as error:
            raise InputError(
                "the evaluation metric raised an error",
                where=f"evaluation.metric = {reference}",
                why=shorten(f"{type(error).__name__}: {error}"),
                hint="it is called as function(outputs: dict of arrays by name, labels: array) and returns a number",
            ) from error
        if not math.isfinite(value):
            raise InputError(f"the evaluation metric returned {value}", where=f"evaluation.metric = {reference}")
        return value

    return metric
