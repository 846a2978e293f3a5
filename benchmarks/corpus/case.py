"""What one model of the corpus brings to the comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its data, and the metric that they allow.

    Attributes:
        task: what the model does and on which data, for the table.
        source: `file.py:factory` or an `.onnx` file.
        weights: state dict for a factory.
        calibration: input name to samples, (n, ...).
        evaluation: other samples than those of calibration, with `labels` where there are true ones.
        metric: `accuracy`, `file.py:function`, or `agreement` where there are no labels: the share of samples
            with the float model's arg-max.
        shown: name of the metric in the table.
        shapes: input name to its shape, where an axis other than the first is dynamic.
        note: what a reader must know about the data.
        batch: samples run together.
    """

    task: str
    source: str
    calibration: Arrays
    evaluation: Arrays
    weights: Path | None = None
    metric: str = "accuracy"
    shown: str = "accuracy"
    shapes: dict[str, list[int | str]] = field(default_factory=dict)
    note: str = ""
    batch: int = 32

    @property
    def labelled(self) -> bool:
        """Whether there are true labels."""
        return "labels" in self.evaluation
