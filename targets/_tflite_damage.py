"""How much noise each operator of a quantized .tflite file brings, all operators in one pass over the data.

The quantized graph is cut between its operators: what an operator takes becomes an input of the graph, fed with the
float file's activations rounded to the operator's own scale, so that its noise is its own and not what operators
before it left. The kernels are those that the file itself runs on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.artifacts import NodeDamage
from exporter.errors import StageError
from exporter.quantize import channel_decibels, decibels
from targets import _tflite
from targets._tflite_running import Reference, interpreter, paired, written
from targets._tflite_values import BITS, is_constant, range_of, reals, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]
    Floats = NDArray[np.float64]

CONCATENATION = "CONCATENATION"
WITH_GRAPHS = ("CALL", "CALL_ONCE", "IF", "WHILE")


def operator_damage(float_file: Path, quantized: Path, batches: Iterable[Arrays]) -> tuple[NodeDamage, ...]:
    """Noise that each integer operator of a file brings, worst first.

    Operators that only move values are left out, and those of graphs inside the graph.

    Args:
        float_file: the float .tflite that the other was made from.
        quantized: a static or dynamic int8 file.
        batches: inputs by name, as the files take them.

    Raises:
        StageError: no batch was given, or the operators of the two files are not the same.
    """
    found = damage_by_place(float_file, quantized, batches).values()
    return tuple(sorted(found, key=lambda damage: damage.score))


def damage_by_place(
    float_file: Path,
    quantized: Path,
    batches: Iterable[Arrays],
    watch: Callable[[Reference, Arrays], None] = lambda reference, batch: None,
) -> dict[int, NodeDamage]:
    """The same by the operator's place in the quantized graph.

    Args:
        float_file: as for `operator_damage`.
        quantized: likewise.
        batches: likewise.
        watch: is shown each batch, and the float file that has run on it.

    Raises:
        StageError: as `operator_damage`.
    """
    floats, whole = _tflite.read_model(float_file), _tflite.read_model(quantized)
    measured = _measured(floats, whole, quantized.name)
    if not measured:
        return {}
    reference, cut = Reference(float_file, floats), _Cut(whole, measured)
    seen = 0
    for batch in batches:
        reference.run(batch)
        cut.run(reference)
        for one in measured:
            one.add(reference, cut)
        watch(reference, batch)
        seen += 1
    if not seen:
        raise StageError("there were no data to measure quantization noise on", where=quantized.name)
    return {one.place: one.judged() for one in measured}


class _Measured:
    """One operator: where it is in both files, and the energies of its results and of their errors."""

    def __init__(self, graph: Any, place: int, ours: _tflite.Operator, theirs: _tflite.Operator) -> None:
        self.place, self.ours, self.theirs = place, ours, theirs
        self.tensors = [graph.tensors[index] for index in ours.outputs]
        joined = int(graph.operators[place].builtinOptions.axis) if ours.kind == CONCATENATION else None
        self._axes = [_axes(tensor, joined) for tensor in self.tensors]
        self._lengths = () if joined is None else tuple(int(graph.tensors[one].shape[joined]) for one in ours.inputs)
        self._sums: dict[tuple[int, int], list[Floats]] = {}
        self._total = np.zeros(2)

    def add(self, reference: Reference, cut: _Cut) -> None:
        """Counts one batch."""
        for number, (ours, theirs) in enumerate(zip(self.ours.outputs, self.theirs.outputs, strict=True)):
            wanted = reference.value(theirs).astype(np.float64)
            squares = [np.square(wanted), np.square(cut.value(ours, self.tensors[number]) - wanted)]
            self._total += [float(one.sum()) for one in squares]
            for axis in self._axes[number]:
                others = tuple(one for one in range(wanted.ndim) if one != axis)
                found = [one.sum(others) for one in squares]
                sums = self._sums.setdefault((number, axis), found)
                if sums is not found:
                    sums[:] = [before + more for before, more in zip(sums, found, strict=True)]

    def judged(self) -> NodeDamage:
        """What the sums say."""
        channels: list[float] = []
        for (number, axis), (signals, noises) in self._sums.items():
            grouped = axis == self._axes[number][0]
            channels += channel_decibels(signals, noises, self._lengths if grouped else ())
        integers = [one for one in (*self.ours.results, *self.ours.taken) if one in BITS]
        return NodeDamage(
            node=self.ours.name,
            op=self.ours.kind,
            output=self.ours.name,
            bits=BITS[integers[0]],
            range=range_of(self.tensors[0]),
            sqnr_db=decibels(float(self._total[0]), float(self._total[1])),
            channel_db=min(channels, default=None),
            accumulated_db=None,
        )


def _measured(floats: Any, whole: Any, name: str) -> list[_Measured]:
    """Operators that compute in integers, and do more than move values."""
    graph = whole.subgraphs[0]
    return [
        _Measured(graph, place, ours, own)
        for place, ours, own in paired(floats, whole, name)
        if ours.kind not in _tflite.MOVERS
        and ours.kind not in WITH_GRAPHS
        and _tflite.is_integer(ours, dynamic=not any(kind in BITS for kind in ours.results))
        and not any(graph.tensors[index].isVariable for index in ours.inputs if index >= 0)
    ]


class _Cut:
    """The quantized graph, cut between its operators."""

    def __init__(self, whole: Any, measured: list[_Measured]) -> None:
        graph = whole.subgraphs[0]
        self._feeds: dict[int, tuple[int, Any]] = {}
        stand_ins: dict[int, int] = {}
        kept = []
        for one in measured:
            operator = graph.operators[one.place]
            inputs = []
            for ours, theirs in zip(one.ours.inputs, one.theirs.inputs, strict=True):
                if ours < 0 or is_constant(whole, graph.tensors[ours]):
                    inputs.append(ours)
                    continue
                if ours not in stand_ins:
                    stand_ins[ours] = len(graph.tensors)
                    tensor = copy.copy(graph.tensors[ours])
                    tensor.name, tensor.buffer = f"taken_{len(graph.tensors)}", 0
                    self._feeds[len(graph.tensors)] = theirs, tensor
                    graph.tensors.append(tensor)
                inputs.append(stand_ins[ours])
            operator.inputs = np.asarray(inputs, np.int32)
            kept.append(operator)
        graph.operators = kept
        graph.inputs = np.asarray(list(self._feeds), np.int32)
        graph.outputs = np.asarray([index for one in measured for index in one.ours.outputs], np.int32)
        whole.subgraphs, whole.signatureDefs = [graph], None
        self._interpreter = interpreter(written(whole))

    def run(self, reference: Reference) -> None:
        """One inference of every operator, on what the float file's last run gave."""
        for index, (theirs, tensor) in self._feeds.items():
            self._interpreter.set_tensor(index, rounded(reference.value(theirs), tensor))
        self._interpreter.invoke()

    def value(self, index: int, tensor: Any) -> Floats:
        """A result as real numbers."""
        return reals(self._interpreter.get_tensor(index), tensor)


def _axes(tensor: Any, joined: int | None) -> tuple[int, ...]:
    """Axes that channels may lie along: that of a concatenation, the last, and the second."""
    rank = len(tensor.shape)
    found = [] if joined is None else [joined % rank]
    found += [rank - 1] if rank > 1 else []
    found += [1] if rank > 2 else []
    return tuple(dict.fromkeys(found))
