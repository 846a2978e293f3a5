"""Fidelity of a model to the one it was made from, and the gates that it must pass."""

from exporter.measure.fidelity import measure_fidelity
from exporter.measure.gate import apply_gate
from exporter.measure.metric import Metric, compare_metric, load_metric, metric_digest
from exporter.measure.operators import node_latency
from exporter.measure.racing import latency_ratio
from exporter.measure.ratios import (
    LEAST_ROUNDS,
    Ratio,
    bootstrap_ratio,
    bootstrap_ratios,
    paired_ratio,
    sample_quantile,
)

__all__ = [
    "LEAST_ROUNDS",
    "Metric",
    "Ratio",
    "apply_gate",
    "bootstrap_ratio",
    "bootstrap_ratios",
    "compare_metric",
    "latency_ratio",
    "load_metric",
    "measure_fidelity",
    "metric_digest",
    "node_latency",
    "paired_ratio",
    "sample_quantile",
]
