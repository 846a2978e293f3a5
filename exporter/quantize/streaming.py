"""Streaming calibration: one pass over the data, in memory that does not grow with them.

The float graph gets the tensors that need a range as further outputs. Samples run a few at a time, so that their
activations stay below a fixed size whatever the user's batch; each tensor is observed and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


def observe(
    model: Path,
    tensors: Iterable[str],
    batches: Iterable[Inputs],
    *,
    histogram: bool,
    progress: Callable[[int], None],
) -> dict[str, tuple[Observed, Observed]]:
    """Runs the float graph over the data and observes tensors.

    Args:
        model: float ONNX file.
        tensors: names to observe.
        batches: input name to array; shapes may differ from batch to batch.
        histogram: keep histograms too, which all observers but min-max and moving average need.
        progress: called with the number of batches done.

    Returns:
        Two states a tensor, of every other sample: merged they are that of all data, compared they show how stable
        ranges are.

    Raises:
        StageError: no batch was given.
    """
    names = list(tensors)
    graph = _augmented(model, names)
    run = _runner(graph, model.parent, names)
    split = can_split(graph)
    states = {name: (Observed(), Observed()) for name in names}
    step, seen = 1, 0
    for done, batch in enumerate(batches, start=1):
        for part in parts(batch, step) if split else (batch,):
            outputs = run(part)
            for name, values in zip(names, outputs, strict=True):
                states[name][seen % 2].add(values, histogram=histogram)
            if not seen:
                alive = sum(values.nbytes for values in outputs)
                step = max(1, min(MOST_TOGETHER, ACTIVATION_BYTES // max(1, alive)))
            seen += 1
        progress(done)
    if not seen:
        raise StageError("there was no calibration data to run", where=model.name)
    return states


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
    graph: onnx.ModelProto, folder: Path, tensors: Sequence[str]
) -> Callable[[Inputs], list[NDArray[np.generic]]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
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
