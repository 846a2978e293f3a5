"""`analyze` of static ONNX files that onnxruntime runs: node by node, with the time in each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter.analysis import Analysis, DataSource, Places, rows_of
from exporter.artifacts import (
    Coverage,
    Lint,
    Manifest,
    NodeDamage,
    NodeLatency,
    QuantScheme,
    Variant,
    canonical,
    file_digest,
)
from exporter.bundle import SAMPLES
from exporter.devices import cpu_features
from exporter.measure import node_latency
from exporter.pipeline.arrays import read_groups
from exporter.pipeline.job import Job
from exporter.pipeline.quantizing import int8_model
from exporter.pipeline.ranking import ranked_batches
from exporter.pipeline.results import load_json
from exporter.pipeline.steps import Steps, versions
from exporter.plan import TargetPlan
from exporter.store import list_files
from exporter.target_api import SchemeNeed, Target, made_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

RUNTIME = "onnxruntime"
LAYOUT = ("QuantizeLinear", "DequantizeLinear", "Constant")


class _Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The file to look at, and what is known of it."""

    source: str
    target: str
    variant: str
    model: Path
    float_model: Path
    scheme: QuantScheme
    coverage: Coverage
    lints: tuple[Lint, ...]
    requires: tuple[str, ...]
    threads: int


def nodes_of_plan(job: Job, target: Target, target_plan: TargetPlan, wanted: SchemeNeed, source: str) -> Analysis:
    """Looks at the int8 file that a plan makes, before any repair.

    Args:
        job: what would be built.
        target: for which target.
        target_plan: the plan's values for it.
        wanted: which of the files that the target asks for.
        source: how to call the plan.
    """
    need, quantize = target.requires(target_plan.options), target_plan.quantize
    inputs = job.inputs(target_plan.export)
    checked, data = job.check_data(inputs)
    float_model = job.float_model(inputs, checked, data, target_plan.export, need)
    samples = checked.calibration.samples if checked.calibration else 0
    model = int8_model(job, inputs, float_model, wanted, quantize.scheme, samples)
    prepared = model.prepared
    assert prepared is not None, "static files know what they were quantized from"
    judged = job.data.judged
    subject = _Subject(
        source=source,
        target=target.name,
        variant=wanted.name,
        model=model.file.path,
        float_model=float_model.path,
        scheme=model.file.scheme,
        coverage=model.file.coverage,
        lints=model.lints,
        requires=wanted.requires,
        threads=target_plan.profile.threads,
    )
    parts = {"model": model.content, **job.data.judged_parts(), "inputs": inputs}
    damages, seen = _damages(job.steps, subject, parts, prepared, lambda: ranked_batches(job, inputs))
    groups = [f"{index}/inputs" for index in range(checked.cases)]
    return _analysis(job.steps, subject, damages, seen, judged, list(read_groups(data / "cases.npz", groups)))


def nodes_of_bundle(bundle: Path, manifest: Manifest, chosen: Variant, steps: Steps) -> Analysis:
    """Looks at an int8 file of a bundle, on the bundle's own samples.

    Args:
        bundle: its folder, checked.
        manifest: what it holds.
        chosen: a static variant.
        steps: runs the steps.
    """
    subject = _bundled(bundle, manifest, chosen)
    groups = [f"{index}/inputs" for index in range(manifest.samples)]
    cases = list(read_groups(bundle / SAMPLES, groups))
    parts = {
        "int8": [entry.sha256 for entry in list_files(subject.model.parent)],
        "float": [entry.sha256 for entry in list_files(subject.float_model.parent)],
        "samples": file_digest(bundle / SAMPLES),
        "equalize": subject.scheme.equalize,
    }
    damages, seen = _damages(steps, subject, parts, None, lambda: iter(cases))
    return _analysis(steps, subject, damages, seen, "samples of the bundle", cases)


def _bundled(bundle: Path, manifest: Manifest, chosen: Variant) -> _Subject:
    assert chosen.scheme is not None, "float variants are not chosen"
    floats = next(one for one in manifest.variants if one.name == manifest.float_variant)
    return _Subject(
        source=str(bundle),
        target=manifest.target,
        variant=chosen.name,
        model=bundle / chosen.main,
        float_model=bundle / floats.main,
        scheme=chosen.scheme,
        coverage=chosen.coverage or Coverage(eligible=0, quantized=0),
        lints=chosen.lints,
        requires=chosen.requires,
        threads=int(manifest.plan.get("profile", {}).get("threads", 1)),
    )


class _Damages(msgspec.Struct, frozen=True, kw_only=True):
    """damage.json of the analysis: noise by node, and on how many samples."""

    samples: int
    nodes: tuple[NodeDamage, ...]


def _damages(
    steps: Steps,
    subject: _Subject,
    parts: Mapping[str, object],
    prepared: Path | None,
    batches: Callable[[], Iterator[Arrays]],
) -> tuple[tuple[NodeDamage, ...], int]:
    """Noise of each node with its causes; `prepared` is made from the float model where there is none yet."""
    label = f"noise of the nodes of {subject.variant}"

    def build(folder: Path) -> None:
        from exporter.quantize import node_damage, prepare_float

        samples = 0

        def counted() -> Iterator[Arrays]:
            nonlocal samples
            for batch in batches():
                samples += next((len(values) for values in batch.values() if values.ndim), 1)
                yield batch

        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="prepared-") as temp:
            floats = prepared or prepare_float(subject.float_model, Path(temp), equalized=subject.scheme.equalize)
            found = node_damage(floats, subject.model, counted(), causes=True, progress=steps.progress(label))
        (folder / "damage.json").write_bytes(canonical(_Damages(samples=samples, nodes=found)))

    everything = {**parts, "versions": versions("onnxruntime", "onnx")}
    stored = steps.stored("analyze", 1, everything, build, label=label)
    loaded = load_json(stored.folder / "damage.json", _Damages)
    return loaded.nodes, loaded.samples


def _analysis(
    steps: Steps,
    subject: _Subject,
    damages: tuple[NodeDamage, ...],
    samples: int,
    data: DataSource,
    cases: Sequence[Arrays],
) -> Analysis:
    import onnx

    from exporter.onnx_export import module_paths

    latencies, why = _latencies(steps, subject, cases)
    graph = onnx.load(subject.model, load_external_data=False).graph
    places = tuple(
        Places(node=node.name, op=node.op_type, outputs=tuple(_plain(name) for name in node.output))
        for node in graph.node
        if node.op_type not in LAYOUT
    )
    reasons = {one.node: one.reason for one in subject.coverage.skipped}
    added: dict[str, float] = {}
    for latency in latencies:
        if latency.node is None:
            added[latency.op] = added.get(latency.op, 0.0) + latency.share
    version = versions(RUNTIME)[RUNTIME]
    threads = f"{subject.threads} thread{'s' if subject.threads > 1 else ''}"
    return Analysis(
        source=subject.source,
        target=subject.target,
        variant=subject.variant,
        precision="int8",
        scheme=subject.scheme,
        data=data,
        samples=samples,
        nodes=rows_of(places, damages, latencies, module_paths(subject.float_model), reasons),
        added=dict(sorted(added.items(), key=lambda item: -item[1])),
        runtime=None if why else f"{RUNTIME} {version}, {threads}, {os.cpu_count()} cores",
        why=why,
        lints=subject.lints,
    )


def _latencies(
    steps: Steps, subject: _Subject, cases: Sequence[Arrays]
) -> tuple[tuple[NodeLatency, ...], str | None]:
    """Time by node, or why it was not measured."""
    if not made_for(subject.requires, cpu_features()):
        needs = " and ".join(subject.requires)
        return (), f"{subject.variant} is made for CPUs with {needs}, and this one has not"
    single = [case for case in cases if _rows(case) == 1] or list(cases)
    with steps.measuring(f"time in the nodes of {subject.variant}"), steps.log.capture():
        return node_latency(subject.model, single, threads=subject.threads), None


def _rows(case: Arrays) -> int:
    return next((len(values) for values in case.values() if values.ndim), 1)


def _plain(tensor: str) -> str:
    """The float model's name of a tensor that the quantizer renamed at the end of the graph."""
    return tensor.removesuffix("_QuantizeLinear_Input")
