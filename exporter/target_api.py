"""The Target protocol: what a deployment target tells the exporter, and the few types it trades in.

A target is one module with a value `TARGET` that satisfies `Target`, announced through the entry point group
`edge_exporter.targets`. It holds no state: the pipeline asks it what it needs, makes equal needs once, and hands
the artifacts over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from exporter.artifacts import (
    Coverage,
    QuantScheme,
    RuntimeNeed,
    Signature,
    Tolerance,
    Value,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]
    Session = Callable[[Arrays], dict[str, NDArray[np.generic]]]

ENTRY_POINT_GROUP = "edge_exporter.targets"


class TargetOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a target's own keys in `[targets.NAME]`; a target without options uses it as it is."""


class Need(Value, frozen=True, kw_only=True):
    """What a target wants made before `convert`: an ONNX file for its minimum runtime, quantized or not.

    `runtime` names that runtime with its version, for messages.
    """

    opset: int
    ir_version: int
    runtime: str
    quantized: bool = True


class VariantFile(Value, frozen=True, kw_only=True):
    """A model file that `convert` wrote, relative to the folder that it was given."""

    name: str
    main: str
    runtime: str
    precision: str
    scheme: QuantScheme | None = None
    coverage: Coverage | None = None
    requires: tuple[str, ...] = ()


class ConvertRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Artifacts made for a target.

    Attributes:
        float_model: the float ONNX file.
        int8_model: the QDQ ONNX file, or None when the plan turns quantization off.
        coverage: which nodes of `int8_model` are int8.
        scheme: how `int8_model` was quantized.
        signature: inputs and outputs with the user's names.
    """

    float_model: Path
    int8_model: Path | None
    coverage: Coverage | None
    scheme: QuantScheme | None
    signature: Signature


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """What travels in the bundle beside models: runner files by their name in the bundle, and the runtime."""

    files: Mapping[str, Path]
    runtime: RuntimeNeed


class Target(Protocol):
    """A deployment target. All members are pure but `convert`, which writes into the folder it is given."""

    @property
    def name(self) -> str:
        """The name in `[targets.NAME]` and in the bundle's folder."""

    @property
    def version(self) -> int:
        """Raised when `convert` gives other results for the same request."""

    @property
    def summary(self) -> str:
        """One line for `edge-exporter targets`."""

    @property
    def options_type(self) -> type[TargetOptions]:
        """The type that the target's own keys of the plan are read into."""

    @property
    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """Values for plan sections (`quantize`, `export`, ...) that this target prefers to the built-in ones."""

    @property
    def distributions(self) -> tuple[str, ...]:
        """Distributions whose version changes what `convert` and `open_session` do."""

    def missing(self) -> tuple[str, str] | None:
        """(what is missing to build for this target, what brings it), or None when all is there."""

    def requires(self, options: TargetOptions) -> Need:
        """What must be made before `convert`."""

    def convert(self, request: ConvertRequest, options: TargetOptions, folder: Path) -> tuple[VariantFile, ...]:
        """Writes the model files into `folder`; the first one is the float variant that others compare with."""

    def payload(self, options: TargetOptions) -> Payload:
        """Runner files and runtime for the bundle."""

    def open_session(self, model: Path) -> Session:
        """Opens a model file in this target's runtime, on this machine, for accuracy (never for latency)."""

    def tolerance(self, variant: VariantFile, model: Path, expected: Arrays) -> dict[str, Tolerance]:
        """Self-test tolerance of each output, given the outputs expected for the samples."""
