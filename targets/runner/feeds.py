"""What goes into a model and comes out: samples.npz, a user's npz file, and the file of outputs."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .bundle import HERE, Bundle, shape_text
from .faults import BAD_INPUT, BROKEN, Fault, brief

BATCH = "batch"
UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


class Samples:
    """samples.npz, read array by array."""

    def __init__(self, numpy: Any, bundle: Bundle) -> None:
        self.count: int = bundle.manifest["samples"]
        self._inputs, self._outputs = bundle.inputs, bundle.outputs
        try:
            self._arrays = numpy.load(HERE / "samples.npz", allow_pickle=False)
            self._names = set(self._arrays.files)
        except (*UNREADABLE, AttributeError) as error:
            raise Fault(BROKEN, f"samples.npz cannot be read: {brief(error)}") from error

    def inputs(self, case: int) -> dict[str, Any]:
        """Arrays by input name."""
        return {tensor["name"]: self._read(f"{case}/inputs/{tensor['name']}") for tensor in self._inputs}

    def expected(self, case: int, variant: str) -> dict[str, Any]:
        """Arrays by output name."""
        return {tensor["name"]: self._read(f"{case}/expected/{variant}/{tensor['name']}") for tensor in self._outputs}

    def to_measure(self) -> tuple[int, list[int]]:
        """(batch size, cases): single samples where there are any, else those of the most frequent size."""
        cases: dict[int, list[int]] = {}
        for case in range(self.count):
            cases.setdefault(self._batch_size(self.inputs(case)), []).append(case)
        if not cases:
            raise Fault(BROKEN, "the bundle has no samples to measure with")
        batch = 1 if 1 in cases else max(cases, key=lambda size: (len(cases[size]), -size))
        return batch, cases[batch]

    def _batch_size(self, arrays: Mapping[str, Any]) -> int:
        named = [tensor["name"] for tensor in self._inputs if tensor["shape"] and tensor["shape"][0] == BATCH]
        fixed = [tensor["name"] for tensor in self._inputs if tensor["shape"] and isinstance(tensor["shape"][0], int)]
        return int(arrays[(named + fixed)[0]].shape[0]) if named or fixed else 1

    def _read(self, key: str) -> Any:
        if key not in self._names:
            raise Fault(BROKEN, f"samples.npz lacks {key}")
        try:
            return self._arrays[key]
        except UNREADABLE as error:
            raise Fault(BROKEN, f"samples.npz, {key}: {brief(error)}") from error


def read_inputs(numpy: Any, bundle: Bundle, path: Path) -> dict[str, Any]:
    """Arrays from an npz file, checked against the signature; every misfit is named."""
    try:
        with numpy.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (*UNREADABLE, AttributeError, TypeError) as error:
        message = f"{path} cannot be read as an npz file of plain arrays: {brief(error)}"
        raise Fault(BAD_INPUT, message, "write it with numpy.savez(path, name=array, ...)") from error
    sizes: dict[str, tuple[int, str]] = {}
    names = [tensor["name"] for tensor in bundle.inputs]
    problems = [f"{name}: there is no such input" for name in sorted(set(arrays) - set(names))]
    for tensor in bundle.inputs:
        given = tensor["name"] in arrays
        found = _misfit(arrays[tensor["name"]], tensor, sizes) if given else f"{tensor['name']}: missing"
        problems += [found] if found else []
    if problems:
        wanted = "; ".join(f"{item['name']}: {item['dtype']}{shape_text(item['shape'])}" for item in bundle.inputs)
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise Fault(BAD_INPUT, f"{path} does not fit the model{listed}", f"the model takes {wanted}")
    return arrays


def _misfit(array: Any, tensor: dict[str, Any], sizes: dict[str, tuple[int, str]]) -> str | None:
    name, shape, wanted = tensor["name"], list(array.shape), tensor["shape"]
    if str(array.dtype) != tensor["dtype"]:
        return f"{name}: dtype is {array.dtype} instead of {tensor['dtype']}"
    if len(shape) != len(wanted) or any(isinstance(axis, int) and axis != size for axis, size in zip(wanted, shape)):
        return f"{name}: shape is {shape} instead of {shape_text(wanted)}"
    if 0 in shape:
        return f"{name}: is empty, shape {shape}"
    for axis, size in zip(wanted, shape):
        if isinstance(axis, str) and sizes.setdefault(axis, (size, name))[0] != size:
            other = sizes[axis]
            return f"{name}: axis {axis!r} is {size}, but {other[0]} in {other[1]}"
    return None


def write_outputs(numpy: Any, arrays: Mapping[str, Any], path: Path) -> None:
    """Writes an npz file in one step: it is there complete, or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            # numpy.savez cannot hold an array called `file`, so the archive is written here.
            with zipfile.ZipFile(part, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                        numpy.lib.format.write_array(stream, numpy.asanyarray(array), allow_pickle=False)
            part.replace(path)
        finally:
            if part.exists():
                part.unlink()
    except (OSError, ValueError) as error:
        raise Fault(BAD_INPUT, f"{path} cannot be written: {brief(error)}") from error
