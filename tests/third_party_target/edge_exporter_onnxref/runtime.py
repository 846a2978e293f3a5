"""The one place in a bundle that knows its runtime, onnx's reference evaluator. Travels as runtime.py."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

NAME = "onnx"


class RuntimeMissing(Exception):
    """The onnx package cannot be imported; `command` brings it."""

    command = f"python -m pip install {NAME}"


def version() -> str:
    """Version of the installed onnx package."""
    return str(_library("onnx").__version__)


def provider() -> str:
    """What executes the model inside the runtime."""
    return "ReferenceEvaluator"


class Session:
    """An open model."""

    def __init__(self, model: Any, evaluator: Any) -> None:
        self._graph = model.graph
        self._evaluator = evaluator
        self._outputs = [output.name for output in model.graph.output]

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """One inference: arrays by input name to arrays by output name."""
        asarray = _library("numpy").asarray
        answers = self._evaluator.run(self._outputs, dict(feed))
        return {name: asarray(answers[index]) for index, name in enumerate(self._outputs)}

    def inputs(self) -> list[tuple[str, str, list[int | str]]]:
        """(name, dtype, shape) of each input; dynamic axes are strings."""
        weights = {tensor.name for tensor in self._graph.initializer}
        return [_spec(value) for value in self._graph.input if value.name not in weights]

    def outputs(self) -> list[tuple[str, str, list[int | str]]]:
        """(name, dtype, shape) of each output, as `inputs` does."""
        return [_spec(value) for value in self._graph.output]


def open_session(model_path: str, threads: int, affinity: Sequence[int] | None = None) -> Session:
    """Opens a model. The evaluator has no threads of its own: numpy's obey OMP_NUM_THREADS, which the runner sets."""
    model = _library("onnx").load(model_path)
    return Session(model, _library("onnx.reference").ReferenceEvaluator(model))


def _spec(value: Any) -> tuple[str, str, list[int | str]]:
    kind = value.type.tensor_type
    dtype = _library("onnx.helper").tensor_dtype_to_np_dtype(kind.elem_type)
    shape = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in kind.shape.dim]
    return value.name, str(dtype), shape


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeMissing(f"{name} cannot be imported: {error}") from error
