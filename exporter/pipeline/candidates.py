"""The int8 candidates of a target: made, judged, repaired where they fail the gate, dropped where nobody asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from exporter.artifacts import Fidelity, QuantScheme, TensorSpec
from exporter.events import Note
from exporter.pipeline.job import Job
from exporter.pipeline.judged import Judged, change_of, products_only
from exporter.pipeline.linting import lint_text
from exporter.pipeline.quick_races import QuickRaces
from exporter.pipeline.ranking import rank_nodes
from exporter.pipeline.repair import Budget, Repairing, Workshop
from exporter.pipeline.results import FloatModel, Int8Model
from exporter.plan import TargetPlan
from exporter.tables import repair_text
from exporter.target_api import Need, VariantFile

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FASTER = 0.97
"""Latency ratio below which a form counts as faster in a short race: nearer to 1, another race could differ."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A target's files in the store, each variant with its gated fidelity, and the int8 models behind them."""

    folder: Path
    judged: Sequence[tuple[VariantFile, Fidelity]]
    models: Sequence[Int8Model]

    def fidelity(self, name: str) -> Fidelity | None:
        """Of the variant of this name; None where the target made none."""
        return next((fidelity for variant, fidelity in self.judged if variant.name == name), None)


class Candidates:
    """Makes the int8 models of one target."""

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
        models = self._models(need)
        made = self._judge(models, None)
        settled = []
        for model in models:
            fidelity = made.fidelity(model.file.name)
            if fidelity is None:
                settled.append(model)
            elif not model.file.scheme.dynamic:
                judged = Judged(model=model, fidelity=fidelity)
                settled.append(self._hastened(self._repaired(judged) if fidelity.gate.failures else judged))
            elif not fidelity.gate.failures or self._plan.quantize.dynamic:
                settled.append(model)
            else:  # It was an offer of ours, not the user's wish.
                why = "; ".join(fidelity.gate.failures)
                self._job.steps.emit(Note(text=f"{model.file.name} is left out: {why}"))
        for model in settled:
            self._remark(model)
        return made if settled == models else self._judge(settled, None)

    def _remark(self, model: Int8Model) -> None:
        if text := lint_text(model.lints):
            self._job.steps.emit(Note(text=f"{model.file.name}: {text}"))
        if not model.file.coverage.quantized:
            self._job.steps.emit(Note(text=f"no node became int8: {model.file.name} brings nothing"))

    def _models(self, need: Need) -> list[Int8Model]:
        quantize = self._plan.quantize
        if not quantize.enabled or not need.int8:
            return []
        if quantize.dynamic:
            return [self._job.dynamic_model(self._float_model, quantize.scheme)]
        static = [
            self._job.int8_model(self._inputs, self._float_model, wanted, quantize.scheme, self._samples)
            for wanted in need.int8
        ]
        offered = need.dynamic and quantize.try_dynamic and self._suits_dynamic()
        return static + ([self._job.dynamic_model(self._float_model, quantize.scheme)] if offered else [])

    def _suits_dynamic(self) -> bool:
        from exporter.quantize import suits_dynamic

        return suits_dynamic(self._float_model.path)

    def _hastened(self, judged: Judged) -> Int8Model:
        """The model, or that in which only products are int8, where this passes the gate and is faster."""
        model, ops = judged.model, products(judged.model)
        if judged.fidelity.gate.failures or not self._plan.quantize.try_products or not ops:
            return model
        if not self._races.possible(model):
            return model
        scheme = msgspec.structs.replace(model.file.scheme, ops=ops)
        lean = self._quantized(model, scheme)
        ratio = self._races.ratio(lean, model, f"race {model.file.name} with {products_only(ops)}")
        if ratio is None or ratio > FASTER:
            return model
        candidate = self._judged(model, scheme)
        kept = not candidate.fidelity.gate.failures
        repair = msgspec.structs.replace(
            change_of(products_only(ops), judged, candidate, kept=kept, reason="speed"), latency=ratio
        )
        self._job.steps.emit(Note(text=f"{model.file.name}, for speed: {repair_text(repair)}"))
        chosen = candidate.model if kept else model
        return msgspec.structs.replace(chosen, repairs=(*model.repairs, repair))

    def _repaired(self, first: Judged) -> Judged:
        name = first.model.file.name
        budget = Budget(self._plan.quantize.budget)
        workshop = Workshop(
            judge=lambda scheme: self._judged(first.model, scheme),
            rank=lambda candidate: rank_nodes(self._job, self._inputs, candidate),
            uneven=_uneven,
            products=products,
            make=lambda scheme: self._quantized(first.model, scheme),
            race=lambda after, before: self._races.ratio(after, before, f"latency cost of repairing {name}"),
        )
        repairing = Repairing(first, workshop, budget)
        repaired = repairing.run()
        for repair in repaired.model.repairs:
            self._job.steps.emit(Note(text=f"repair of {name}: {repair_text(repair)}"))
        if repairing.ended:
            self._job.steps.emit(Note(text=f"repair of {name}: the budget of {budget.text} ended; the best is kept"))
        return repaired

    def _quantized(self, model: Int8Model, scheme: QuantScheme) -> Int8Model:
        return self._job.quantized(self._inputs, self._float_model, model.wanted, scheme, self._samples)

    def _judged(self, model: Int8Model, scheme: QuantScheme) -> Judged:
        candidate = self._quantized(model, scheme)
        fidelity = self._judge([candidate], model.file.name).fidelity(model.file.name)
        assert fidelity is not None, "the target made this variant before"
        return Judged(model=candidate, fidelity=fidelity)


def products(model: Int8Model) -> tuple[str, ...]:
    """The operators of a static model that multiply by weights; none where nothing else is int8, or a list was given.

    Products of two activations, as in attention, count among them.
    """
    done = model.file.coverage.quantized_ops
    if model.file.scheme.ops or not set(done) - set(PRODUCTS):
        return ()
    return tuple(op for op in PRODUCTS if op in done)


def _uneven(model: Int8Model) -> int:
    from exporter.quantize import uneven_pairs

    return uneven_pairs(model.prepared) if model.prepared is not None else 0
