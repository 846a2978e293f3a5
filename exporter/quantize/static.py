"""onnxruntime's static quantization to QDQ form."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import Coverage, QuantScheme
from exporter.errors import ExporterError, InputError, StageError, closest, shorten
from exporter.quantize.coverage import coverage_of
from exporter.quantize.prepare import prepare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Inputs = Mapping[str, NDArray[np.generic]]

SINGLE_FILE_LIMIT = 1_900_000_000
"""Protobuf ends at 2 GB; above this the weights go to a file beside the model."""


def quantize_static(
    model: Path,
    output: Path,
    *,
    scheme: QuantScheme,
    batches: Callable[[], Iterable[Inputs]],
    progress: Callable[[int], None],
) -> Coverage:
    """Quantizes a float ONNX file to int8 with calibration data.

    Args:
        model: float ONNX file with the user's input names.
        output: where the QDQ file is written.
        scheme: types, granularity, observer, nodes to leave in float.
        batches: gives the calibration batches, input name to array; may be called more than once.
        progress: called with the number of batches that were observed so far.

    Returns:
        Which nodes became int8.

    Raises:
        InputError: `scheme.exclude` names a node that does not exist.
        StageError: onnxruntime failed, or no batch was given.
        ExporterError: whatever `batches` raises.
    """
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory(dir=output.parent, prefix="prepared-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        large = model.stat().st_size + _external_size(model) > SINGLE_FILE_LIMIT
        prepare(model, prepared, large)
        _check_excluded(prepared, scheme.exclude)
        reader = _reader(batches, progress)
        try:
            quantization.quantize_static(
                prepared,
                output,
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=scheme.per_channel,
                reduce_range=scheme.reduce_range,
                activation_type=_quant_type(scheme.activations),
                weight_type=_quant_type(scheme.weights),
                nodes_to_exclude=list(scheme.exclude),
                calibrate_method=_method(scheme.observer),
                use_external_data_format=large,
                extra_options={"ActivationSymmetric": scheme.symmetric_activations, "WeightSymmetric": True},
            )
        except ExporterError:  # Of the calibration data, which are read while onnxruntime observes.
            raise
        except Exception as error:  # onnxruntime raises everything from ValueError to its own C++ errors here.
            raise StageError(
                "onnxruntime could not quantize the model",
                where=model.name,
                why=shorten(f"{type(error).__name__}: {error}"),
                hint="`-v` shows the library's log; `--set quantize.enabled=false` builds the float variant alone",
            ) from error
    return coverage_of(output, scheme)


def _check_excluded(prepared: Path, excluded: tuple[str, ...]) -> None:
    if not excluded:
        return
    import onnx

    names = [node.name for node in onnx.load(prepared, load_external_data=False).graph.node]
    unknown = [f"'{name}'{closest(name, names)}" for name in excluded if name not in names]
    if unknown:
        raise InputError(
            f"no node is called {', '.join(unknown)}",
            where="quantize.exclude",
            hint="node names are those of the exported ONNX graph",
        )


def _reader(batches: Callable[[], Iterable[Inputs]], progress: Callable[[int], None]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            self.left: Iterator[Inputs] = iter(batches())
            self.seen = 0

        def get_next(self) -> dict[str, Any] | None:  # type: ignore[override]
            batch = next(self.left, None)
            if batch is None:
                return None
            self.seen += 1
            progress(self.seen)
            return dict(batch)

    return Reader()


def _quant_type(name: str) -> Any:
    from onnxruntime.quantization import QuantType

    return {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}[name]


def _method(observer: str) -> Any:
    from onnxruntime.quantization import CalibrationMethod

    return {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[observer]


def _external_size(model: Path) -> int:
    return sum(file.stat().st_size for file in model.parent.glob(f"{model.name}.*"))
