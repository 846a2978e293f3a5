"""The one place in a bundle that knows the .tflite runtimes, LiteRT and tflite-runtime. Travels as runtime.py.

A runtime is: NAME, version(), provider(), open_session(), and RuntimeMissing.
"""

from __future__ import annotations

import base64
import importlib
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

LITERT = "ai-edge-litert"
CANDIDATES = ((LITERT, "ai_edge_litert.interpreter"), ("tflite-runtime", "tflite_runtime.interpreter"))
"""Distributions and their modules, the preferred one first."""
PROBE = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAcAAAAhAAAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAABAAAAAMABQAEAAMAAgABAAMAAAA"
    "EAAAABAAAAAUAAAAGAAAAAAAAAABAAAAAAAAAAEAAAAAAAAAAQAAABAAAAAMAAwACAAAAAAABAAMAAAACAAAAAwAAAABAAAAeAAAAAEAAAABAAAA"
    "AAAAAA=="
)
"""A model without operators whose only tensor is input and output.

A runtime that can be imported may still be unable to open any model: tflite-runtime beside numpy 2 is.
"""
DELEGATE = "XNNPACK"
DELEGATED = "DELEGATE"
"""What a runtime calls a node that stands for the operators which a delegate has taken; those stay in the list."""
INTEGERS = {"int8": (-128, 127), "int16": (-32768, 32767)}

NAME: str
_asked: list[str] = []


class RuntimeMissing(Exception):
    """No runtime works here; `command` brings one."""

    def __init__(self, why: str) -> None:
        names = [name for name, _ in _candidates()]
        text = f"neither {' nor '.join(names)} works" if names[1:] else f"{names[0]} does not work"
        super().__init__(f"{text} here: {why}")
        self.command = install_command()


class Library(NamedTuple):
    """A runtime that was proved to work."""

    name: str
    module: Any


def __getattr__(name: str) -> str:
    # Which of the two is here is known once one of them was tried.
    if name == "NAME":
        return _library().name
    raise AttributeError(name)


def ask_for(name: str) -> None:
    """From now on only this one of the runtimes is taken, also where the other one works here."""
    _asked[:] = [name]
    _library.cache_clear()


def _candidates() -> Sequence[tuple[str, str]]:
    return [one for one in CANDIDATES if one[0] in _asked] or CANDIDATES


def install_command() -> str:
    """The pip command that brings the runtime: the bundle's requirements file where there is one."""
    name = _candidates()[0][0]
    path = Path(__file__).resolve().parent / f"requirements-{name}.txt"
    wanted = f'-r "{path}"' if path.is_file() else name
    return f"{Path(sys.executable).name or 'python'} -m pip install {wanted}"


def version() -> str:
    """Version of the installed runtime.

    Raises:
        RuntimeMissing: none works here.
    """
    return metadata.version(_library().name)


def provider() -> str:
    """What executes the model inside the runtime."""
    return f"CPU, {DELEGATE}"


class Session:
    """An open model."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        signatures = interpreter.get_signature_list()
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        self._inputs = _in_order(runner.get_input_details(), interpreter.get_input_details())
        self._outputs = _in_order(runner.get_output_details(), interpreter.get_output_details())

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """One inference: arrays by input name to arrays by output name."""
        for name, detail in self._inputs:
            self._interpreter.set_tensor(detail["index"], _to_integers(feed[name], detail))
        self._interpreter.invoke()
        return {
            name: _to_reals(self._interpreter.get_tensor(detail["index"]), detail) for name, detail in self._outputs
        }

    def inputs(self) -> list[tuple[str, str, list[int | str]]]:
        """(name, dtype, shape) of each input as `run` takes it: real numbers also where the file takes integers."""
        return [_spec(name, detail) for name, detail in self._inputs]

    def outputs(self) -> list[tuple[str, str, list[int | str]]]:
        """(name, dtype, shape) of each output, as `inputs` does."""
        return [_spec(name, detail) for name, detail in self._outputs]

    def delegation(self) -> dict[str, Any]:
        """How many of the file's operators the delegate computes; None where the runtime does not tell."""
        try:
            nodes = self._interpreter._get_ops_details()
            operators = [node for node in nodes if node["op_name"] != DELEGATED]
            taken = _taken(operators, [node for node in nodes if node["op_name"] == DELEGATED])
        except Exception:  # what is private to a library may be anything in its next version
            return {"delegate": DELEGATE, "operators": None, "of": None}
        return {"delegate": DELEGATE, "operators": len(taken), "of": len(operators)}


def open_session(model_path: str, threads: int, affinity: Sequence[int] | None = None) -> Session:
    """Opens a model for inference on the CPU.

    Args:
        model_path: the .tflite file.
        threads: threads that compute one operator; operators run one after another.
        affinity: CPUs that the process is pinned to already; the runtime's threads inherit that.

    Raises:
        RuntimeMissing: no runtime works here.
    """
    interpreter = _library().module.Interpreter(model_path=model_path, num_threads=threads)
    interpreter.allocate_tensors()
    return Session(interpreter)


def _taken(operators: Sequence[Any], delegates: Sequence[Any]) -> set[int]:
    """Indices of the operators whose results a delegate computes: all between its inputs and its outputs."""
    makers = {int(tensor): number for number, node in enumerate(operators) for tensor in node["outputs"]}
    taken: set[int] = set()
    for delegate in delegates:
        edge = {int(tensor) for tensor in delegate["inputs"]}
        left = [int(tensor) for tensor in delegate["outputs"]]
        while left:
            maker = makers.get(left.pop())
            if maker is not None and maker not in taken:
                taken.add(maker)
                left += [int(tensor) for tensor in operators[maker]["inputs"] if int(tensor) not in edge]
    return taken


def _in_order(named: Mapping[str, Any], ordered: Sequence[Any]) -> list[tuple[str, Any]]:
    """The signature's names in the order of the model's tensors."""
    place = {detail["index"]: number for number, detail in enumerate(ordered)}
    return sorted(named.items(), key=lambda item: place[item[1]["index"]])


def _spec(name: str, detail: Any) -> tuple[str, str, list[int | str]]:
    dtype = "float32" if _stands_for_reals(detail) else detail["dtype"].__name__
    return name, dtype, [int(size) for size in detail["shape"]]


def _stands_for_reals(detail: Any) -> bool:
    return detail["quantization"][0] > 0 and detail["dtype"].__name__ in INTEGERS


def _to_integers(values: Any, detail: Any) -> Any:
    """Real numbers as the integers that the file takes: rounded, and clipped to what the type holds."""
    if not _stands_for_reals(detail):
        return values
    scale, zero_point = detail["quantization"]
    lowest, highest = INTEGERS[detail["dtype"].__name__]
    return ((values / scale).round() + zero_point).clip(lowest, highest).astype(detail["dtype"])


def _to_reals(values: Any, detail: Any) -> Any:
    if not _stands_for_reals(detail):
        return values
    scale, zero_point = detail["quantization"]
    real = (values.astype("float32") - zero_point) * scale
    return real.astype("float32")


@cache
def _library() -> Library:
    """The first runtime that opens a model."""
    reasons = []
    for name, module in _candidates():
        try:
            library = importlib.import_module(module)
            library.Interpreter(model_content=PROBE)
        except Exception as error:  # whatever a broken installation raises
            reasons.append(f"{name}: {' '.join(str(error).split())[:200] or type(error).__name__}")
        else:
            return Library(name, library)
    raise RuntimeMissing("; ".join(reasons))
