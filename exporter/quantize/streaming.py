"""Streaming calibration: one pass over the data, in memory that does not grow with them.

The float graph gets the tensors that need a range as further outputs. Samples run a few at a time, so that their
activations stay below a fixed size whatever the user's batch; each tensor is observed and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import StageError
from exporter.quantize.observer import Observed

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    Inputs = Mapping[str, NDArray[np.generic]]

ACTIVATION_BYTES = 32 * 2**20
"""Activations that may be alive together, outputs of the graph that is run."""
MOST_TOGETHER = 32
"""Samples that run together at most."""
SAME = 1e-3
"""Share of the largest value that kernels for another number of samples may change by rounding."""
CLIPPING = ("Relu", "Clip")
"""Operators that the quantizer folds into the node before them, whose own result then needs no range."""


def tensors_to_observe(model: onnx.ModelProto, op_types: Iterable[str], *, symmetric: bool) -> dict[str, str]:
    """The float tensors that quantization needs a range for, each with the tensor that is observed for it.

    That is the tensor itself, but for the result of a node whose only consumer clips it: both become one int8 node,
    which takes its range from what was clipped.

    Args:
        model: float graph with inferred shapes.
        op_types: operators that are quantized.
        symmetric: whether activations are symmetric, which keeps clipping operators apart from the node before.
    """
    import onnx

    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    graph = model.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    typed = {value.name for value in values if value.type.tensor_type.elem_type in floats}
    typed -= {tensor.name for tensor in graph.initializer}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    ends = {value.name for value in [*graph.input, *graph.output]}
    wanted: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in op_types:
            wanted |= {name: name for name in (*node.input, *node.output) if name in typed}
    # Backwards, so that a chain of clipping nodes ends at the last one's result.
    for name in reversed(wanted):
        uses = consumers.get(name, [])
        if not symmetric and name not in ends and len(uses) == 1 and uses[0].op_type in CLIPPING:
            wanted[name] = wanted.get(uses[0].output[0], name)
    return wanted


class Watcher:
    """A float graph that is ready to run over data and to be looked at.

    Args:
        model: float ONNX file.
        tensors: names to observe.
        histogram: keep histograms too, which all observers but min-max and moving average need.
        threads: of onnxruntime; 0 for as many as there are cores.
    """

    def __init__(self, model: Path, tensors: Sequence[str], *, histogram: bool, threads: int = 0) -> None:
        graph = _augmented(model, tensors)
        self._run = _runner(graph, model.parent, tensors, threads)
        self._split = can_split(graph)
        self._count = len(tensors)
        self._histogram = histogram

    def samples_together(self, batch: Inputs) -> int:
        """How many samples of this size may run together; takes runs of one and of two.

        Returns:
            0 where only the whole batch may run: its rows change each other, as the steps of one sequence do.
        """
        if not self._split:
            return 1
        try:
            alone = [self._run(part) for part in islice(parts(batch, 1), 2)]
            mixed = len(alone) == 2 and _mixed(self._run(next(parts(batch, 2))), *alone)
        except Exception:  # onnxruntime's own: no other number of rows may fit the model, and then none is tried.
            return 0
        alive = sum(values.nbytes for values in alone[0])
        return 0 if mixed else max(1, min(MOST_TOGETHER, ACTIVATION_BYTES // max(1, alive)))

    def states(self, batch: Inputs, step: int, first: int) -> list[tuple[Observed, Observed]]:
        """Observes one batch.

        Args:
            batch: input name to array.
            step: samples that run together; 0 for all of the batch.
            first: which of the two halves of the data its first part belongs to; parts take turns.

        Returns:
            Two states a tensor, in the order of the tensors.
        """
        # Two parts at least, so that both halves see something of every batch.
        split = self._split and step > 0
        step = min(step, max(1, -(-min(len(values) for values in batch.values()) // 2))) if split else step
        states = [(Observed(), Observed()) for _ in range(self._count)]
        for index, part in enumerate(parts(batch, step) if split else (batch,), start=first):
            for halves, values in zip(states, self._run(part), strict=True):
                halves[index % 2].add(values, histogram=self._histogram)
        return states


def observe(
    model: Path,
    tensors: Iterable[str],
    batches: Iterable[Inputs],
    *,
    histogram: bool,
    progress: Callable[[int], None],
    jobs: int = 1,
) -> dict[str, tuple[Observed, Observed]]:
    """Runs the float graph over the data and observes tensors.

    Each batch makes states of its own, which are merged in the order of the batches: the result is the same to the
    last bit however many processes took part.

    Args:
        model: float ONNX file.
        tensors: names to observe.
        batches: input name to array; shapes may differ from batch to batch.
        histogram: keep histograms too, which all observers but min-max and moving average need.
        progress: called with the number of batches done.
        jobs: processes; the data are read in this one whatever their kind, and handed out batch by batch.

    Returns:
        Two states a tensor, of every other part of the data: merged they are that of all data, compared they show how
        stable ranges are.

    Raises:
        StageError: no batch was given, or a process was ended.
    """
    names = list(tensors)
    watcher = Watcher(model, names, histogram=histogram)
    states = {name: (Observed(), Observed()) for name in names}
    done = 0
    for done, found in enumerate(_observed(watcher, model, names, batches, histogram, jobs), start=1):
        for whole, more in zip(states.values(), found, strict=True):
            for half, later in zip(whole, more, strict=True):
                half.merge(later)
        progress(done)
    if not done:
        raise StageError("there was no calibration data to run", where=model.name)
    return states


def _observed(
    watcher: Watcher, model: Path, names: list[str], batches: Iterable[Inputs], histogram: bool, jobs: int
) -> Iterator[list[tuple[Observed, Observed]]]:
    """States of each batch, in order."""
    numbered = iter(enumerate(batches))
    for index, batch in numbered:
        step = watcher.samples_together(batch)
        if jobs > 1:
            from exporter.quantize.parallel import observed_in_processes

            rest = chain([(index, batch)], numbered)
            yield from observed_in_processes(model, names, rest, histogram=histogram, step=step, jobs=jobs)
            return
        yield watcher.states(batch, step, 0)
        for later, following in numbered:
            yield watcher.states(following, step, later % 2)


def _augmented(model: Path, tensors: Iterable[str]) -> onnx.ModelProto:
    """The graph with the tensors as further outputs; weights in external data stay where they are."""
    import onnx

    proto = onnx.load(model, load_external_data=False)
    present = {value.name for value in [*proto.graph.output, *proto.graph.input]}
    typed = {value.name: value for value in proto.graph.value_info}
    for name in tensors:
        if name not in present:
            proto.graph.output.append(typed.get(name, onnx.ValueInfoProto(name=name)))
    return proto


def _runner(
    graph: onnx.ModelProto, folder: Path, tensors: Sequence[str], threads: int
) -> Callable[[Inputs], list[NDArray[np.generic]]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Weights may lie in a file beside the model, which onnxruntime cannot know of a graph that it gets as bytes.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {value.name for value in session.get_inputs()}
    fetched = [name for name in tensors if name not in inputs]

    def run(batch: Inputs) -> list[NDArray[np.generic]]:
        # Asked for nothing, onnxruntime would give everything.
        results = session.run(fetched, dict(batch)) if fetched else []
        found: dict[str, Any] = dict(zip(fetched, results, strict=True))
        return [batch[name] if name in inputs else found[name] for name in tensors]

    return run


def _mixed(
    both: list[NDArray[np.generic]], first: list[NDArray[np.generic]], second: list[NDArray[np.generic]]
) -> bool:
    """Whether two samples give other values together than one by one."""
    import numpy as np

    for together, one, other in zip(both, first, second, strict=True):
        if one.ndim == 0 or one.shape != other.shape or together.shape != (2 * len(one), *one.shape[1:]):
            continue  # No axis of samples, or not the first one.
        apart = np.concatenate([one, other])
        finite = np.abs(apart[np.isfinite(apart)].astype(np.float64))
        room = SAME * float(finite.max(initial=0.0))
        if not np.allclose(together, apart, rtol=SAME, atol=room, equal_nan=True):
            return True
    return False


def can_split(graph: onnx.ModelProto) -> bool:
    """Whether every input's first axis is dynamic, so that a batch can run in parts."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in graph.graph.input if value.name not in weights]
    return all(len(dims) > 0 and not dims[0].HasField("dim_value") for dims in shapes)


def parts(batch: Inputs, step: int) -> Iterator[Inputs]:
    """A batch in parts of at most `step` samples."""
    count = min(len(values) for values in batch.values())
    for start in range(0, count, step):
        yield {name: values[start : start + step] for name, values in batch.items()}
