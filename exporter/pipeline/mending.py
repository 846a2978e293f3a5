"""What is done to a judged int8 model: repairs where it fails the gate, a faster form where it passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from exporter.artifacts import NodeDamage, QuantScheme
from exporter.events import Emit, Note
from exporter.pipeline.judged import Judged, change_of, products_only
from exporter.pipeline.quick_races import QuickRaces
from exporter.pipeline.repair import Budget, Remedy, Repairing, Workshop
from exporter.pipeline.results import Int8Model
from exporter.plan_types import QuantizePlan
from exporter.tables import repair_text

FASTER = 0.97
"""Latency ratio below which a form counts as faster in a short race: nearer to 1, another race could differ."""


class Maker(Protocol):
    """Makes int8 files of one kind, and judges them."""

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        """What repairing may change in such files."""

    def quantized(self, model: Int8Model, scheme: QuantScheme) -> Int8Model:
        """The model, made with another scheme."""

    def judged(self, model: Int8Model, scheme: QuantScheme) -> Judged:
        """The same, run over the evaluation data and gated."""

    def rank(self, model: Int8Model) -> Sequence[NodeDamage]:
        """Noise of each int8 node, worst first."""

    def uneven(self, model: Int8Model) -> int:
        """Pairs of layers that equalizing promises something for."""

    def products(self, model: Int8Model) -> tuple[str, ...]:
        """Operators of a static model that multiply by weights; none where nothing else is int8."""


class Mending(msgspec.Struct, frozen=True, kw_only=True):
    """Repairs models and hastens them; says what it did.

    Attributes:
        emit: is told.
        quantize: the plan's section.
        races: measure one model against another.
        maker: of the models.
    """

    emit: Emit
    quantize: QuantizePlan
    races: QuickRaces
    maker: Maker

    def repaired(self, first: Judged) -> Judged:
        """The best that the budget allows of a model that fails the gate."""
        name, maker = first.model.file.name, self.maker
        budget = Budget(self.quantize.budget)
        workshop = Workshop(
            judge=lambda scheme: maker.judged(first.model, scheme),
            rank=maker.rank,
            uneven=maker.uneven,
            products=maker.products,
            make=lambda scheme: maker.quantized(first.model, scheme),
            race=lambda after, before: self.races.ratio(after, before, f"latency cost of repairing {name}"),
            remedies=maker.remedies,
        )
        repairing = Repairing(first, workshop, budget)
        repaired = repairing.run()
        for repair in repaired.model.repairs:
            self.emit(Note(text=f"repair of {name}: {repair_text(repair)}"))
        if repairing.ended:
            self.emit(Note(text=f"repair of {name}: the budget of {budget.text} ended; the best is kept"))
        return repaired

    def hastened(self, judged: Judged) -> Judged:
        """The model, or that in which only products are int8, where this passes the gate and is faster."""
        model, ops = judged.model, self.maker.products(judged.model)
        if judged.fidelity.gate.failures or not self.quantize.try_products or not ops:
            return judged
        if not self.races.possible(model):
            return judged
        scheme = msgspec.structs.replace(model.file.scheme, ops=ops)
        lean = self.maker.quantized(model, scheme)
        ratio = self.races.ratio(lean, model, f"race {model.file.name} with {products_only(ops)}")
        if ratio is None or ratio > FASTER:
            return judged
        candidate = self.maker.judged(model, scheme)
        kept = not candidate.fidelity.gate.failures
        repair = msgspec.structs.replace(
            change_of(products_only(ops), judged, candidate, kept=kept, reason="speed"), latency=ratio
        )
        self.emit(Note(text=f"{model.file.name}, for speed: {repair_text(repair)}"))
        chosen = candidate if kept else judged
        told = msgspec.structs.replace(chosen.model, repairs=(*model.repairs, repair))
        return msgspec.structs.replace(chosen, model=told)
