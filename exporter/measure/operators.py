"""Time in each operator, from onnxruntime's profiler: in a run of its own, never the one that is timed."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import NodeLatency

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    Inputs = Mapping[str, NDArray[np.generic]]

WARM_UP = 3
"""Runs that are left out: the first ones allocate."""
RUNS = 20
SECONDS = 1.0
MOST_RUNS = 1000
"""More make no median better, and take longer to read than to run."""
MOST_EVENTS = 200_000
"""The profiler stops at a million."""
PAIR = {"QuantizeLinear", "DequantizeLinear"}
ADDED = {*PAIR, "ReorderInput", "ReorderOutput", "Cast"}
"""Operators that onnxruntime adds between others."""
SUFFIXES = re.compile(r"(_token_\d+|_nchwc|/duplicated|_fused)$")
PAIRED = re.compile(r"_(QuantizeLinear_(Output|Input)|DequantizeLinear_Output)$")


def node_latency(model: Path, samples: Sequence[Inputs], *, threads: int = 1) -> tuple[NodeLatency, ...]:
    """Runs a file under onnxruntime's profiler and tells where the time goes, longest first.

    The profiler itself costs time at every node, so that shares are right and sums too large.

    Args:
        model: an ONNX file.
        samples: inputs, run in turn.
        threads: of the runtime.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="profile-") as temp:
        optimised = Path(temp) / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(temp) / "profile")
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(optimised, load_external_data=False).graph
        _run(session, samples, len(graph.node))
        written: Any = session.end_profiling()  # type: ignore[no-untyped-call]
        events = json.loads(Path(written).read_text(encoding="utf-8"))
    origins = Origins(onnx.load(model, load_external_data=False).graph)
    nodes = {node.name: node for node in graph.node}
    medians = _medians(events)
    total = sum(time for _, time in medians.values()) or 1.0
    found = [
        NodeLatency(
            node=origins.of(name, nodes[name].output if name in nodes else (), op),
            name=name,
            op=op,
            median_ns=round(spent * 1000),
            share=spent / total,
        )
        for name, (op, spent) in medians.items()
    ]
    return tuple(sorted(found, key=lambda one: -one.median_ns))


class Origins:
    """Finds the node of a file that a node of the optimised graph came from."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        kept = [node for node in graph.node if node.op_type not in PAIR]
        self._names: dict[str, str] = {node.name: node.name for node in kept if node.name}
        self._tensors: dict[str, str] = {
            PAIRED.sub("", name): node.name for node in kept for name in node.output if name
        }

    def of(self, name: str, outputs: Iterable[str], op: str) -> str | None:
        """The node's name; None when onnxruntime made it by itself.

        Args:
            name: in the optimised graph, most often the node's or its result's with something at its end.
            outputs: its results, which keep their names where several nodes became one.
            op: its operator.
        """
        if name in self._names:
            return name
        if op in ADDED:
            return None
        plain = name
        while (shorter := SUFFIXES.sub("", plain)) != plain:
            plain = shorter
        for candidate in [plain, *(PAIRED.sub("", output) for output in outputs)]:
            found = self._names.get(candidate) or self._tensors.get(candidate)
            if found is not None:
                return found
        head = plain.partition("/")[0]
        return self._names.get(head)


def _run(session: Any, samples: Sequence[Inputs], nodes: int) -> None:
    started = time.perf_counter()
    for runs, sample in enumerate(cycle(samples), start=1):
        session.run(None, dict(sample))
        enough = runs >= RUNS + WARM_UP and time.perf_counter() - started >= SECONDS
        if enough or runs >= MOST_RUNS or runs * max(1, nodes) >= MOST_EVENTS:
            return


def _medians(events: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, float]]:
    """Operator and median microseconds of a run by node; a node in a loop counts all its turns."""
    runs = sorted((one["ts"], one["ts"] + one["dur"]) for one in events if one["name"] == "model_run")
    runs = runs[WARM_UP:] or runs
    spent: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    ops: dict[str, str] = {}
    index = 0
    for event in sorted((one for one in events if one["name"].endswith("_kernel_time")), key=lambda one: one["ts"]):
        while index < len(runs) and event["ts"] > runs[index][1]:
            index += 1
        if index == len(runs):
            break
        if event["ts"] < runs[index][0]:
            continue
        name = event["name"].removesuffix("_kernel_time")
        ops[name] = event["args"]["op_name"]
        spent[name][index] += event["dur"]
    return {
        name: (ops[name], statistics.median(by_run.get(run, 0.0) for run in range(len(runs))))
        for name, by_run in spent.items()
    }
