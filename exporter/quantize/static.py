"""onnxruntime's static quantization to QDQ form."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import Coverage, QuantScheme
from exporter.errors import InputError, StageError, shorten
from exporter.quantize.biases import clipped_biases, widen_scales
from exporter.quantize.correcting import correct_biases
from exporter.quantize.coverage import OVERFLOW, coverage_of, quantizable_ops
from exporter.quantize.details import check_names, one_scale, quant_type
from exporter.quantize.float_results import release_results
from exporter.quantize.kept import kept_in_float
from exporter.quantize.naming import sort_nodes
from exporter.quantize.opset import PER_CHANNEL_OPSET, opset_of
from exporter.quantize.prepare import PREPARED, external_size, prepare_float, rewrite
from exporter.quantize.shielding import shield_floats
from exporter.quantize.states import States, load_states, merged, save_states
from exporter.quantize.streaming import observe, tensors_to_observe

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    Inputs = Mapping[str, NDArray[np.generic]]

STATES = "states.npz"


def quantize_static(
    model: Path,
    output: Path,
    *,
    scheme: QuantScheme,
    batches: Callable[[], Iterable[Inputs]],
    progress: Callable[[int], None],
) -> Coverage:
    """Calibrates and quantizes a float ONNX file in one go.

    See `calibrate`, `quantize_calibrated` and `correct_biases`; data are read twice where biases are corrected.
    """
    with tempfile.TemporaryDirectory(dir=output.parent, prefix="calibrated-") as folder:
        calibrate(
            model,
            Path(folder),
            histogram=scheme.needs_histogram,
            symmetric=scheme.symmetric_activations,
            equalized=scheme.equalize,
            batches=batches(),
            progress=progress,
        )
        coverage = quantize_calibrated(Path(folder), output, scheme=scheme)
        if scheme.correct_biases:
            correct_biases(Path(folder) / PREPARED, output, batches())
        return coverage


def calibrate(
    model: Path,
    folder: Path,
    *,
    histogram: bool,
    symmetric: bool,
    equalized: bool = False,
    batches: Iterable[Inputs],
    progress: Callable[[int], None],
    jobs: int = 1,
) -> None:
    """Prepares a float ONNX file and observes its tensors on the calibration data.

    Args:
        model: float ONNX file with the user's input names.
        folder: where prepared.onnx and states.npz are written.
        histogram: keep histograms, which all observers but min-max and moving average need.
        symmetric: activations will be symmetric, which makes the quantizer ask for more tensors.
        equalized: even out channels between neighbouring layers first.
        batches: the calibration batches, input name to array.
        progress: called with the number of batches that were observed so far.
        jobs: processes that observe; they change nothing in the result.

    Raises:
        StageError: onnxruntime could not prepare or run the model, or there was no data.
        ExporterError: whatever `batches` raises.
    """
    import onnx

    prepared = prepare_float(model, folder, equalized=equalized)
    tensors = tensors_to_observe(
        onnx.load(prepared, load_external_data=False), quantizable_ops(), symmetric=symmetric
    )
    seen = observe(
        prepared, dict.fromkeys(tensors.values()), batches, histogram=histogram, progress=progress, jobs=jobs
    )
    save_states(folder / STATES, {name: seen[observed] for name, observed in tensors.items()})


def quantize_calibrated(folder: Path, output: Path, *, scheme: QuantScheme) -> Coverage:
    """Quantizes what `calibrate` prepared, with the ranges that the scheme's observer reads off its states.

    Biases stay as they are, also where the scheme says otherwise: that takes data.

    Args:
        folder: what `calibrate` wrote.
        output: where the QDQ file is written.
        scheme: types, granularity, observer, nodes to leave in float.

    Returns:
        Which nodes became int8.

    Raises:
        InputError: the scheme names a node, tensor or operator that does not exist, or the model's opset is too old.
        StageError: onnxruntime failed.
    """
    import onnx

    prepared = folder / PREPARED
    states = load_states(folder / STATES)
    model = onnx.load(prepared, load_external_data=False)
    _check_opset(model, scheme)
    check_names(model.graph, scheme, states)
    left = kept_in_float(model.graph, states, scheme)
    overrides = {**one_scale(model.graph, scheme), **_softmax_ranges(model.graph, states, scheme)}
    _quantize(prepared, states, output, scheme, overrides, left)
    if overflowing := _mend_biases(prepared, output):
        left |= dict.fromkeys(overflowing, OVERFLOW)
        _quantize(prepared, states, output, scheme, overrides, left)
        _mend_biases(prepared, output)
    _release(model, output)
    return coverage_of(output, scheme, left)


def _mend_biases(prepared: Path, output: Path) -> list[str]:
    """Makes biases fit into 32 bits where onnxruntime cut them; names of nodes where that cannot be done."""
    import onnx

    model = onnx.load(output)
    if not clipped_biases(model):
        return []
    left = widen_scales(model, onnx.load(prepared))
    rewrite(model, output)
    return left


def _release(float_model: onnx.ModelProto, output: Path) -> None:
    """Leaves results in float that nothing in int8 reads, float nodes as they are, and all in an order that runs."""
    import onnx

    model = onnx.load(output)
    changed = [*release_results(model, float_model), *shield_floats(model)]
    if sort_nodes(model.graph) or changed:
        rewrite(model, output)


def _quantize(
    prepared: Path,
    states: States,
    output: Path,
    scheme: QuantScheme,
    overrides: Mapping[str, list[dict[str, Any]]],
    left: Iterable[str],
) -> None:
    """One run of onnxruntime's quantizer; `overrides`: odd tensors, `left`: further nodes that stay float."""
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory(dir=output.parent, prefix="ranges-") as temp:
        ranges = Path(temp) / "ranges.json"
        # onnxruntime writes beside the model that it reads, and what `calibrate` made is sealed.
        for file in prepared.parent.glob(f"{PREPARED}*"):
            shutil.copyfile(file, Path(temp) / file.name)
        _write_ranges(ranges, states, scheme)
        try:
            quantization.quantize_static(
                Path(temp) / PREPARED,
                output,
                None,
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=scheme.per_channel,
                reduce_range=scheme.reduce_range,
                activation_type=quant_type(scheme.activations),
                weight_type=quant_type(scheme.weights),
                nodes_to_exclude=[*scheme.exclude, *left],
                op_types_to_quantize=list(scheme.ops) or None,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                calibration_cache_path=ranges,
                use_external_data_format=external_size(prepared) > 0,
                extra_options={
                    "ActivationSymmetric": scheme.symmetric_activations,
                    "WeightSymmetric": True,
                    "TensorQuantOverrides": dict(overrides),
                },
            )
        except Exception as error:  # onnxruntime raises everything from ValueError to its own C++ errors here.
            raise StageError(
                "onnxruntime could not quantize the model",
                where=output.name,
                why=shorten(f"{type(error).__name__}: {error}"),
                hint="`-v` shows the library's log; `--set quantize.enabled=false` builds the float variant alone",
            ) from error


def _write_ranges(path: Path, states: States, scheme: QuantScheme) -> None:
    """Writes ranges in the form that onnxruntime's quantizer reads in place of calibrating itself.

    A tensor that was never seen (all its values masked, say) has no range; one value, zero, stands for it.
    """
    import numpy as np
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData, save_tensors_data

    data: dict[str, TensorData | tuple[Any, ...]] = {}
    for name, halves in states.items():
        whole = merged(halves)
        observer = scheme.observers.get(name, scheme.observer)
        low, high = whole.range(observer) if whole.values else (0.0, 0.0)
        # Two values stand for (lowest, highest) in onnxruntime's own form.
        data[name] = (np.array([low], np.float32), np.array([high], np.float32))
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), path)


def _softmax_ranges(graph: onnx.GraphProto, states: States, scheme: QuantScheme) -> dict[str, list[dict[str, Any]]]:
    """Ranges of the results of Softmaxes, in the quantizer's words: left alone, it takes 0 to 1 whatever was seen.

    Attention over many positions has no probability near 1, and would be left with a few steps.
    """
    import numpy as np

    found = {}
    for node in graph.node:
        whole = merged(states[node.output[0]]) if node.op_type == "Softmax" and node.output[0] in states else None
        if whole is not None and whole.values:
            _, high = whole.range(scheme.observers.get(node.output[0], scheme.observer))
            found[node.output[0]] = [{
                "quant_type": quant_type(scheme.activations),
                "symmetric": scheme.symmetric_activations,
                "rmin": np.float32(0.0),
                "rmax": np.float32(high),
            }]  # fmt: skip
    return found


def _check_opset(model: onnx.ModelProto, scheme: QuantScheme) -> None:
    opset = opset_of(model)
    if scheme.per_channel and opset < PER_CHANNEL_OPSET:
        raise InputError(
            f"int8 with one scale a channel needs ONNX opset {PER_CHANNEL_OPSET}; the model has {opset}",
            where="quantize.per_channel",
            why="it has operators that onnx.version_converter cannot bring to a newer opset",
            hint=f"`--set quantize.per_channel=false`, or export the model again with opset {PER_CHANNEL_OPSET}",
        )
