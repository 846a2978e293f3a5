"""Devices with numpy and the onnx package only: ONNX in float and int8, on onnx's reference evaluator."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edge_exporter_onnxref import runtime
from exporter.artifacts import RuntimeNeed, Tolerance
from exporter.quantize import int8_tolerance
from exporter.target_api import ConvertRequest, Need, Payload, SchemeNeed, Target, TargetOptions, VariantFile
from targets import runner_files

if TYPE_CHECKING:
    from exporter.target_api import Arrays, Session

MINIMUM = "1.17"
OPSET = 21
OLDEST_INT8_OPSET = 19
"""From here on the evaluator knows DequantizeLinear; a ready-made ONNX file may be older."""
ROUNDING = 1e-4
"""fp32 on another machine differs by the order of sums: far below this share of the largest value."""


class OnnxRefOptions(TargetOptions, frozen=True, kw_only=True):
    """`[targets.onnxref]`.

    Attributes:
        int8: ship the int8 file beside the float one.
    """

    int8: bool = True


class OnnxRefTarget:
    """The onnxref target; see `exporter.target_api.Target`."""

    name = "onnxref"
    version = 1
    summary = "anywhere: ONNX fp32 and int8 on onnx's reference evaluator (exact, slow)"
    options_type = OnnxRefOptions
    defaults: Mapping[str, Mapping[str, Any]] = {"profile": {"min_samples": 100}}
    distributions = ("onnx", "edge-exporter-onnxref")

    def missing(self, options: TargetOptions) -> tuple[str, str] | None:
        """Nothing: this package's own dependencies bring the onnx package."""
        return None

    def requires(self, options: TargetOptions) -> Need:
        """What onnx 1.17 can evaluate."""
        return Need(
            opset=OPSET,
            ir_version=10,
            runtime=f"onnx {MINIMUM}",
            int8=(SchemeNeed(),) if cast(OnnxRefOptions, options).int8 else (),
        )

    def convert(self, request: ConvertRequest, options: TargetOptions, folder: Path) -> tuple[VariantFile, ...]:
        """Copies the ONNX files: the evaluator runs them as they are."""
        main = _copy(request.float_model, folder / "fp32")
        variants = [VariantFile(name="fp32", main=f"fp32/{main}", runtime=runtime.NAME, precision="float32")]
        for made in request.int8:
            main = _copy(made.path, folder / made.name)
            _raise_opset(folder / made.name / main)
            variants.append(
                VariantFile(
                    name=made.name,
                    main=f"{made.name}/{main}",
                    runtime=runtime.NAME,
                    precision="int8",
                    scheme=made.scheme,
                    coverage=made.coverage,
                )
            )
        return tuple(variants)

    def payload(self, options: TargetOptions) -> Payload:
        """The common runner with this package's runtime module."""
        return Payload(
            files=runner_files(Path(runtime.__file__)),
            runtime=RuntimeNeed(
                name=runtime.NAME,
                minimum=MINIMUM,
                requirements=(f"{runtime.NAME}>={MINIMUM},<2", "numpy>=1.21,<3"),
            ),
        )

    def open_session(self, model: Path, *, simulated: bool) -> Session:
        """Accuracy is measured with the very code that travels in the bundle; its arithmetic is the same anywhere."""
        return runtime.open_session(str(model), threads=1).run

    def tolerance(self, variant: VariantFile, model: Path, expected: Arrays) -> dict[str, Tolerance]:
        """One int8 step for the int8 file, rounding for the float one, none for integers."""
        if variant.scheme is not None:
            return int8_tolerance(model, expected)
        import numpy as np

        return {
            name: Tolerance(
                atol=ROUNDING * float(np.abs(values[np.isfinite(values)]).max(initial=1e-6))
                if np.issubdtype(values.dtype, np.floating)
                else 0.0
            )
            for name, values in expected.items()
        }


def _copy(model: Path, folder: Path) -> str:
    """Copies a model with the weights beside it, which large models keep in `<name>.data`; returns its name."""
    folder.mkdir()
    for file in model.parent.glob(f"{model.name}*"):
        shutil.copyfile(file, folder / file.name)
    return model.name


def _raise_opset(file: Path) -> None:
    """Converts an int8 file that is too old for the evaluator, in place."""
    import onnx
    from onnx.version_converter import convert_version

    model = onnx.load(file)
    if any(entry.domain == "" and entry.version < OLDEST_INT8_OPSET for entry in model.opset_import):
        onnx.save(convert_version(model, OPSET), file)


TARGET: Target = OnnxRefTarget()
