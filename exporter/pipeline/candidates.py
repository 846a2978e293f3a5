"""The int8 candidates of a target: made, judged, repaired where they fail the gate, dropped where nobody asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from exporter.artifacts import Fidelity, NodeDamage, QuantScheme, TensorSpec
from exporter.events import Note
from exporter.pipeline.job import Job
from exporter.pipeline.judged import Judged, products_among
from exporter.pipeline.linting import lint_text
from exporter.pipeline.mending import Mending
from exporter.pipeline.quantizing import dynamic_model, int8_model, quantized
from exporter.pipeline.quick_races import QuickRaces
from exporter.pipeline.ranking import rank_nodes
from exporter.pipeline.repair import REMEDIES, Remedy
from exporter.pipeline.results import FloatModel, Int8Model
from exporter.plan import TargetPlan
from exporter.target_api import Need, VariantFile

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
IDLE = {
    "observers": "it is not rounded to 8 bits",
    "per_tensor": "it has no weights in int8 with a scale for each channel",
}
UNPAIRED = "between no two layers there is nothing but Relu, LeakyRelu or pooling"


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A target's files in the store.

    Attributes:
        folder: where they are.
        content: digest of what the target's `convert` wrote.
        judged: each variant with its gated fidelity.
        models: the int8 models behind them.
    """

    folder: Path
    content: str
    judged: Sequence[tuple[VariantFile, Fidelity]]
    models: Sequence[Int8Model]

    def fidelity(self, name: str) -> Fidelity | None:
        """Of the variant of this name; None where the target made none."""
        return next((fidelity for variant, fidelity in self.judged if variant.name == name), None)


class Candidates:
    """Makes the int8 models of one target, in ONNX."""

    remedies: tuple[Remedy, ...] = REMEDIES

    def __init__(
        self,
        job: Job,
        plan: TargetPlan,
        inputs: tuple[TensorSpec, ...],
        float_model: FloatModel,
        samples: int,
        judge: Callable[[Sequence[Int8Model], str | None], Made],
        races: QuickRaces,
    ) -> None:
        """`judge` converts the models and evaluates all variants, or the one named."""
        self._races = races
        self._job = job
        self._plan = plan
        self._inputs = inputs
        self._float_model = float_model
        self._samples = samples
        self._judge = judge

    def settle(self, need: Need) -> Made:
        """The files to publish; one that fails the gate is among them only where repairing did not help."""
        mending = Mending(emit=self._job.steps.emit, quantize=self._plan.quantize, races=self._races, maker=self)
        models = self._models(need)
        made = self._judge(models, None)
        settled = []
        for model in models:
            fidelity = made.fidelity(model.file.name)
            offer = model.wanted.offered or (model.file.scheme.dynamic and not self._plan.quantize.dynamic)
            if fidelity is None:
                settled.append(model)
            elif offer and fidelity.gate.failures:
                why = "; ".join(fidelity.gate.failures)
                self._job.steps.emit(Note(text=f"{model.file.name} is left out: {why}"))
            elif not model.file.scheme.dynamic:
                judged = Judged(model=model, fidelity=fidelity)
                judged = mending.repaired(judged) if fidelity.gate.failures else judged
                settled.append(mending.hastened(judged).model)
            else:
                settled.append(model)
        for model in settled:
            self._remark(model)
        return made if settled == models else self._judge(settled, None)

    def _remark(self, model: Int8Model) -> None:
        if text := lint_text(model.lints):
            self._job.steps.emit(Note(text=f"{model.file.name}: {text}"))
        if not model.file.coverage.quantized:
            self._job.steps.emit(Note(text=f"no node became int8: {model.file.name} brings nothing"))
        if model.file.scheme.equalize and model.prepared is not None and not _paired_layers(model.prepared):
            self._job.steps.emit(Note(text=f"{model.file.name}: `quantize.equalize` evened out nothing: {UNPAIRED}"))

        for key, names in self._idle(model).items():
            listed = ", ".join(f"'{name}'" for name in names)
            self._job.steps.emit(
                Note(text=f"{model.file.name}: `quantize.{key}` acts on nothing at {listed}: {IDLE[key]}")
            )

    def _idle(self, model: Int8Model) -> Mapping[str, Sequence[str]]:
        asked = self._plan.quantize.scheme
        if model.file.scheme.dynamic or not (asked.observers or asked.per_tensor):
            return {}
        from exporter.quantize import idle_names

        return idle_names(model.file.path, asked)

    def _models(self, need: Need) -> list[Int8Model]:
        quantize = self._plan.quantize
        if not quantize.enabled or not need.int8:
            return []
        if quantize.dynamic:
            return [dynamic_model(self._job, self._float_model, quantize.scheme)]
        from exporter.quantize import is_transformer, suits_dynamic

        path, ops = self._float_model.path, quantize.ops
        static = [
            int8_model(self._job, self._inputs, self._float_model, wanted, quantize.scheme, self._samples)
            for wanted in need.int8
            if not wanted.offered or is_transformer(path, ops)
        ]
        offered = need.dynamic and quantize.try_dynamic and suits_dynamic(path, ops)
        return static + ([dynamic_model(self._job, self._float_model, quantize.scheme)] if offered else [])

    def quantized(self, model: Int8Model, scheme: QuantScheme) -> Int8Model:
        """See `Maker`."""
        return quantized(self._job, self._inputs, self._float_model, model.wanted, scheme, self._samples)

    def judged(self, model: Int8Model, scheme: QuantScheme) -> Judged:
        """See `Maker`."""
        candidate = self.quantized(model, scheme)
        fidelity = self._judge([candidate], model.file.name).fidelity(model.file.name)
        assert fidelity is not None, "the target made this variant before"
        return Judged(model=candidate, fidelity=fidelity)

    def rank(self, model: Int8Model) -> Sequence[NodeDamage]:
        """See `Maker`."""
        return rank_nodes(self._job, self._inputs, model)

    def uneven(self, model: Int8Model) -> int:
        """See `Maker`."""
        from exporter.quantize import uneven_pairs

        return uneven_pairs(model.prepared) if model.prepared is not None else 0

    def products(self, model: Int8Model) -> tuple[str, ...]:
        """See `Maker`; products of two activations, as in attention, count among them."""
        return products_among(PRODUCTS, model)


def _paired_layers(prepared: Path) -> int:
    from exporter.quantize import paired_layers

    return paired_layers(prepared)
