"""Which nodes of an int8 model bring the most noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import NodeDamage, TensorSpec, canonical
from exporter.pipeline.job import Job
from exporter.pipeline.results import Int8Model, load_json
from exporter.pipeline.steps import versions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

RANKED_SAMPLES = 128
"""Samples that nodes are ranked on: enough to tell the worst ones, whose noise is far above the others'."""


def rank_nodes(job: Job, inputs: tuple[TensorSpec, ...], model: Int8Model) -> tuple[NodeDamage, ...]:
    """Noise of each int8 node of a static model, worst first, on the first samples that fidelity is judged on.

    Args:
        job: the build.
        inputs: of the model.
        model: a static one, which knows the float file that it was made from.
    """
    label = f"rank the nodes of {model.file.name} by their noise"
    prepared = model.prepared
    assert prepared is not None, "dynamic models are not ranked"

    def build(folder: Path) -> None:
        from exporter.quantize import node_damage

        found = node_damage(
            prepared, model.file.path, ranked_batches(job, inputs), progress=job.steps.progress(label)
        )
        (folder / "damage.json").write_bytes(canonical(found))

    parts = {
        "model": model.content,
        **job.data.judged_parts(),
        "inputs": inputs,
        "versions": versions("onnxruntime", "onnx"),
    }
    stored = job.steps.stored("rank", 1, parts, build, label=label)
    return load_json(stored.folder / "damage.json", tuple[NodeDamage, ...])


def ranked_batches(job: Job, inputs: tuple[TensorSpec, ...]) -> Iterator[Arrays]:
    """The first samples that fidelity is judged on."""
    fixed = [spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)]
    batch_size = fixed[0] if fixed else job.data.sections[job.data.judged].batch_size
    return islice(job.data.judged_batches(inputs), -(-RANKED_SAMPLES // batch_size))
