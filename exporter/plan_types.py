"""What a plan says, as frozen values: one Struct a section, defaults in place, paths already resolved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from exporter.artifacts import DType, Preprocessing, QuantScheme

Positive = Annotated[int, Meta(ge=1)]
Axis = Positive | Annotated[str, Meta(min_length=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Ratio = Annotated[float, Meta(gt=0, lt=1)]
Seconds = Annotated[float, Meta(ge=0)]

GOALS = ("macs", "parameters", "size", "latency")
"""What channels are pruned for."""


class InputPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[model.inputs.NAME]`: one input; what is left out is taken from the data or the model file.

    Attributes:
        dtype: element type that the model takes.
        shape: sizes; a text names a dynamic axis, and axis 0 is the one that samples are stacked along.
        preprocess: how raw data become this input; see below.
    """

    dtype: DType | None = None
    shape: tuple[Axis, ...] | None = None
    preprocess: Preprocessing | None = None


class ModelPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[model]`: the trained model.

    Attributes:
        source: `pkg.module:factory`, `file.py:factory`, a torch.export `.pt2` or an `.onnx` file.
        weights: state dict for a factory: `.safetensors`, or `.pt`/`.pth` read with weights_only.
        args: keyword arguments of the factory.
        inputs: names, dtypes, shapes and preprocessing; what is missing is taken from the data.
        outputs: names of the outputs in order; by default the model's own (dict keys) or `output`.
        labels: class names, in the order of the model's classes.
        depends: further files that the factory reads; their contents count when deciding what to rebuild.
        allow_pickle: read pickled weights although they can run code.
        licence: licence of the trained model, written into the bundle.
    """

    source: str
    weights: Path | None = None
    args: dict[str, Any] = {}
    inputs: dict[str, InputPlan] = {}
    outputs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    depends: tuple[Path, ...] = ()
    allow_pickle: bool = False
    licence: str | None = None


class DataPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[calibration]`: representative inputs.

    Attributes:
        data: an .npz or .safetensors file, a folder of .npy files or images, or `file.py:callable`.
        samples: use only the first so many samples.
        batch_size: samples run together.
        rename: array name in the data -> input name of the model.
        ignore: arrays in the data that are not inputs.
    """

    data: str
    samples: Positive | None = None
    batch_size: Positive = 32
    rename: dict[str, str] = {}
    ignore: tuple[str, ...] = ()


class TrainingPlan(DataPlan, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[training]`: inputs that students learn from (`distil`, `transfer`); by default those of [calibration].

    Attributes:
        data: as in [calibration]; of labels that they carry, only those that a step names are read.
    """


class EvaluationPlan(DataPlan, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[evaluation]`: held-out data that accuracy is measured on.

    Attributes:
        labels: name of the array that holds labels; without it only divergence from the model is measured.
        metric: `accuracy`, or `pkg.module:function` / `file.py:function` taking (outputs, labels).
        output: the output that `accuracy` reads; by default the first.
    """

    labels: str | None = None
    metric: str = "accuracy"
    output: str | None = None


class MergeModelPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[merge.models]]`: one of the models that are merged.

    Attributes:
        weights: its state dict, read as `[model] weights` is.
        name: what tables and outputs call it; by default the file's name without its suffix.
        weight: its share relative to the others'.
        source: where it comes from, as `[model] source`; by default that. Weights are merged of one source only.
        args: keyword arguments of its factory; by default those of [model], unless it has a source of its own.
        inputs: its own inputs and what feeds each: an input of the merged model, or `member.output` of another
            member (`stack`); by default all inputs of the merged model.
        outputs: names of its outputs in order; by default its own.
        classes: which classes its outputs stand for, where it knows a part of them (`fuse`, `transfer`).
        hints: module of the student -> module of this teacher whose output it is to resemble (`transfer`); by default
            those of `[merge.teaching]`.
    """

    weights: Path | None = None
    name: str | None = None
    weight: Annotated[float, Meta(gt=0)] = 1.0
    source: str | None = None
    args: dict[str, Any] | None = None
    inputs: dict[str, str] = {}
    outputs: tuple[str, ...] = ()
    classes: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    hints: dict[str, str] | None = None

    @property
    def label(self) -> str:
        """What tables call it."""
        file = str(self.weights or (self.source or "").rpartition(".py:")[0] or self.source or "model")
        return self.name or Path(file).stem


class TeachingPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[merge.teaching]`: how `transfer` teaches the student, on the inputs of [training] or else [calibration].

    Attributes:
        loss: `kl` between softmax outputs, for classifiers; `mse` between outputs, for anything else.
        temperature: that softens both sides of `kl`.
        fuse: teachers are averaged (`mean`), or the surest one counts for each sample (`confidence`).
        hints: module of the student -> module of every teacher whose output it is to resemble while it learns.
        hint_weight: weight of the hints beside the rest; 1 where it is not set.
        epochs: passes over the inputs, at most.
        patience: epochs without a better result on the held-out fifth of the inputs, after which teaching stops.
        rate: peak learning rate of AdamW.
        batch_size: samples of one step of learning.
        seed: of the order of samples, the held-out fifth, and the weights of a student that has none.
    """

    loss: Literal["kl", "mse"] = "kl"
    temperature: Annotated[float, Meta(gt=0)] = 4.0
    fuse: Literal["mean", "confidence"] = "mean"
    hints: dict[str, str] = {}
    hint_weight: Annotated[float, Meta(gt=0)] | None = None
    epochs: Positive = 60
    patience: Positive = 15
    rate: Annotated[float, Meta(gt=0)] = 2e-3
    batch_size: Annotated[int, Meta(ge=2)] = 32
    seed: Annotated[int, Meta(ge=0)] = 0


class MergePlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[merge]`: several models into one; see docs/merge.md for what each method does and which keys it reads.

    Attributes:
        method: how.
        models: what is merged.
        base: state dict that all were fine-tuned from; by default `[model] weights`.
        scale: factor of the task vectors (`task-arithmetic`, `ties`, `dare`).
        density: share of each task vector's values that `ties` keeps.
        drop: share of each task vector's values that `dare` drops.
        position: how far `slerp` goes from the first model to the second.
        seed: of the values that `dare` drops, and of the answers that `fisher` draws.
        loss: what `fisher` takes outputs for: `kl` for logits of classes, `mse` for numbers.
        search: evaluations that a search of the method's numbers (or of the models' weights, where it has none) may
            take; 0 searches nothing. It goes by the metric on the evaluation data, or on the calibration data where
            `labels` is given.
        by: how `fuse` makes one output of several.
        expose: outputs that a `stack` gives although another member takes them, as `member.output`.
        labels: array of the calibration data that holds labels: `by = "learned"` learns from them, `search` and
            `greedy-soup` choose by them.
        teaching: how `transfer` teaches.
        norms: re-estimate the statistics of batch norms on the calibration inputs.
        order: `merge-first` compresses the merged model; `compress-first` does the steps of [compress] on each model
            and merges what comes out.
        accept: `better` fails when the merged model is worse than the best of the models and the base; `worse`
            only reports it. By default `better`, and `worse` for `transfer`, whose student may be smaller.
    """

    method: Literal[
        "average", "slerp", "task-arithmetic", "ties", "dare", "greedy-soup", "fisher", "regmean", "stack", "fuse",
        "transfer",
    ] = "average"  # fmt: skip
    models: Annotated[tuple[MergeModelPlan, ...], Meta(min_length=1)]
    base: Path | None = None
    scale: Annotated[float, Meta(gt=0)] = 0.5
    density: Annotated[float, Meta(gt=0, le=1)] = 0.2
    drop: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    position: Share = 0.5
    seed: Annotated[int, Meta(ge=0)] = 0
    loss: Literal["kl", "mse"] = "kl"
    search: Annotated[int, Meta(ge=0)] = 0
    by: Literal["mean", "probabilities", "vote", "max", "learned"] = "mean"
    expose: tuple[str, ...] = ()
    labels: str | None = None
    teaching: TeachingPlan = TeachingPlan()
    norms: bool = True
    order: Literal["merge-first", "compress-first"] = "merge-first"
    accept: Literal["better", "worse"] | None = None

    @property
    def refuses(self) -> bool:
        """Whether a result that is worse than the best of its members fails."""
        return self.accept == "better" or (self.accept is None and self.method != "transfer")


class NormsStep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method", tag="norms"):
    """`method = "norms"`: re-estimates the statistics of batch norms on the calibration inputs."""


class LowRankStep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method", tag="low-rank"):
    """`method = "low-rank"`: linear layers and 1x1 convolutions become pairs, wherever that is less work.

    Attributes:
        energy: share of the sum of squared singular values that each pair keeps at least; not beside `rank`.
        rank: between the two layers of every pair.
        ignore: names of modules that stay as they are.
    """

    energy: Annotated[float, Meta(gt=0, lt=1)] | None = None
    rank: Positive | None = None
    ignore: tuple[str, ...] = ()


class PruneChannelsStep(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method", tag="prune-channels"
):
    """`method = "prune-channels"`: layers become narrower until the model costs a share of what it did.

    Attributes:
        macs: share of the multiply-accumulates that may be left; exactly one of the four is given.
        parameters: share of the parameters.
        size: share of the bytes of the weights.
        latency: share of the float model's latency, measured on a target: candidates run beside the model before.
        target: of the plan, whose latency counts; needed where the plan has several.
        importance: which channels go first: `l2` norm, `lamp`, distance from the geometric median (`fpgm`), scale of
            the batch norm (`bn-scale`), gradients on the calibration inputs (`taylor`), or `random`.
        spread: the same share of every layer goes (`layer`), or what matters least in the whole model (`global`).
        multiple: of channels that every layer keeps: 8 is what CPUs with AVX2 work on at once, 16 those with AVX-512.
        ignore: names of modules whose outputs keep their width.
        seed: of `random`.
    """

    macs: Ratio | None = None
    parameters: Ratio | None = None
    size: Ratio | None = None
    latency: Ratio | None = None
    target: str | None = None
    importance: Literal["l2", "lamp", "fpgm", "bn-scale", "taylor", "random"] = "l2"
    spread: Literal["layer", "global"] = "layer"
    multiple: Positive = 8
    ignore: tuple[str, ...] = ()
    seed: Annotated[int, Meta(ge=0)] = 0

    @property
    def goal(self) -> tuple[str, float]:
        """What is limited, and to which share."""
        return next((name, value) for name in GOALS if (value := getattr(self, name)) is not None)


class PruneWeightsStep(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method", tag="prune-weights"
):
    """`method = "prune-weights"`: single weights become zero; the compressed file shrinks, latency stays.

    Attributes:
        sparsity: share of the weights that become zero; not beside `threshold`.
        threshold: weights whose importance is below it become zero.
        importance: size of the weight (`magnitude`), times the norm of its input (`activation`), or times its
            gradient (`taylor`), both on the calibration inputs.
        spread: `sparsity` holds in every layer (`layer`), or in the model as a whole (`global`).
        pattern: any weights (`free`), the lesser two of every four (`2:4`), or runs of four (`blocks`), both along
            the inputs.
        ignore: names of modules that stay as they are.
    """

    sparsity: Ratio | None = None
    threshold: Annotated[float, Meta(gt=0)] | None = None
    importance: Literal["magnitude", "activation", "taylor"] = "magnitude"
    spread: Literal["layer", "global"] = "layer"
    pattern: Literal["free", "2:4", "blocks"] = "free"
    ignore: tuple[str, ...] = ()


class DistilStep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method", tag="distil"):
    """`method = "distil"`: the model learns to answer as teachers do, on inputs of [training], else [calibration].

    Attributes:
        student: arguments of the factory for a fresh student; without it and `source` the model itself is taught.
        source: another factory for a fresh student, `pkg.module:factory` or `file.py:factory`.
        teachers: state dicts for the factory of [model]; by default the trained model is the teacher.
        loss: `kl` between softmax outputs, for classifiers; `mse` between outputs, for anything else.
        temperature: that softens both sides of `kl`.
        fuse: several teachers are averaged (`mean`), or the surest one counts for each sample (`confidence`).
        labels: name of an array in the data learned from with labels of the first output: class indices for `kl`,
            values for `mse`; by default only teachers are learned from.
        hard: weight of the labels beside the teachers; 0.3 where it is not set.
        hints: module of the student -> module of the teachers whose output it is to resemble while it learns.
        hint_weight: weight of the hints beside the rest; 1 where it is not set.
        epochs: passes over the inputs, at most.
        patience: epochs without a better result on the held-out fifth of the inputs, after which teaching stops.
        rate: peak learning rate of AdamW.
        batch_size: samples of one step of learning.
        seed: of the order of samples, the held-out fifth, and a fresh student's weights.
    """

    student: dict[str, Any] | None = None
    source: str | None = None
    teachers: tuple[Path, ...] = ()
    loss: Literal["kl", "mse"] = "kl"
    temperature: Annotated[float, Meta(gt=0)] = 4.0
    fuse: Literal["mean", "confidence"] = "mean"
    labels: str | None = None
    hard: Share | None = None
    hints: dict[str, str] = {}
    hint_weight: Annotated[float, Meta(gt=0)] | None = None
    epochs: Positive = 60
    patience: Positive = 15
    rate: Annotated[float, Meta(gt=0)] = 2e-3
    batch_size: Annotated[int, Meta(ge=2)] = 32
    seed: Annotated[int, Meta(ge=0)] = 0

    @property
    def fresh(self) -> bool:
        """Whether a student of its own is made, instead of teaching the model."""
        return self.student is not None or self.source is not None


CompressStep = NormsStep | LowRankStep | PruneChannelsStep | PruneWeightsStep | DistilStep
"""One entry of `[[compress.steps]]`; `method` says which."""


class CompressPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[compress]`: steps that make the trained model smaller before it is exported, in the order given.

    Attributes:
        steps: one table `[[compress.steps]]` each; `method` chooses among those below.
        save: folder that receives the compressed model as `state.safetensors` and `structure.json`; not written
            where it is not set.
    """

    steps: Annotated[tuple[CompressStep, ...], Meta(min_length=1)]
    save: Path | None = None


class ExportPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[export]`: torch to ONNX.

    Attributes:
        opset: ONNX opset; by default the newest that the target's minimum runtime and the exporter know.
        batch: `dynamic`, or a fixed number of samples.
        tolerance: largest |onnx - torch| accepted, relative to the largest |torch| value of the output.
        preprocess: `graph` makes scale, mean and std of inputs that have `preprocess` a part of the files, which then
            take unsigned bytes, HWC; `outside` leaves them to whoever runs the files.
    """

    opset: Positive | None = None
    batch: Literal["dynamic"] | Positive = "dynamic"
    tolerance: Annotated[float, Meta(gt=0)] = 1e-3
    preprocess: Literal["outside", "graph"] = "outside"


class QuantizePlan(QuantScheme, frozen=True, kw_only=True):
    """`[quantize]`: int8 with calibration data.

    Attributes:
        enabled: build int8 variants beside the float one.
        try_dynamic: for transformers and LSTMs, build a variant with ranges taken at run time too.
        try_products: race a file in which only convolutions and matrix products are int8 against the one in which
            all is that can be; where it is faster and passes the gate, it takes the other's place.
        budget: what repairing an int8 variant that fails the gate may take: evaluations, or a time as in `"90 s"`;
            0 repairs nothing.
    """

    enabled: bool = True
    try_dynamic: bool = True
    try_products: bool = True
    budget: Annotated[int, Meta(ge=0)] | Annotated[str, Meta(pattern=r"^[0-9]+ ?s$")] = 16

    @property
    def scheme(self) -> QuantScheme:
        """The scheme alone, as it flows to the rooms and into keys."""
        return QuantScheme(**{name: getattr(self, name) for name in QuantScheme.__struct_fields__})


class GatePlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gate]`: what a variant must keep to be published; a failed gate publishes nothing.

    Attributes:
        max_relative_loss: largest share of the model's metric that may be lost; acts where there are labels.
        min_sqnr_db: least signal to quantization noise ratio of each output, in dB. By default it acts where there
            are no labels and no other rule: noise of at most 1 % of the signal's power.
        min_cosine: least cosine similarity of each output with the model's; off by default.
        min_top1_agreement: least share of rows (pixels, in maps N, C, H, W) with the model's arg-max; off by default.
    """

    max_relative_loss: Share = 0.01
    min_sqnr_db: float | None = None
    min_cosine: Annotated[float, Meta(ge=-1, le=1)] | None = None
    min_top1_agreement: Share | None = None


class ProfilePlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[profile]`: how latency is measured.

    Attributes:
        enabled: measure latency; without it the float variant is the default.
        threads: threads of the runtime.
        affinity: numbers of the CPUs to run on; by default the system decides.
        min_samples: steady-state runs of each variant, at least.
        min_seconds: time spent in steady state, at least.
        max_seconds: time spent in steady state, at most; a wider interval than asked is then flagged.
        ci_width: wanted width of the median's 95 % confidence interval, relative to the median.
        warmup_seconds: time spent warming up each variant.
        seed: of the random order in which variants run.
    """

    enabled: bool = True
    threads: Positive = 1
    affinity: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    min_samples: Positive = 200
    min_seconds: Seconds = 1.0
    max_seconds: Annotated[float, Meta(ge=1e-9)] = 20.0
    ci_width: Annotated[float, Meta(ge=1e-9)] = 0.02
    warmup_seconds: Seconds = 0.3
    seed: Annotated[int, Meta(ge=0)] = 0
