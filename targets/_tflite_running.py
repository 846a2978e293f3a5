"""Runs .tflite files so that what lies between their operators can be read."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import StageError
from targets import _tflite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]


def paired(floats: Any, whole: Any, name: str) -> list[tuple[int, _tflite.Operator, _tflite.Operator]]:
    """Pairs operators of a quantized file with those of its float file: the quantizer adds conversions, in order.

    Args:
        floats: the float file, read.
        whole: the quantized one.
        name: of the latter, for the message.

    Returns:
        Of each operator of the first graph: its place in the quantized file, and what both files say of it.

    Raises:
        StageError: the two do not have the same operators.
    """
    before = _tflite.graph_operators(floats, floats.subgraphs[0])
    after = [
        (place, one)
        for place, one in enumerate(_tflite.graph_operators(whole, whole.subgraphs[0]))
        if one.kind not in _tflite.EDGES
    ]
    theirs = [one for one in before if one.kind not in _tflite.EDGES]
    if [one.kind for _, one in after] != [one.kind for one in theirs]:
        raise StageError(
            "the quantized file has other operators than the float one",
            where=name,
            why="noise is measured operator by operator",
            hint="`[quantize] budget = 0` builds without repairs, which need that as `analyze` does",
        )
    return [(place, ours, own) for (place, ours), own in zip(after, theirs, strict=True)]


class Reference:
    """The float file, all of whose tensors can be read after a run."""

    def __init__(self, path: Path, model: Any) -> None:
        self._inputs = {_tflite.text(one.name): int(one.tensorIndex) for one in model.signatureDefs[0].inputs}
        self._interpreter = interpreter(path.read_bytes(), preserve=True)

    def run(self, batch: Arrays) -> None:
        """One inference."""
        for name, index in self._inputs.items():
            self._interpreter.set_tensor(index, batch[name])
        self._interpreter.invoke()

    def value(self, index: int) -> NDArray[np.generic]:
        """A tensor after the run, constant ones included."""
        found: NDArray[np.generic] = self._interpreter.get_tensor(index)
        return found


def written(model: Any) -> bytes:
    """A file's bytes from the objects of its schema."""
    tools = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    return bytes(tools.convert_object_to_bytearray(model))


def interpreter(content: bytes, *, preserve: bool = False) -> Any:
    """Opens a file, one thread; `preserve` keeps every tensor for reading, and the delegate's kernels away."""
    library = importlib.import_module("ai_edge_litert.interpreter")
    with warnings.catch_warnings():
        # Keeping every tensor is for debugging, says the runtime, and this is.
        warnings.simplefilter("ignore", UserWarning)
        made = library.Interpreter(model_content=content, num_threads=1, experimental_preserve_all_tensors=preserve)
    made.allocate_tensors()
    return made
