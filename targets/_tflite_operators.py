"""The operators of a quantized .tflite file: their integers, and the noise that these bring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.artifacts import NodeDamage
from exporter.masks import masked_alike
from exporter.quantize import decibels
from exporter.target_api import OperatorFacts
from targets import _tflite
from targets._tflite_damage import damage_by_place
from targets._tflite_running import Reference, interpreter, paired, written
from targets._tflite_values import BITS, is_constant, range_of, reals, rounded, scale_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]


def operator_facts(float_file: Path, quantized: Path, batches: Iterable[Arrays]) -> tuple[OperatorFacts, ...]:
    """What is known of each operator that computes real numbers, in the order in which they run.

    Args:
        float_file: the float .tflite that the other was made from.
        quantized: a static or dynamic file with integers.
        batches: inputs by name, as the files take them.

    Raises:
        StageError: no batch was given, or the operators of the two files are not the same.
    """
    whole = _Whole(float_file, quantized)
    damages = damage_by_place(float_file, quantized, batches, whole.watch)
    model = _tflite.read_model(quantized)
    facts = []
    for number, graph in enumerate(model.subgraphs):
        for place, operator in enumerate(_tflite.graph_operators(model, graph)):
            if _tflite.computes(operator, dynamic=not any(kind in BITS for kind in operator.results)):
                first = number == 0
                damage, noise = (damages.get(place), whole.decibels(place)) if first else (None, None)
                facts.append(_facts(model, graph, operator, damage, noise))
    return tuple(facts)


class _Whole:
    """The quantized file as it is, but that all results can be read: how far they are from those of the float file.

    They are given out rather than preserved, which would keep the delegate's kernels away.
    """

    def __init__(self, float_file: Path, quantized: Path) -> None:
        whole = _tflite.read_model(quantized)
        graph = whole.subgraphs[0]
        self._results = {
            place: [(graph.tensors[result], result, wanted) for result, wanted in _float_results(graph, ours, own)]
            for place, ours, own in paired(_tflite.read_model(float_file), whole, quantized.name)
        }
        inputs = ((_tflite.text(one.name), int(one.tensorIndex)) for one in whole.signatureDefs[0].inputs)
        self._inputs = {name: (index, graph.tensors[index]) for name, index in inputs}
        given = (*map(int, graph.outputs), *(result for found in self._results.values() for _, result, _ in found))
        graph.outputs = np.asarray(list(dict.fromkeys(given)), np.int32)
        whole.signatureDefs = None
        self._interpreter = interpreter(written(whole))
        self._sums = {place: np.zeros(2) for place in self._results}

    def watch(self, reference: Reference, batch: Arrays) -> None:
        """Runs a batch that the float file has run."""
        for name, (index, tensor) in self._inputs.items():
            self._interpreter.set_tensor(index, rounded(batch[name], tensor))
        self._interpreter.invoke()
        for place, results in self._results.items():
            for tensor, result, wanted in results:
                values = reference.value(wanted).astype(np.float64)
                found = reals(self._interpreter.get_tensor(result), tensor)
                masks = (np.isinf(values) & (found == values)) | masked_alike(found, values)
                # Other infinities leave no number, which says that nothing is known.
                with np.errstate(invalid="ignore"):
                    sides = np.where(masks, 0.0, values), np.where(masks, 0.0, found - values)
                self._sums[place] += [float(np.square(one).sum()) for one in sides]

    def decibels(self, place: int) -> float | None:
        """SQNR of an operator's results, masks of both files left out; None where there is no noise, or no number."""
        return decibels(*map(float, self._sums[place])) if place in self._sums else None


def _float_results(graph: Any, ours: _tflite.Operator, own: _tflite.Operator) -> Iterator[tuple[int, int]]:
    """Results of an operator that are real numbers: their tensors in the quantized graph and in the float one."""
    for result, wanted, kind in zip(ours.outputs, own.outputs, own.results, strict=True):
        if kind in _tflite.FLOATS and not graph.tensors[result].isVariable:
            yield result, wanted


def _facts(
    model: Any, graph: Any, operator: _tflite.Operator, damage: NodeDamage | None, noise: float | None
) -> OperatorFacts:
    taken = [graph.tensors[index] for index in operator.inputs if index >= 0]
    constant = [_tflite.tensor_type(one) for one in taken if is_constant(model, one)]
    results = [graph.tensors[index] for index in operator.outputs]
    integers = next((one for one in results if _tflite.tensor_type(one) in BITS), None)
    scale = None if integers is None else scale_of(integers)
    return OperatorFacts(
        node=operator.name,
        op=operator.kind,
        bits=None if integers is None else BITS[_tflite.tensor_type(integers)],
        weight_bits=min((BITS[one] for one in constant if one in BITS), default=None),
        range=None if integers is None else range_of(integers),
        scale=None if scale is None else scale[0],
        zero_point=None if scale is None else scale[1],
        damage=damage,
        accumulated_db=noise,
    )
