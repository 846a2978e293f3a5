"""Static int8 of a target that quantizes by itself, held against that of ONNX on the same data.

Two quantizers that do the same to one model agree within a few tenths of a dB. What is further apart has a cause, and
is looked into by making the ONNX file as the other one was made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from exporter.artifacts import Fidelity, Lint, QuantScheme, TensorSpec, canonical
from exporter.pipeline.candidates import Made
from exporter.pipeline.job import Job
from exporter.pipeline.judging import judge
from exporter.pipeline.quantizing import quantized
from exporter.pipeline.results import FloatModel, Int8Model, Int8Side, Reference, load_json
from exporter.pipeline.steps import versions
from exporter.plan import TargetPlan
from exporter.target_api import Requantizing, SchemeNeed, Target, VariantFile

APART_DB = 3.0
"""SQNR that two int8 files of one model may differ by without a word on why."""
RECURRENT = ("LSTM", "GRU", "RNN")
KEYS = (
    "weights",
    "activations",
    "per_channel",
    "reduce_range",
    "observer",
    "equalize",
    "correct_biases",
    "exclude",
    "ops",
)
NAMES = ("exclude", "ops")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a cross-check found, in words; `lint` where the files are apart."""

    text: str
    lint: Lint | None = None


def in_build_order(plans: Sequence[TargetPlan], load_target: Callable[[str], Target]) -> list[TargetPlan]:
    """Targets that quantize by themselves come last: their int8 is held against that of ONNX."""
    return sorted(plans, key=lambda one: isinstance(load_target(one.name), Requantizing))


def static_sides(target: str, judged: Sequence[tuple[VariantFile, Fidelity]]) -> list[Int8Side]:
    """The static int8 files among a target's variants that run on the target's own runtime."""
    own = judged[0][0].runtime if judged else ""
    return [
        Int8Side(target=target, variant=one.name, scheme=one.scheme, coverage=one.coverage, fidelity=fidelity)
        for one, fidelity in judged
        if one.scheme is not None and not one.scheme.dynamic and one.coverage is not None and one.runtime == own
    ]


class MadeAlike(msgspec.Struct, frozen=True, kw_only=True):
    """Makes the ONNX file of a model as another quantizer made its own, and judges it.

    Its arithmetic is simulated, so that saturation on this CPU plays no part.

    Attributes:
        job: the build.
        inputs: of the model.
        float_model: the float ONNX file.
        reference: outputs of the trained model.
        samples: calibration samples, for the progress bar.
    """

    job: Job
    inputs: tuple[TensorSpec, ...]
    float_model: FloatModel
    reference: Reference
    samples: int

    def __call__(self, other: Int8Side, scheme: QuantScheme) -> Int8Side:
        """The ONNX file, made with this scheme."""
        job, label = self.job, "cross-check int8 in ONNX"
        made = quantized(job, self.inputs, self.float_model, SchemeNeed(), scheme, self.samples)

        def build(folder: Path) -> None:
            from exporter.onnx_export import onnx_session

            session = onnx_session(made.file.path, simulated=True)
            progress = job.steps.progress(label)
            runs_in: Literal["torch", "onnx"] = "onnx" if job.source.kind == "onnx" else "torch"
            found = judge(job.data, self.inputs, self.reference, session, None, runs_in=runs_in, progress=progress)
            (folder / "fidelity.json").write_bytes(canonical(found))

        parts = {
            "model": made.content,
            "reference": self.reference.content,
            "inputs": self.inputs,
            "versions": versions("onnxruntime"),
        }
        stored = job.steps.stored("cross-check", 2, parts, build, label=label, total=self.reference.batches)
        fidelity = load_json(stored.folder / "fidelity.json", Fidelity)
        return msgspec.structs.replace(other, scheme=scheme, coverage=made.file.coverage, fidelity=fidelity)


def cross_checked(
    made: Made, own: Sequence[Int8Side], others: Sequence[Int8Side], alike: MadeAlike
) -> tuple[Made, tuple[str, ...]]:
    """A target's files with what cross-checking found of them, and the same in words."""
    models, texts = list(made.models), []
    shipped = {variant.name: fidelity for variant, fidelity in made.judged}
    for side in own:
        verdict = cross_check(side, others, alike, changed=shipped.get(side.variant) != side.fidelity)
        texts.append(verdict.text)
        if verdict.lint is not None:
            models = [
                _with_lint(model, verdict.lint) if model.file.name == side.variant else model for model in models
            ]
    return msgspec.structs.replace(made, models=models), tuple(texts)


def _with_lint(model: Int8Model, lint: Lint) -> Int8Model:
    return msgspec.structs.replace(model, lints=(*model.lints, lint))


def _nearest(own: Int8Side, others: Sequence[Int8Side]) -> Int8Side | None:
    """The ONNX file that was made most alike."""
    return min(others, key=lambda other: len(_differing(own.scheme, other.scheme)), default=None)


def cross_check(
    own: Int8Side,
    others: Sequence[Int8Side],
    alike: Callable[[Int8Side, QuantScheme], Int8Side],
    *,
    changed: bool = False,
) -> Verdict:
    """Compares SQNR output by output.

    Args:
        own: the file of the target that quantizes by itself.
        others: ONNX files of the same plan.
        alike: makes and judges an ONNX file with another scheme, on the samples of `own`.
        changed: what is shipped is another file: repaired, or made faster.
    """
    other = _nearest(own, others)
    if other is None:
        return Verdict(text=f"{own.variant} was not cross-checked: no static int8 in ONNX was made beside it")
    if other.fidelity.samples != own.fidelity.samples:
        # A fixed batch leaves out the samples that do not fill one.
        other = alike(other, other.scheme)
    name = f"{own.variant} as first made" if changed else own.variant
    output = _furthest(own, other)
    here, there = own.sqnr_db(output), other.sqnr_db(output)
    both = f"SQNR of '{output}' {here:.1f} dB, in ONNX {there:.1f} dB ({other}), on the same data"
    if abs(here - there) < APART_DB:
        return Verdict(text=f"{name} was cross-checked: {both}")
    why = _cause(own, other, output, alike)
    text = f"{name} and ONNX are {abs(here - there):.1f} dB apart: {both}; {why}"
    before = "as first made: " if changed else ""
    lint = Lint(
        kind="cross-check", subject=output, text=f"{before}{both}; {why}", action="see which of both loses more"
    )
    return Verdict(text=text, lint=lint)


def _furthest(own: Int8Side, other: Int8Side) -> str:
    names = [one.output for one in own.fidelity.outputs if one.floating]
    names = names or [one.output for one in own.fidelity.outputs]
    return max(names, key=lambda name: abs(own.sqnr_db(name) - other.sqnr_db(name)))


def _cause(own: Int8Side, other: Int8Side, output: str, alike: Callable[[Int8Side, QuantScheme], Int8Side]) -> str:
    """Whether the scheme explains it, by making the ONNX file as the other one; else what each leaves in float."""
    scheme = msgspec.structs.replace(own.scheme, exclude=(), ops=())
    differing = _differing(scheme, other.scheme)
    made = other
    found = []
    if differing:
        made = alike(other, scheme)
        words = ", ".join(dict.fromkeys(_words(key, scheme) for key in differing))
        # What is left in float goes by the names of each file.
        like = "otherwise as here" if own.scheme.exclude or own.scheme.ops else "as here"
        reached = f"with {words} {like} ONNX has {made.sqnr_db(output):.1f} dB"
        if abs(own.sqnr_db(output) - made.sqnr_db(output)) < APART_DB:
            return f"the scheme is why: {reached}"
        found.append(f"the scheme is not why: {reached}")
    if recurrent := [one.op for one in made.coverage.skipped if one.op in RECURRENT]:
        text = f"ONNX leaves {len(recurrent)} {recurrent[0]} in float, and here it is unrolled into integer operators"
        return "; ".join([*found, text])
    for side, place in ((own, "here"), (made, "in ONNX")):
        floats = Counter(one.op for one in side.coverage.skipped).most_common(4)
        if floats:
            found.append(f"in float {place}: {', '.join(f'{count} {op}' for op, count in floats)}")
    return "; ".join(found) or "scheme and operators in float are the same in both, and explain nothing"


def _words(key: str, scheme: QuantScheme) -> str:
    return "nothing left in float by name or type" if key in NAMES else f"{key} = {getattr(scheme, key)!r}"


def _differing(one: QuantScheme, other: QuantScheme) -> list[str]:
    return [key for key in KEYS if getattr(one, key) != getattr(other, key)]
