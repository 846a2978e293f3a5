"""`report`: everything that is known of the bundles in a folder, as one page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from exporter.artifacts import NodeLatency, Variant
from exporter.bundle import MANIFEST, SAMPLES, check_bundle, is_packed, read_view
from exporter.devices import cpu_features
from exporter.disk import write_synced, writing_failed
from exporter.errors import BundleError, ExporterError, InputError, OutputError, shorten
from exporter.history import History, now
from exporter.measure import node_latency
from exporter.pipeline.arrays import read_groups
from exporter.pipeline.steps import Steps, versions
from exporter.report import Findings
from exporter.target_api import made_for
from exporter.views import BundleView

RUNTIME = "onnxruntime"


def findings(folder: Path, steps: Steps, *, history: bool, operators: bool) -> Findings:
    """Reads the bundles of a folder, or the one bundle that it is.

    Args:
        folder: the output folder of a build, or a bundle.
        steps: its store has the records of builds; measures operators.
        history: also what was measured of these models before.
        operators: measure time by operator now, in runs of their own.

    Raises:
        InputError: there is no bundle that can be read.
    """
    views, unreadable = _views(folder)
    records = History(steps.store.root)
    builds = tuple(records.builds())
    exporter = versions("edge-exporter")["edge-exporter"]
    return Findings(
        made=f"Made from {folder} by edge-exporter {exporter} at {now()[:19]} UTC",
        views=views,
        unreadable=unreadable,
        builds=builds,
        measurements=tuple(records.measurements()) if history else None,
        operators={view.manifest.digest: _operators(view, steps) for view in views} if operators else {},
    )


def check_place(output: Path) -> None:
    """Refuses a place for a report where it would do harm, before any work.

    Raises:
        OutputError: it lies in a bundle, where it would count as added, or is a folder, or is in none.
    """
    for parent in output.absolute().parents:
        if (parent / MANIFEST).is_file():
            raise OutputError(
                "a report inside a bundle would count as a file that was added",
                where=str(output),
                hint="choose another place with --output",
            )
    if output.is_dir() or not output.absolute().parent.is_dir():
        what = "is a folder" if output.is_dir() else "lies in a folder that is not there"
        raise OutputError(f"the report's file {what}", where=str(output), hint="name a file with --output")


def write_report(output: Path, text: str) -> None:
    """Writes a report, in place of an earlier one.

    Raises:
        OutputError, StageError: it cannot be written.
    """
    temp = output.with_name(f".{output.name}.part")
    try:
        write_synced(temp, text.encode("utf-8"))
        temp.replace(output)
    except OSError as error:
        raise writing_failed(error, "the report", output.parent) from error
    finally:
        temp.unlink(missing_ok=True)


def _views(folder: Path) -> tuple[tuple[BundleView, ...], tuple[tuple[str, str], ...]]:
    hint = "name the folder that `edge-exporter build` writes to (bundles, or --output)"
    if is_packed(folder):
        raise InputError("the bundle is packed", where=str(folder), hint=f"`edge-exporter unpack {folder}`")
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder), hint=hint)
    if (folder / MANIFEST).is_file():
        return (read_view(folder.absolute()),), ()
    views, unreadable = [], []
    for path in sorted(folder.absolute().iterdir()):
        if path.name.startswith(".") or not (path / MANIFEST).is_file():
            continue
        try:
            views.append(read_view(path))
        except BundleError as error:
            unreadable.append((path.name, f"{error.what} ({shorten(error.where, 200)})"))
    if not views:
        why = "; ".join(f"{name}: {reason}" for name, reason in unreadable) or "no folder in it has a manifest.json"
        if packed := next(filter(is_packed, sorted(folder.iterdir())), None):
            hint = f"`edge-exporter unpack {packed}`, then the same again"
        raise InputError("there is no bundle to report on", where=str(folder), why=why, hint=hint)
    views.sort(key=lambda view: (view.manifest.name, view.manifest.target, view.path.name))
    return tuple(views), tuple(unreadable)


def _operators(view: BundleView, steps: Steps) -> Mapping[str, tuple[NodeLatency, ...] | str]:
    """Time by operator of each variant, or why it was not measured."""
    check_bundle(view.path)
    return {variant.name: _of_variant(view, variant, steps) for variant in view.manifest.variants}


def _of_variant(view: BundleView, variant: Variant, steps: Steps) -> tuple[NodeLatency, ...] | str:
    if variant.runtime != RUNTIME or not variant.main.endswith(".onnx"):
        return f"not measured: only .onnx files on {RUNTIME} have a profiler here"
    if not made_for(variant.requires, cpu_features()):
        return f"not measured: it is made for CPUs with {' and '.join(variant.requires)}"
    groups = [f"{index}/inputs" for index in range(view.manifest.samples)]
    threads = int(view.manifest.plan.get("profile", {}).get("threads", 1))
    try:
        label = f"{view.manifest.target}: time by operator of {variant.name}"
        with steps.measuring(label), steps.guarded(label):
            return node_latency(
                view.path / variant.main, list(read_groups(view.path / SAMPLES, groups)), threads=threads
            )
    except ExporterError as error:
        return f"not measured: {error.what}"
