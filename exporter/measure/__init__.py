"""Fidelity of a model to the one it was made from, and the gates that it must pass."""

from exporter.measure.fidelity import measure_fidelity
from exporter.measure.gate import apply_gate
from exporter.measure.metric import Metric, compare_metric, load_metric, metric_digest
from exporter.measure.operators import node_latency

__all__ = [
    "Metric",
    "apply_gate",
    "compare_metric",
    "load_metric",
    "measure_fidelity",
    "metric_digest",
    "node_latency",
]
