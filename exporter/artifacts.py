"""The frozen values that flow between rooms, and that manifests and profiles are made of.

All of them go to and from JSON through msgspec, which rejects unknown fields and wrong types with the path of
the offending value.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import msgspec

Dim = int | str
DType = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool",
]  # fmt: skip
ArtifactKind = Literal["torch-export", "onnx", "onnx-qdq", "tflite"]
LintKind = Literal[
    "few-data", "never-seen", "masked", "dead", "constant", "outliers", "unstable", "saturation", "bias-overflow",
    "transposed-axis", "tied-weights", "unfused", "conversions", "float-ops", "cross-check",
]  # fmt: skip
ObserverName = Literal["minmax", "moving-average", "percentile", "entropy", "mse"]
Provenance = Literal["native", "emulated", "imported"]

BATCH = "batch"
"""The name of the dynamic axis that samples are stacked along; always axis 0 of an input."""


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every value: immutable, keyword-only, strict when read back from JSON."""


class Preprocessing(Value, frozen=True, kw_only=True):
    """How raw data become one model input: `(pixels * scale - mean) / std`, in the model's layout.

    Attributes:
        data_layout: axes of one raw sample in array files: HW, HWC or CHW. Image files are always HWC.
        layout: axes of one sample as the model takes it: CHW, HWC or HW.
        channel_order: order of colour channels as the model takes them; GRAY has one channel.
        size: (height, width) in pixels that images are brought to; None keeps their size.
        crop: `center` scales the shorter side to size / crop_fraction and cuts the centre out; `none` stretches.
        crop_fraction: share of the scaled image that the centre crop keeps.
        interpolation: how image files are scaled.
        scale: factor applied to raw values first.
        mean: subtracted after scaling, one value or one per channel.
        std: divided by after that, one value or one per channel.
    """

    data_layout: Literal["HW", "HWC", "CHW"] = "HWC"
    layout: Literal["CHW", "HWC", "HW"] = "CHW"
    channel_order: Literal["RGB", "BGR", "GRAY"] = "RGB"
    size: tuple[int, int] | None = None
    crop: Literal["center", "none"] = "none"
    crop_fraction: float = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class TensorSpec(Value, frozen=True, kw_only=True):
    """Name, element type and shape of a tensor; a string in the shape is a named dynamic axis."""

    name: str
    dtype: DType
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


class Signature(Value, frozen=True, kw_only=True):
    """What a model takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: dict[str, Preprocessing] = {}
    labels: tuple[str, ...] = ()


class QuantScheme(Value, frozen=True, kw_only=True):
    """How values are represented in an int8 model.

    Attributes:
        weights: type of weights.
        activations: type of activations.
        per_channel: one scale for each output channel of weights instead of one for each tensor.
        symmetric_activations: ranges of activations are made symmetric around zero.
        reduce_range: 7-bit weights, which cannot saturate on x86 CPUs without VNNI.
        observer: how ranges are read off what calibration saw.
        exclude: names of nodes to leave in float: of the ONNX file, or of the .tflite file where that is quantized.
        ops: operators to quantize, as that file calls them; by default all that have an int8 form.
        equalize: even out the ranges of channels between neighbouring layers first.
        per_tensor: names of ONNX nodes whose weights get one scale although `per_channel` is on.
        observers: tensor name to the observer that reads its range instead of `observer`.
        correct_biases: what rounding adds to the mean of each channel is taken off its bias, on calibration data.
        dynamic: ranges of activations are taken at run time; needs no calibration data.
    """

    weights: Literal["int8", "uint8"] = "int8"
    activations: Literal["int8", "uint8"] = "uint8"
    per_channel: bool = True
    symmetric_activations: bool = False
    reduce_range: bool = False
    observer: ObserverName = "minmax"
    exclude: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    equalize: bool = False
    per_tensor: tuple[str, ...] = ()
    observers: dict[str, ObserverName] = {}
    correct_biases: bool = False
    dynamic: bool = False

    @property
    def needs_histogram(self) -> bool:
        """Whether an observer reads more than extremes."""
        return not {self.observer, *self.observers.values()}.isdisjoint(("percentile", "entropy", "mse"))

    @property
    def label(self) -> str:
        """Short name in the field's own terms, as in `u8s8 per-channel minmax`."""
        short = {"int8": "s8", "uint8": "u8"}
        words = ["dynamic" if self.dynamic else short[self.activations] + short[self.weights]]
        words += ["per-channel" if self.per_channel else "per-tensor"]
        words += [] if self.dynamic else [self.observer]
        words += ["7-bit weights"] if self.reduce_range else []
        words += ["equalized"] if self.equalize else []
        words += ["biases corrected"] if self.correct_biases else []
        words += [f"only {', '.join(self.ops)}"] if self.ops else []
        return " ".join(words)


class Skipped(Value, frozen=True, kw_only=True):
    """A node that was left in float, and why."""

    node: str
    op: str
    reason: str


class Coverage(Value, frozen=True, kw_only=True):
    """Which nodes compute in int8. `eligible` counts nodes whose operator has an int8 form."""

    eligible: int
    quantized: int
    skipped: tuple[Skipped, ...] = ()
    quantized_ops: dict[str, int] = {}


class NoiseCauses(Value, frozen=True, kw_only=True):
    """Shares of a node's quantization noise: from its inputs, its weights, and its result's range."""

    inputs: float
    weights: float
    result: float


class NodeDamage(Value, frozen=True, kw_only=True):
    """Noise that the quantization of one node brings, fed with the float model's activations.

    Attributes:
        node: name in the ONNX graph.
        op: its operator.
        output: its first result's tensor.
        bits: width of its result's integers, or of its inputs' where the result stays float.
        range: lowest and highest value that the quantized result holds; None where it stays float.
        sqnr_db: 10 log10(signal energy / noise energy) of its results; None when they are equal bit for bit.
        channel_db: mean of the channels' own SQNR, which tells small channels that large ones drown; None where
            there are no channels.
        accumulated_db: SQNR of the same results in the whole quantized model: what all nodes before have left.
        causes: where the noise comes from, where that was asked for.
    """

    node: str
    op: str
    output: str
    bits: int
    range: tuple[float, float] | None
    sqnr_db: float | None
    channel_db: float | None
    accumulated_db: float | None
    causes: NoiseCauses | None = None

    @property
    def score(self) -> float:
        """The lower of both SQNRs in dB; the lower, the worse."""
        found = [value for value in (self.sqnr_db, self.channel_db) if value is not None]
        return min(found, default=math.inf) if self.sqnr_db is not None else math.inf


class NodeLatency(Value, frozen=True, kw_only=True):
    """Time that onnxruntime spent in one node of the graph that it really runs, in a run of its own with a profiler.

    Attributes:
        node: the node of the file that it came from; None for what onnxruntime added, such as conversions.
        name: what onnxruntime calls it.
        op: operator that ran, as in QLinearConv.
        median_ns: median time of a run in it; the profiler counts whole microseconds.
        share: of the sum over all nodes.
    """

    node: str | None
    name: str
    op: str
    median_ns: int
    share: float


class Lint(Value, frozen=True, kw_only=True):
    """Something that may cost an int8 model accuracy or speed.

    Attributes:
        kind: which rule found it.
        subject: the tensor, node or operator that it is about.
        text: what was found.
        action: what was done about it, or can be.
    """

    kind: LintKind
    subject: str
    text: str
    action: str


class WeakestChannel(Value, frozen=True, kw_only=True):
    """The index of an output that is farthest from the reference, by its own energy and not the whole output's.

    Attributes:
        axis: 1, or the last axis; axis 0 counts samples.
        index: along that axis.
        sqnr_db: of the values at that index alone.
    """

    axis: int
    index: int
    sqnr_db: float


class OutputFidelity(Value, frozen=True, kw_only=True):
    """Divergence of one output from the reference, over all evaluation samples.

    Attributes:
        sqnr_db: 10 log10(signal power / error power); None when the outputs are equal bit for bit. Values that mask
            others on both sides (infinities, or 1e8 and more) take no part in this and what follows.
        cosine: cosine similarity of all values taken as one vector.
        max_abs_error: largest absolute difference of one value.
        top1_agreement: share of rows with the same arg-max over classes, on the second axis where there are four or
            more, else on the last; None where it does not apply.
        floating: whether the output holds floats, of which SQNR tells something.
        broken: values that are NaN or infinite where the reference is finite; the other figures leave them out, but
            SQNR is then the lowest that there is.
        weakest: the channel with the lowest SQNR, which the whole output's does not show where channels differ in
            size; None where no two channels have a signal, or none has an error. Gates do not read it.
        varying_db: SQNR of what differs from the mean of its channel, along the second axis or the last, the lower
            one: the whole output's is mostly that of an offset where there is one. None where nothing differs or has
            an error. Gates do not read it.
    """

    output: str
    sqnr_db: float | None
    cosine: float
    max_abs_error: float
    top1_agreement: float | None = None
    floating: bool = True
    broken: int = 0
    weakest: WeakestChannel | None = None
    varying_db: float | None = None


class MetricResult(Value, frozen=True, kw_only=True):
    """A task metric (higher is better) of the reference and of the candidate."""

    name: str
    reference: float
    value: float
    relative_loss: float


class GateResult(Value, frozen=True, kw_only=True):
    """What the gate asked and what it found; `passed` is None when nothing could be gated.

    `short` sums up how far failed rules are from being met, each as a share of what it asks.
    """

    passed: bool | None
    rules: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    short: float = 0.0
    reason: str = ""


class Fidelity(Value, frozen=True, kw_only=True):
    """How far a model is from the one that it was made from, measured on the evaluation data.

    `arithmetic` is `simulated` where this CPU lacks what the model is made for: float arithmetic between the model's
    own roundings stood in for its int8 kernels.
    """

    reference: Literal["torch", "onnx"]
    reference_digest: str
    samples: int
    data: Literal["evaluation", "calibration"]
    outputs: tuple[OutputFidelity, ...]
    metric: MetricResult | None = None
    gate: GateResult = GateResult(passed=None, reason="not gated")
    arithmetic: Literal["native", "simulated"] = "native"


class ModelCost(Value, frozen=True, kw_only=True):
    """Counts of one torch model.

    Attributes:
        parameters: values of all parameters.
        macs: multiply-accumulates of matrix products, convolutions and attention for one sample.
        bytes: of parameters and buffers.
        compressed_bytes: the same after zstd; None where zstandard is not installed.
        zeros: share of parameter values that are exactly zero.
    """

    parameters: int
    macs: int
    bytes: int
    compressed_bytes: int | None
    zeros: float


class HistoryEntry(Value, frozen=True, kw_only=True):
    """One model on the way from what was trained to what was exported.

    Attributes:
        name: what tables call it.
        role: `trained` is the model that variants are judged against; `base` and `member` went into a merge, `merged`
            came out of it; `step` is the result of a step of [compress].
        digest: of the model.
        cost: its size and work.
        fidelity: against the trained model on the evaluation data; None for the trained model itself.
        metric: its own value of the plan's metric; None without labels.
        notes: what the step reports.
    """

    name: str
    role: Literal["trained", "base", "member", "merged", "step"]
    digest: str
    cost: ModelCost
    fidelity: Fidelity | None = None
    metric: float | None = None
    notes: tuple[str, ...] = ()


class Alternative(Value, frozen=True, kw_only=True):
    """One file of one alternative of a plan, or why there is none.

    Attributes:
        name: of the alternative in the plan.
        target: that it was built for.
        variant: the file; None where the alternative was refused.
        metric: value of the plan's metric; None without labels.
        sqnr_db: of its worst output against the alternative's own trained model; None where it is exact.
        size: bytes of the file.
        packed_bytes: the same in a packed bundle, where weights of some alternative were pruned; it then counts for
            all instead of `size`.
        latency_ms: median; None where it was not measured.
        pareto: no other file of this target is as good in every respect and better in one.
        bundle: folder of the bundle.
        failure: why it was refused.
    """

    name: str
    target: str
    variant: str | None = None
    metric: float | None = None
    sqnr_db: float | None = None
    size: int | None = None
    packed_bytes: int | None = None
    latency_ms: float | None = None
    pareto: bool = False
    bundle: str | None = None
    failure: str | None = None


class Tolerance(Value, frozen=True, kw_only=True):
    """How far an output may be from its expected value in a self-test: |y - e| <= atol + rtol * |e|.

    `quantum` is the output's int8 step where it has one.
    """

    atol: float
    rtol: float = 0.0
    quantum: float | None = None


class Repair(Value, frozen=True, kw_only=True):
    """A change to an int8 model, and what it brought; SQNR is the worst output's.

    Attributes:
        change: in words.
        kept: whether it stayed.
        sqnr_db: before and after, in dB; None where outputs are equal bit for bit.
        metric: before and after; None without labels.
        quantized: nodes in int8, before and after.
        reason: the gate was not met, or the model is faster so.
        latency: ratio of the latency after to that before, from a short race; None where none was run.
    """

    change: str
    kept: bool
    sqnr_db: tuple[float | None, float | None]
    metric: tuple[float, float] | None
    quantized: tuple[int, int]
    reason: Literal["gate", "speed"] = "gate"
    latency: float | None = None


class EdgeType(Value, frozen=True, kw_only=True):
    """An input or output of one file that holds integers for real numbers: `real = (integer - zero_point) * scale`.

    The runner converts, so that the bundle's signature stays in real numbers.
    """

    tensor: str
    dtype: DType
    scale: float
    zero_point: int


class Variant(Value, frozen=True, kw_only=True):
    """One model file of a bundle: one runtime, one precision.

    `requires` are the CPU features that it is made for (`a|b` is met by either), `specialises` the variant that it
    replaces on such CPUs. `packed_bytes` is what its files take in a packed bundle; None where the model is not
    sparse, so that packing brings little, or where zstandard is not installed. `not_on` are runtimes, by their
    distributions, that the bundle has requirements for and that compute this variant wrong, and why.
    """

    name: str
    runtime: str
    main: str
    precision: str
    scheme: QuantScheme | None = None
    coverage: Coverage | None = None
    lints: tuple[Lint, ...] = ()
    fidelity: Fidelity
    tolerances: dict[str, Tolerance]
    requires: tuple[str, ...] = ()
    specialises: str | None = None
    repairs: tuple[Repair, ...] = ()
    edges: tuple[EdgeType, ...] = ()
    packed_bytes: int | None = None
    not_on: dict[str, str] = {}


class FileEntry(Value, frozen=True, kw_only=True):
    """A file of a bundle: path relative to it, with forward slashes."""

    path: str
    sha256: str
    size: int


class RuntimeNeed(Value, frozen=True, kw_only=True):
    """The runtime that a bundle runs on, and the pip requirements that bring it.

    Attributes:
        name: distribution of the runtime.
        minimum: oldest version that the bundle runs on.
        requirements: for pip.
        machine: processor family that the bundle is made for, as `uname -m` says it; None when it is made for any.
        glibc: oldest C library that the runtime's newest wheels run on, on Linux; None when not known.
        python: oldest Python that the runner runs on.
        alternatives: other runtimes that the bundle runs on, by their distributions, and their requirements.
        newest_python: newest Python that wheels of a runtime exist for, by its distribution; absent where not known.
    """

    name: str
    minimum: str
    requirements: tuple[str, ...]
    machine: str | None = None
    glibc: str | None = None
    python: str = "3.9"
    alternatives: dict[str, tuple[str, ...]] = {}
    newest_python: dict[str, str] = {}


class ModelFacts(Value, frozen=True, kw_only=True):
    """Where the model came from."""

    source: str
    digest: str
    licence: str | None = None


class DataFacts(Value, frozen=True, kw_only=True):
    """Which data were used: digests and counts; None where there were none."""

    calibration: str | None
    calibration_samples: int
    evaluation: str | None
    evaluation_samples: int
    overlap: int = 0
    training: str | None = None
    training_samples: int = 0


class Choice(Value, frozen=True, kw_only=True):
    """The variant that runs by default, and why; part of the seal but not of the digest.

    `measured` are the variants that it was chosen from, the fastest first.
    """

    variant: str
    why: str
    profile: str | None = None
    measured: tuple[str, ...] = ()


class Manifest(Value, frozen=True, kw_only=True):
    """manifest.json of a bundle.

    `digest` names the contents: SHA-256 of the canonical JSON of everything but `digest`, `choice` and `seal`.
    `other_runtimes` bring those variants that name one of them; all others run on `runtime`.
    `seal` guards the rest: SHA-256 of the canonical JSON of everything but `seal`.
    """

    schema: Literal[1] = 1
    name: str
    target: str
    digest: str = ""
    signature: Signature
    variants: tuple[Variant, ...]
    float_variant: str
    runtime: RuntimeNeed
    other_runtimes: tuple[RuntimeNeed, ...] = ()
    samples: int
    model: ModelFacts
    data: DataFacts
    tools: dict[str, str]
    made_on: dict[str, str | int | list[str]] = {}
    notes: tuple[str, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    plan: dict[str, Any]
    files: tuple[FileEntry, ...]
    choice: Choice
    seal: str = ""

    def files_of(self, variant: Variant) -> tuple[FileEntry, ...]:
        """A variant's files: all that lies in the folder of its main file."""
        folder = variant.main.rpartition("/")[0] + "/"
        return tuple(entry for entry in self.files if entry.path.startswith(folder))

    def size_of(self, variant: Variant) -> int:
        """Bytes of a variant's files."""
        return sum(entry.size for entry in self.files_of(variant))


class Host(Value, frozen=True, kw_only=True):
    """Facts of the machine that measured."""

    system: str
    machine: str
    cpu: str
    cores: int
    features: tuple[str, ...]
    memory_bytes: int | None
    python: str
    governor: str | None = None


class HostState(Value, frozen=True, kw_only=True):
    """What changes while measuring, read before and after; None where the system does not tell.

    Attributes:
        load_average: of 1, 5 and 15 minutes.
        frequency_mhz: of each CPU.
        temperature_c: of the hottest CPU sensor.
        governor: what chooses frequencies.
        throttling: what holds the CPU back at this moment; empty when nothing does.
        throttle_events: how often the CPU was throttled since boot.
    """

    load_average: tuple[float, ...] | None = None
    frequency_mhz: tuple[float, ...] | None = None
    temperature_c: float | None = None
    governor: str | None = None
    throttling: tuple[str, ...] | None = None
    throttle_events: int | None = None


class RuntimeFacts(Value, frozen=True, kw_only=True):
    """The runtime that measured; `others` are the versions of further ones that variants ran on."""

    name: str
    version: str
    provider: str
    numpy: str
    others: dict[str, str] = {}


class BenchSettings(Value, frozen=True, kw_only=True):
    """How latency was measured; `ci_width` is the wanted relative width of the median's 95 % interval."""

    threads: int
    affinity: tuple[int, ...] | None
    batch: int
    min_samples: int
    min_seconds: float
    max_seconds: float
    ci_width: float
    warmup_seconds: float
    seed: int


class LatencySummary(Value, frozen=True, kw_only=True):
    """Steady-state latency in nanoseconds.

    `percentiles` holds upper bounds, and not the percentiles of the samples: with 99 % confidence that share of all
    runs takes no longer. Each is an order statistic of the samples, and is there only if enough were taken; the keys
    are `p90`, `p95`, `p99`, `p99.9`.
    """

    count: int
    minimum: int
    mean: float
    median: float
    median_low: int
    median_high: int
    percentiles: dict[str, int]


class Delegation(Value, frozen=True, kw_only=True):
    """What a delegate inside a runtime computes of a file; the runtime's own kernels do the rest.

    Attributes:
        delegate: its name.
        operators: how many it computes; None where the runtime does not tell.
        of: how many there are in the main graph; None likewise.
    """

    delegate: str
    operators: int | None
    of: int | None


class VariantProfile(Value, frozen=True, kw_only=True):
    """Measurements of one variant; load, first run and peak memory come from a process of its own.

    `delegation` is None where the runtime has no delegates.
    """

    variant: str
    delegation: Delegation | None = None
    load_ns: int
    first_ns: int
    peak_rss_bytes: int | None
    warmup_runs: int
    samples_ns: tuple[int, ...]
    summary: LatencySummary


class Comparison(Value, frozen=True, kw_only=True):
    """Latency of a variant as a ratio to the baseline, from interleaved rounds; below 1 is faster."""

    variant: str
    baseline: str
    ratio: float
    low: float
    high: float
    confidence: float
    pairs: int
    verdict: Literal["faster", "slower", "no difference"]


class RuntimeRatio(Value, frozen=True, kw_only=True):
    """Latency of a variant on this profile's runtime as a ratio to the same file on another; below 1 is faster.

    Attributes:
        variant: its name.
        baseline: the other runtime, which ran in a process of its own before this one, and in another after it.
        ratio: of the medians.
        low: lower end of the interval.
        high: upper end.
        confidence: with which the interval holds the true ratio.
        widened_by: factor by which the other runtime's two processes differ, which the interval includes.
        verdict: a difference is claimed only where the interval excludes 1.
    """

    variant: str
    baseline: str
    ratio: float
    low: float
    high: float
    confidence: float
    widened_by: float
    verdict: Literal["faster", "slower", "no difference"]


class Profile(Value, frozen=True, kw_only=True):
    """profiles/<host>.json: latency of one bundle on one host and one runtime.

    `device` is the name of the device that it was measured on: `local` for the machine that the exporter runs on.
    `across` holds each variant against itself on another runtime, where that was measured too. `not_measured` are
    variants that this runtime does not compute right, and why.
    """

    schema: Literal[1] = 1
    bundle_digest: str
    target: str
    provenance: Provenance
    device: str = "local"
    host: Host
    runtime: RuntimeFacts
    settings: BenchSettings
    before: HostState
    after: HostState
    variants: tuple[VariantProfile, ...]
    comparisons: tuple[Comparison, ...]
    across: tuple[RuntimeRatio, ...] = ()
    not_measured: dict[str, str] = {}
    flags: tuple[str, ...]
    self_test: Literal["passed"]
    seal: str = ""


class DeviceFacts(Value, frozen=True, kw_only=True):
    """What `devices check` found on a device; None, or nothing, where the device does not tell.

    Attributes:
        device: its name.
        address: how it is reached, as `--device` takes it.
        provenance: what a measurement made there counts as.
        host: CPU, features, cores, memory, governor.
        state: load, frequency, temperature and throttling, now.
        python: the interpreter that would run a bundle, as a path.
        runtimes: versions of the runtimes that this interpreter has, by distribution.
        folder: where bundles are put.
        free_bytes: space that is left there.
        notes: what stands in the way of a measurement or is worth knowing, one sentence each.
    """

    device: str
    address: str
    provenance: Provenance
    host: Host | None = None
    state: HostState | None = None
    python: str | None = None
    runtimes: dict[str, str] = {}
    folder: str | None = None
    free_bytes: int | None = None
    notes: tuple[str, ...] = ()


class VariantInstructions(Value, frozen=True, kw_only=True):
    """What one inference of a variant executes on an emulated device, and how its self-test went there.

    Attributes:
        variant: its name.
        guest_instructions: instructions of one inference by class; `total` is their sum.
        cases: samples of the self-test.
        max_abs_error: largest absolute difference from the expected outputs; None where none is finite.
        max_quanta: the same in int8 steps.
        exact_share: share of output values that are equal to the expected ones.
        delegation: as in a profile.
    """

    variant: str
    delegation: Delegation | None = None
    guest_instructions: dict[str, int]
    cases: int
    max_abs_error: float | None
    max_quanta: float | None
    exact_share: float | None


class InstructionProfile(Value, frozen=True, kw_only=True):
    """profiles/<device>.instructions.json: what a bundle executes on an emulated device. It has no times at all.

    `skipped` says why a variant was left out, one sentence each.
    """

    schema: Literal[1] = 1
    bundle_digest: str
    target: str
    provenance: Literal["emulated"] = "emulated"
    device: str
    cpu: str
    features: tuple[str, ...]
    emulator: str
    python: str
    runtime: RuntimeFacts
    batch: int
    variants: tuple[VariantInstructions, ...]
    skipped: tuple[str, ...]
    flags: tuple[str, ...]
    self_test: Literal["passed"]
    seal: str = ""


class BenchmarkedVariant(Value, frozen=True, kw_only=True):
    """What LiteRT's benchmark_model printed of one .tflite file; times in microseconds, of random inputs.

    Attributes:
        variant: its name.
        count: steady-state runs.
        median_us: None where that version of the tool does not print it; `p95_us` likewise.
        memory_mb: how much the process grew, in the tool's own words approximate; None where it does not say.
    """

    variant: str
    count: int
    minimum_us: float
    maximum_us: float
    mean_us: float
    std_us: float
    median_us: float | None
    p95_us: float | None
    init_us: float
    first_us: float
    warmup_us: float
    memory_mb: float | None


class BenchmarkProfile(Value, frozen=True, kw_only=True):
    """profiles/<device>.benchmark.json: LiteRT's benchmark_model on a device that has no Python.

    The tool gives no single runs and compares no outputs: nothing is ranked by it, and the self-test was not run.
    """

    schema: Literal[1] = 1
    bundle_digest: str
    target: str
    provenance: Literal["native"] = "native"
    device: str
    host: Host
    binary_sha256: str
    threads: int
    affinity: tuple[int, ...]
    before: HostState
    after: HostState
    variants: tuple[BenchmarkedVariant, ...]
    flags: tuple[str, ...]
    self_test: Literal["not run"] = "not run"
    seal: str = ""


class NotMeasured(Value, frozen=True, kw_only=True):
    """Why there is no profile, and the command that makes one."""

    reason: str
    command: str


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, one trailing newline."""
    return msgspec.json.encode(value, order="sorted") + b"\n"


def digest_of(value: Any) -> str:
    """SHA-256, in hex, of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value)).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256, in hex, of a file's contents."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
