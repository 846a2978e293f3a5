"""The one place in a bundle that knows onnxruntime. Travels as runtime.py.

A runtime is: NAME, version(), provider(), open_session(), and RuntimeMissing.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAME = "onnxruntime"
PROVIDER = "CPUExecutionProvider"
DTYPES = {
    "tensor(float16)": "float16", "tensor(float)": "float32", "tensor(double)": "float64",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}  # fmt: skip
ERRORS_ONLY = 3


class RuntimeMissing(Exception):
    """onnxruntime cannot be imported; `command` brings it."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{NAME} cannot be imported: {why}")
        self.command = install_command()


def install_command() -> str:
    """The pip command that brings the runtime: the bundle's requirements file where there is one."""
    path = Path(__file__).resolve().parent / f"requirements-{NAME}.txt"
    wanted = f'-r "{path}"' if path.is_file() else NAME
    return f"{Path(sys.executable).name or 'python'} -m pip install {wanted}"


def version() -> str:
    """Version of the installed runtime.

    Raises:
        RuntimeMissing: it cannot be imported.
    """
    return str(_library().__version__)


def provider() -> str:
    """What executes the model inside the runtime."""
    return PROVIDER


class Session:
    """An open model."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """One inference: arrays by input name to arrays by output name."""
        return dict(zip(self._names, self._session.run(self._names, feed)))

    def inputs(self) -> list[tuple[str, str, list[int | str]]]:
        """(name, dtype, shape) of each input as the runtime reports it; dynamic axes are strings, `?` unnamed."""
        return [_spec(item) for item in self._session.get_inputs()]

    def outputs(self) -> list[tuple[str, str, list[int | str]]]:
        """(name, dtype, shape) of each output, as `inputs` does."""
        return [_spec(item) for item in self._session.get_outputs()]


def open_session(model_path: str, threads: int, affinity: Sequence[int] | None = None) -> Session:
    """Opens a model for inference on the CPU.

    Args:
        model_path: the .onnx file.
        threads: threads that compute one operator; operators run one after another.
        affinity: CPUs that the process is pinned to already; onnxruntime's threads inherit that.

    Raises:
        RuntimeMissing: onnxruntime cannot be imported.
    """
    library = _library()
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    if threads > 1:
        # Variants are measured in turn in one process: idle threads of one must not spin while another runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return Session(library.InferenceSession(model_path, options, providers=[PROVIDER]))


def _spec(item: Any) -> tuple[str, str, list[int | str]]:
    shape: list[int | str] = [axis if isinstance(axis, (int, str)) else "?" for axis in item.shape]
    return item.name, DTYPES.get(item.type, item.type), shape


def _library() -> Any:
    # Read when it is imported: its wheels keep a device id and a database in the home folder of whoever runs this,
    # start threads, and report use over the network.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        library = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeMissing(" ".join(str(error).split())[:300]) from error
    library.set_default_logger_severity(ERRORS_ONLY)
    return library
