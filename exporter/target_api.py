"""The Target protocol: what a deployment target tells the exporter, and the few types it trades in.

A target is one module with a value `TARGET` that satisfies `Target`, announced through the entry point group
`edge_exporter.targets`. It holds no state: the pipeline asks it what it needs, makes equal needs once, and hands
the artifacts over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import msgspec

from exporter.artifacts import (
    Coverage,
    DType,
    EdgeType,
    Manifest,
    NodeDamage,
    QuantScheme,
    RuntimeNeed,
    Signature,
    TensorSpec,
    Tolerance,
    Value,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]
    Session = Callable[[Arrays], dict[str, NDArray[np.generic]]]

ENTRY_POINT_GROUP = "edge_exporter.targets"
SHARED = "shared"
"""Folder that `convert` may write beside those of its variants: what belongs to all of them, and travels too."""


class TargetOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a target's own keys in `[targets.NAME]`; a target without options uses it as it is."""


class SchemeNeed(Value, frozen=True, kw_only=True):
    """One int8 file that a target wants, for the CPUs that it is made for.

    Attributes:
        name: of the variant.
        changes: fields of QuantScheme that this file needs otherwise than the plan says.
        requires: CPU features that it is made for; `a|b` is met by either.
        specialises: the variant that it replaces on CPUs with those features.
        offered: made for transformers alone, and left out where it fails the gate: nobody asked for it.
    """

    name: str = "int8"
    changes: dict[str, str | bool] = {}
    requires: tuple[str, ...] = ()
    specialises: str | None = None
    offered: bool = False


class PixelInput(Value, frozen=True, kw_only=True):
    """An input of the model that files take as unsigned bytes, and what they do with them: `bytes * factor + offset`.

    Attributes:
        name: of the input.
        factor: one value, or one for each channel.
        offset: likewise.
        layout: axes of one sample as the model takes it; the files take HWC where this is CHW, else the same.
    """

    name: str
    factor: tuple[float, ...]
    offset: tuple[float, ...]
    layout: Literal["CHW", "HWC", "HW"]


class TensorForm(Value, frozen=True, kw_only=True):
    """How a target's files take and give tensors, where that is not as the model does.

    The pipeline feeds the files accordingly, and the bundle's signature says it.

    Attributes:
        types: element type of the model -> the one that stands for it in the files.
        channels_last: float inputs with four axes are NHWC in the files and NCHW in the model.
        already_last: inputs that are NHWC in the model too.
        pixels: inputs that are bytes in the files, whatever the rest says.
    """

    types: dict[DType, DType] = {}
    channels_last: bool = False
    already_last: tuple[str, ...] = ()
    pixels: tuple[PixelInput, ...] = ()

    def pixel(self, name: str) -> PixelInput | None:
        """How the files take an input as bytes; None where they do not."""
        return next((one for one in self.pixels if one.name == name), None)

    def moves(self, spec: TensorSpec) -> bool:
        """Whether an input of the model is NHWC in the files."""
        image = len(spec.shape) == 4 and spec.dtype.startswith("float")
        stays = spec.name in self.already_last or self.pixel(spec.name) is not None
        return self.channels_last and image and not stays


class EnvironmentNeed(Value, frozen=True, kw_only=True):
    """A Python environment of its own, for a library that cannot live beside the exporter or measures apart from it.

    Attributes:
        name: of the library, for messages.
        requirements: for pip.
        oldest: Python (major, minor) that there are wheels for.
        newest: newest such Python; None where not known.
        complete: the requirements name every package with its version, so that none is looked for beyond them.
    """

    name: str
    requirements: tuple[str, ...]
    oldest: tuple[int, int] = (3, 9)
    newest: tuple[int, int] | None = None
    complete: bool = False

    def pinned(self) -> dict[str, str]:
        """The library's version by its name, where the requirements fix it."""
        pins = (line.split("==") for line in self.requirements if line.startswith(f"{self.name}=="))
        return {name: version for name, version in pins}


class Need(Value, frozen=True, kw_only=True):
    """What a target wants made before `convert`: an ONNX file for its minimum runtime, and int8 files.

    A target that converts and quantizes by itself asks for `program` and `calibration`, and for no `int8`.

    Attributes:
        opset: of the ONNX files.
        ir_version: of the ONNX files.
        runtime: the minimum runtime with its version, for messages.
        int8: the int8 files, the one for every CPU of the target first; empty for a target that takes none.
        program: hand over the torch program, captured with fixed shapes; a dynamic batch becomes 1.
        fixed: the ONNX files have fixed shapes; a dynamic batch becomes 1.
        otherwise: what a user can say in the plan where the program is needed and the source is a ready ONNX file.
        environment: Python to hand over, in an environment that is made on first use and kept.
        calibration: hand over the calibration samples and what `[quantize]` asks for.
        ranges: whether it needs those samples; where none of its files has ranges, a plan may give none.
        form: how the files take and give tensors, where that is not as the model does.
        dynamic: whether a dynamically quantized file is welcome too, where the model is one that gains from it.
        pixels: for a target that converts or quantizes by itself, whether its files can take bytes; the ONNX files
            that others are handed do already.
    """

    opset: int
    ir_version: int
    runtime: str
    int8: tuple[SchemeNeed, ...] = (SchemeNeed(),)
    program: bool = False
    fixed: bool = False
    otherwise: str = ""
    environment: EnvironmentNeed | None = None
    calibration: bool = False
    ranges: bool = True
    form: TensorForm = TensorForm()
    dynamic: bool = False
    pixels: bool = False


class VariantFile(Value, frozen=True, kw_only=True):
    """A model file that `convert` wrote, relative to the folder that it was given.

    `stand_in` is another file there, for a `main` that only the CPUs it is made for compute right: it is simulated
    and read in its place, and does not travel. What is `offered` was not asked for by the plan, and is left out where
    it fails the gate. `not_on` are those of the target's other runtimes that compute the file wrong, and why.
    """

    name: str
    main: str
    runtime: str
    precision: str
    scheme: QuantScheme | None = None
    coverage: Coverage | None = None
    requires: tuple[str, ...] = ()
    specialises: str | None = None
    edges: tuple[EdgeType, ...] = ()
    stand_in: str | None = None
    offered: bool = False
    not_on: dict[str, str] = {}


class Int8File(msgspec.Struct, frozen=True, kw_only=True):
    """A quantized ONNX file: the answer to a SchemeNeed, whose `name`, `requires` and `specialises` it repeats."""

    name: str
    path: Path
    scheme: QuantScheme
    coverage: Coverage
    requires: tuple[str, ...] = ()
    specialises: str | None = None


def made_for(requires: Sequence[str], features: Collection[str]) -> bool:
    """Whether a CPU with these features is one that a file with these requirements is made for."""
    return all(any(one in features for one in need.split("|")) for need in requires)


def unheard(stage: str) -> None:
    """Tells nobody."""


class ConvertRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Artifacts made for a target.

    Attributes:
        float_model: the float ONNX file.
        int8: the QDQ ONNX files in the order of `Need.int8`; empty when the plan turns quantization off.
        signature: inputs and outputs of the model, with the user's names.
        program: the captured program (.pt2), where the target needs it: it takes tensors in the order of the
            signature's inputs and gives a tuple in the order of its outputs.
        pixels: inputs of the program that its files are to take as bytes; the ONNX files do already.
        form: how the files are to take and give tensors: that of `Need`, and what the plan says of inputs.
        quantize: what `[quantize]` asks of a target that quantizes by itself; None when it turns quantization off.
        offered: files that such a target is to make beside those that its options ask for: `dynamic`, with ranges
            taken at run time.
        calibration: one pass over the calibration data in batches, arrays by input name as the files take them;
            None where nothing is to be quantized.
        tell: is told in a few words what begins, where converting takes long.
        examples: real inputs, each as the ONNX file takes it and as the target's files do.
        tolerance: by what a float file's outputs may differ from the ONNX file's, relative to their largest value.
        python: of the environment that the target needs.
    """

    float_model: Path
    int8: tuple[Int8File, ...]
    signature: Signature
    program: Path | None = None
    pixels: tuple[PixelInput, ...] = ()
    form: TensorForm = TensorForm()
    quantize: QuantScheme | None = None
    offered: tuple[str, ...] = ()
    calibration: Callable[[], Iterator[Arrays]] | None = None
    tell: Callable[[str], None] = unheard
    examples: Callable[[], Iterator[tuple[Arrays, Arrays]]] | None = None
    tolerance: float = 1e-3
    python: str | None = None


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """What travels in the bundle beside models.

    Attributes:
        files: runner files, by their name in the bundle.
        runtime: what runs the variants.
        others: what runs those variants that name one of these; `runtime_NAME.py` among `files` knows it.
        beside: which of `runtime.alternatives` a build measures as well, each in an environment of its own.
        guide: a further part of the bundle's README.md, written from its manifest.
    """

    files: Mapping[str, Path]
    runtime: RuntimeNeed
    others: tuple[RuntimeNeed, ...] = ()
    beside: tuple[str, ...] = ()
    guide: Callable[[Manifest], str] | None = None


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

    def missing(self, options: TargetOptions) -> tuple[str, str] | None:
        """(what is missing to build with these options, what brings it), or None when all is there."""

    def requires(self, options: TargetOptions) -> Need:
        """What must be made before `convert`."""

    def convert(self, request: ConvertRequest, options: TargetOptions, folder: Path) -> tuple[VariantFile, ...]:
        """Writes the model files into `folder`; the first one is the float variant that others compare with."""

    def payload(self, options: TargetOptions) -> Payload:
        """Runner files and runtime for the bundle."""

    def open_session(self, model: Path, *, simulated: bool) -> Session:
        """Opens a model file in this target's runtime, on this machine, for accuracy (never for latency).

        `simulated`: the file is made for other CPUs than this one, whose int8 kernels may saturate where those would
        not; the arithmetic is then done in float, between the same roundings.
        """

    def tolerance(self, variant: VariantFile, model: Path, expected: Arrays) -> dict[str, Tolerance]:
        """Self-test tolerance of each output, given the outputs expected for the samples."""


@runtime_checkable
class Requantizing(Protocol):
    """A target that quantizes by itself, and can do so again otherwise, from what `convert` left in its folder.

    With it the pipeline brings files that fail the gate back within it, and tries faster ones.
    """

    @property
    def products(self) -> tuple[str, ...]:
        """Operator types that multiply by weights, which gain most by being integer."""

    def requantize(
        self, made: Path, variant: VariantFile, scheme: QuantScheme, options: TargetOptions, folder: Path
    ) -> VariantFile:
        """Writes a variant again: operators named in the scheme's `exclude`, or not among its `ops`, stay in float.

        Args:
            made: folder that `convert` wrote into.
            variant: one of those that it made.
            scheme: otherwise that of the request.
            options: as for `convert`.
            folder: where to write.
        """

    def damage(self, made: Path, model: Path, batches: Iterable[Arrays]) -> tuple[NodeDamage, ...]:
        """Noise of each operator of a file that computes in integers, worst first.

        Operators that only move values are left out: they follow what they move.

        Args:
            made: folder that `convert` wrote into.
            model: the file, which `convert` or `requantize` made.
            batches: inputs as the files take them.
        """


class OperatorFacts(Value, frozen=True, kw_only=True):
    """One operator of a quantized file.

    Attributes:
        node: its name in the file.
        op: its type.
        bits: width of its result's integers; None where that is in float.
        weight_bits: width of the integers among what it takes from the file; None where there are none.
        range: lowest and highest value that the result's integers stand for.
        scale: what one step of them stands for.
        zero_point: the integer that stands for zero.
        damage: its own noise; None where it computes in float, or only moves values.
        accumulated_db: SQNR of its results in the whole file; None where it is not told, or there is no noise.
    """

    node: str
    op: str
    bits: int | None = None
    weight_bits: int | None = None
    range: tuple[float, float] | None = None
    scale: float | None = None
    zero_point: int | None = None
    damage: NodeDamage | None = None
    accumulated_db: float | None = None


@runtime_checkable
class Analyzable(Protocol):
    """A target that quantizes by itself, and tells of each operator of its files what `analyze` shows.

    ONNX files that onnxruntime runs are looked at without it.
    """

    @property
    def untimed(self) -> str:
        """Why an operator's time is not told, and what tells it."""

    def operators(self, float_model: Path, model: Path, batches: Iterable[Arrays]) -> tuple[OperatorFacts, ...]:
        """Operators of a quantized file that compute real numbers, in the order in which they run.

        Args:
            float_model: the float file that the other was made from, of the same conversion or bundle.
            model: a file that `convert` or `requantize` made, with a `coverage`.
            batches: inputs as the files take them, in real numbers also where integers stand for these.

        Raises:
            MissingError: what reads or runs such files is not installed.
        """
