"""The one place in a bundle that knows OpenVINO. Travels as runtime_openvino.py, beside the bundle's main runtime.

A runtime is: NAME, version(), provider(), open_session(), and RuntimeMissing.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAME = "openvino"
DEVICE = "CPU"
SINK = "/sink_port_0"
"""What OpenVINO puts behind an output's name to call the node that it leaves the graph by."""


class RuntimeMissing(Exception):
    """OpenVINO cannot be imported; `command` brings it."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{NAME} cannot be imported: {why}")
        self.command = install_command()


def install_command() -> str:
    """The pip command that brings the runtime: the bundle's requirements file where there is one."""
    path = Path(__file__).resolve().parent / f"requirements-{NAME}.txt"
    wanted = f'-r "{path}"' if path.is_file() else NAME
    return f"{Path(sys.executable).name or 'python'} -m pip install {wanted}"


def version() -> str:
    """Version of the installed runtime, without its build.

    Raises:
        RuntimeMissing: it cannot be imported.
    """
    return str(_library().__version__).partition("-")[0]


def provider() -> str:
    """What executes the model inside the runtime."""
    return f"OpenVINO {DEVICE}"


class Session:
    """An open model, compiled for the shapes that come first: kernels for known shapes are faster.

    Other shapes are served by a second form, which is compiled for any as soon as they come.
    """

    def __init__(self, model: Any, settings: Mapping[str, Any]) -> None:
        self._model = model
        self._settings = settings
        self._names = [_output_name(output) for output in model.outputs]
        self._first: tuple[Any, Any] | None = None
        self._any = None if model.is_dynamic() else self._compiled(model)

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """One inference: arrays by input name to arrays by output name."""
        # Shared, results would change under the caller with the next inference.
        results = self._request(feed).infer(dict(feed), share_inputs=True, share_outputs=False)
        return dict(zip(self._names, results.to_tuple()))

    def inputs(self) -> list[tuple[str, str, list[int | str]]]:
        """(name, dtype, shape) of each input as the runtime reports it; dynamic axes are `?`."""
        return [_spec(item, item.get_any_name()) for item in self._model.inputs]

    def outputs(self) -> list[tuple[str, str, list[int | str]]]:
        """(name, dtype, shape) of each output, as `inputs` does."""
        return [_spec(item, name) for name, item in zip(self._names, self._model.outputs)]

    def _request(self, feed: Mapping[str, Any]) -> Any:
        shapes = {name: list(value.shape) for name, value in feed.items()}
        if self._any is None and self._first is None:
            fixed = self._model.clone()
            fixed.reshape(shapes)
            self._first = (shapes, self._compiled(fixed))
        if self._first is not None and self._first[0] == shapes:
            return self._first[1]
        if self._any is None:
            self._any = self._compiled(self._model)
        return self._any

    def _compiled(self, model: Any) -> Any:
        return _library().Core().compile_model(model, DEVICE, self._settings).create_infer_request()


def open_session(model_path: str, threads: int, affinity: Sequence[int] | None = None) -> Session:
    """Opens a model for inference on the CPU.

    Args:
        model_path: the .onnx file.
        threads: threads that compute one inference.
        affinity: CPUs that the process is pinned to already; OpenVINO's threads inherit that.

    Raises:
        RuntimeMissing: OpenVINO cannot be imported.
    """
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # Where the CPU has them, bfloat16 kernels would change the answers.
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    model = _library().Core().read_model(model_path)
    _sum_bytes_right(model)
    return Session(model, settings)


def _sum_bytes_right(model: Any) -> None:
    """Keeps sums and means of three axes from being computed of bytes.

    OpenVINO 2026.4 reads bytes of all samples but the first from the wrong place there. It carries integers through
    no maximum, which is done in one step with making them real numbers; minus infinity changes none of them.
    """
    operators = importlib.import_module("openvino.opset13")
    nodes = model.get_ordered_ops()
    if all(node.get_type_name() != "FakeQuantize" for node in nodes):
        return
    for node in nodes:
        if node.get_type_name() not in ("ReduceSum", "ReduceMean"):
            continue
        values = node.input_value(0)
        if values.get_partial_shape().rank == 3 and values.get_element_type().is_real():
            lowest = operators.constant(-math.inf, dtype=values.get_element_type())
            node.input(0).replace_source_output(operators.maximum(values, lowest).output(0))


def _output_name(output: Any) -> str:
    """The model's name of an output; its tensor has others as well where an Identity was taken away."""
    name = str(output.node.get_friendly_name())
    name = name[: -len(SINK)] if name.endswith(SINK) else name
    return name if name in output.get_names() else str(output.get_any_name())


def _spec(item: Any, name: str) -> tuple[str, str, list[int | str]]:
    shape: list[int | str] = [axis.get_length() if axis.is_static else "?" for axis in item.get_partial_shape()]
    return name, str(item.get_element_type().to_dtype()), shape


def _library() -> Any:
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise RuntimeMissing(" ".join(str(error).split())[:300]) from error
