"""One graph that runs a float model, its QDQ form, and each int8 node by itself on the float model's activations.

Noise is summed inside of the graph, so that what leaves it is a few numbers a node, whatever the activations' size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from exporter.quantize.paired_graph import INT8, LAYOUT, PairedGraph
from exporter.quantize.streaming import CLIPPING


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One result of an int8 node.

    Attributes:
        tensor: its name in the float model.
        bits: width of its int8 form, or of the node's first quantized input where the result stays float.
        range: lowest and highest value that the int8 form holds, or None where the result stays float.
        size: graph output with the number of values.
        energies: graph outputs with sums of squares along one axis each: of the float tensor, then of the noise
            of the node's own quantization.
        groups: for a Concat, its axis and the tensors that it joins, whose lengths `lengths` are graph outputs.
        noise: graph outputs with the total noise by cause: `accumulated`, and where asked `weights`, `result`.
    """

    tensor: str
    bits: int
    range: tuple[float, float] | None
    size: str
    energies: tuple[tuple[str, str], ...]
    noise: dict[str, str]
    lengths: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An int8 node and its results."""

    node: str
    op: str
    results: tuple[Compared, ...]


class DamageGraph(PairedGraph):
    """Builds the graph.

    Args:
        float_model: with inferred shapes; the names of its tensors are those of the QDQ model.
        int8_model: the QDQ form.
        causes: tell noise by its cause, for which nodes with weights run once more.
    """

    def __init__(self, float_model: onnx.ModelProto, int8_model: onnx.ModelProto, *, causes: bool) -> None:
        super().__init__(float_model, int8_model)
        self._ends = {value.name for value in float_model.graph.output}
        self._sums: dict[tuple[str, int | None], str] = {}
        self.measured = tuple(self._measure(causes))

    def _measure(self, causes: bool) -> Iterator[Measured]:
        for node in self._int8.nodes:
            if node.op_type in (*LAYOUT, "Identity") or any(a.HasField("g") or a.graphs for a in node.attribute):
                continue
            chains = [self._int8.origin(name)[1] for name in node.input]
            results = [name for name in node.output if self._float_name(name) in self._types]
            if any(chains) and results:
                bits = next(self._bits(chain) for chain in chains if chain)
                yield Measured(
                    node=node.name.removeprefix(INT8),
                    op=node.op_type,
                    results=tuple(self._compare(node, results, bits, causes)),
                )

    def _compare(self, node: onnx.NodeProto, results: list[str], bits: int, causes: bool) -> Iterator[Compared]:
        own = self._run(node, [self._quantized_input(name) for name in node.input])
        weighted = any(self._constant(name) for name in node.input) and causes
        by_weights = self._run(node, [self._float_input(name) for name in node.input]) if weighted else {}
        for name in results:
            tensor = self._float_name(name)
            # What a clipping takes off is no noise: the pair before it has the range of what is left.
            clips = self._clips_behind(tensor)
            compared = clips[-1].output[0] if clips else tensor
            reference, rank = self._as_float(compared, compared), self._types[compared][1]
            pair = self._int8.pair_after(name)
            after = pair[-1].output[0] if pair else name
            noise = {"accumulated": self._noise(self._through(clips, after), compared)}
            if by_weights:
                exact = self._clipped(by_weights[name], tensor, node.op_type)
                noise["weights"] = self._noise(self._through(clips, exact), compared)
            if pair and causes:
                noise["result"] = self._noise(self._through([*pair, *clips], tensor), compared)
            local = self._difference(self._through([*pair, *clips], own[name]), compared)
            axes: list[int | None] = [*dict.fromkeys((1, rank - 1))] if rank is not None and rank >= 2 else [None]
            lengths: tuple[str, ...] = ()
            if node.op_type == "Concat" and rank is not None and rank >= 2:
                axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis") % rank
                axes = [axis, *(one for one in axes if one != axis)]
                joined = [self._float_name(self._int8.origin(one)[0]) for one in node.input]
                if all(one in self.float_names for one in joined):
                    lengths = tuple(self._length(one, axis) for one in joined)
            yield Compared(
                tensor=tensor,
                bits=self._bits(pair) if pair else bits,
                range=self._range(pair[0]) if pair else None,
                size=self._node("Size", [tensor]),
                energies=tuple((self._sum(reference, rank, axis), self._sum(local, rank, axis)) for axis in axes),
                noise=noise,
                lengths=lengths,
            )

    def finish(self) -> onnx.ModelProto:
        """The graph with all that `measured` names as its outputs."""
        names: dict[str, None] = {}
        for node in self.measured:
            for one in node.results:
                names |= dict.fromkeys([one.size, *one.lengths, *one.noise.values()])
                names |= dict.fromkeys(name for pair in one.energies for name in pair)
        self.model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return self.model

    def _clipped(self, name: str, tensor: str, op: str) -> str:
        """The clipping that the float model does between a node and its result, and that a pair's range does here."""
        folded: list[onnx.NodeProto] = []
        node = self._float.producer.get(tensor)
        while node is not None and node.op_type in CLIPPING and node.op_type != op:
            folded.insert(0, node)
            node = self._float.producer.get(node.input[0])
        return self._through(folded, name)

    def _clips_behind(self, tensor: str) -> list[onnx.NodeProto]:
        """The Clip that alone reads a tensor of the float model, where the int8 model has it too; or nothing."""
        readers = self._float.readers.get(tensor, [])
        alone = len(readers) == 1 and readers[0].op_type == "Clip" and readers[0].output[0] in self._types
        kept = alone and any(node.name == f"{INT8}{readers[0].name}" for node in self._int8.nodes)
        return readers if kept and tensor not in self._ends else []

    def _difference(self, name: str, tensor: str) -> str:
        return self._node("Sub", [self._as_float(name, tensor), self._as_float(tensor, tensor)])

    def _noise(self, name: str, tensor: str) -> str:
        return self._sum(self._difference(name, tensor), None, None)

    def _sum(self, name: str, rank: int | None, axis: int | None) -> str:
        """The sum of squares over all axes but one."""
        if (name, axis) not in self._sums:
            axes = [] if rank is None or axis is None else [one for one in range(rank) if one != axis]
            self._sums[name, axis] = self._reduced("ReduceSumSquare", name, axes)
        return self._sums[name, axis]

    def _length(self, name: str, axis: int) -> str:
        return self._node("Gather", [self._node("Shape", [name]), self._constant_of(axis)])
