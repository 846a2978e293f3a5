"""Brings an int8 model that fails the gate back within it, the cheapest change first.

Even channels and corrected biases cost nothing at run time, nor do other observers or other scales of weights.
Unsigned weights cost something, and a node in float more, so nodes become float last: a few of the worst, then all
but convolutions and matrix products, then as many of the worst as it takes.
What a later change made useless is taken back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import msgspec

from exporter.artifacts import NodeDamage, ObserverName, QuantScheme, Repair
from exporter.pipeline.judged import GAIN_DB, Change, Judged, better, change_of, changed, noise_db, products_only
from exporter.pipeline.results import Int8Model

WORST_SHARE = 0.25
"""Share of the nodes whose ranges and scales are tried otherwise before any becomes float."""
OTHER_OBSERVERS: tuple[ObserverName, ...] = ("mse", "percentile")
CONVOLUTIONS = ("Conv", "ConvTranspose")
BIASED = (*CONVOLUTIONS, "Gemm", "MatMul")
"""Operators that a bias is part of, or follows."""
MOVERS = frozenset(
    ("Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze")
)
"""Operators that move values and compute none: their noise is that of their input, in float as in int8."""
FEW = 4
"""Nodes that become float by themselves before everything but convolutions and matrix products does."""
BEARABLE = 1.5
"""Latency ratio up to which unsigned weights are tried: int8 takes little less than two thirds of float's time."""
NAMES_SHOWN = 3

Remedy = Literal[
    "equalize", "saturation", "biases", "observers", "scales", "unsigned", "few-floats", "products", "floats"
]
REMEDIES: tuple[Remedy, ...] = get_args(Remedy)
"""All of them, the cheapest first."""


class Workshop(msgspec.Struct, frozen=True, kw_only=True):
    """What repairing needs done.

    Attributes:
        judge: makes the model of a scheme, runs it over the evaluation data and gates it.
        rank: noise of each int8 node, worst first.
        uneven: pairs of layers that equalizing promises something for.
        products: the operators among a model's that multiply by weights, or none where nothing else is int8.
        make: makes the model of a scheme, and no more.
        race: latency of the first model by that of the second, or None where this machine cannot tell.
        remedies: what may be changed, in this order.
    """

    judge: Callable[[QuantScheme], Judged]
    rank: Callable[[Int8Model], Sequence[NodeDamage]]
    uneven: Callable[[Int8Model], int]
    products: Callable[[Int8Model], tuple[str, ...]]
    make: Callable[[QuantScheme], Int8Model]
    race: Callable[[Int8Model, Int8Model], float | None]
    remedies: tuple[Remedy, ...] = REMEDIES


class Budget:
    """Evaluations, or seconds in `"90 s"`, that repairing may take."""

    def __init__(self, budget: int | str, clock: Callable[[], float] = time.monotonic) -> None:
        self.text = f"{budget} evaluations" if isinstance(budget, int) else budget
        self._left = budget if isinstance(budget, int) else None
        self._clock = clock
        self._end = None if isinstance(budget, int) else clock() + float(budget.removesuffix("s"))

    def spend(self) -> bool:
        """Takes one evaluation; False when there is none left."""
        if self._end is not None:
            return self._clock() < self._end
        if not self._left:
            return False
        self._left -= 1
        return True


class Repairing:
    """One model's repair: the best so far, and what was tried."""

    def __init__(self, first: Judged, workshop: Workshop, budget: Budget) -> None:
        self.best = first
        self._first = first
        self._in_vain: tuple[Judged, int] = (first, 0)
        self._kept: list[Change] = []
        self.repairs: list[Repair] = []
        self.ended = False
        self._taken_back = False
        self._workshop = workshop
        self._budget = budget

    def run(self) -> Judged:
        """Tries changes until the gate is met, the budget ends, or nothing is left to try."""
        phases: dict[Remedy, Callable[[], None]] = {
            "equalize": self._equalize,
            "saturation": self._saturation,
            "biases": self._biases,
            "observers": self._observers,
            "scales": self._scales,
            "unsigned": self._unsigned,
            "few-floats": lambda: self._floats(FEW),
            "products": self._products,
            "floats": self._floats,
        }
        for remedy in self._workshop.remedies:
            phases[remedy]()
            if self.best.passed or self.ended:
                break
        self._take_back()
        self._tell_anew()
        self._measure()
        return msgspec.structs.replace(
            self.best, model=msgspec.structs.replace(self.best.model, repairs=tuple(self.repairs))
        )

    @property
    def _scheme(self) -> QuantScheme:
        return self.best.model.file.scheme

    def _equalize(self) -> None:
        if not self._scheme.equalize and (pairs := self._workshop.uneven(self.best.model)):
            self._try(f"channels evened out between layers ({pairs} uneven pairs)", equalize=True)

    def _saturation(self) -> None:
        """Sums of full-range bytes saturate on some CPUs, where one bit less is more exact than 8."""
        if self._scheme.weights == "int8" and not self._scheme.reduce_range:
            self._try("7-bit weights", reduce_range=True)

    def _biases(self) -> None:
        layers = self.best.model.file.coverage.quantized_ops.keys() & set(BIASED)
        if layers and not self._scheme.correct_biases:
            self._try("biases corrected by the mean error of their channels", correct_biases=True)

    def _observers(self) -> None:
        tensors = [node.output for node in self._worst() if node.range is not None]
        for observer in OTHER_OBSERVERS:
            now = self._scheme
            changed = [name for name in tensors if now.observers.get(name, now.observer) != observer]
            if changed and not self.best.passed:
                self._try(f"observer {observer} for {_named(changed)}", observers=dict.fromkeys(changed, observer))

    def _scales(self) -> None:
        if not self._scheme.per_channel:
            self._try("one scale for each output channel of weights", per_channel=True)
        convolutions = [node.node for node in self._worst() if node.op in CONVOLUTIONS]
        changed = [name for name in convolutions if name not in self._scheme.per_tensor]
        if changed and not self.best.passed and self._scheme.per_channel:
            self._try(f"one scale for the weights of {_named(changed)}", per_tensor=tuple(changed))

    def _unsigned(self) -> None:
        """All 8 bits of weights where signed ones have 7: sums of unsigned ones never saturate, and take longer.

        Some kernels have no form for them at all, and then fall back to one that takes several times as long.
        """
        if self._scheme.weights != "int8" or not self._scheme.reduce_range:
            return
        values = {"weights": "uint8", "reduce_range": False}
        ratio = self._workshop.race(self._workshop.make(changed(self._scheme, values)), self.best.model)
        if ratio is None or ratio < BEARABLE:
            self._try("8-bit unsigned weights", slower=True, **values)

    def _products(self) -> None:
        """Leaves int8 to what gains most by it: chains of small operators lose much in 8 bits and gain little."""
        if not self._scheme.ops and (ops := self._workshop.products(self.best.model)):
            self._try(products_only(ops), slower=True, ops=ops)

    def _floats(self, most: int | None = None) -> None:
        """Doubles the number of worst nodes in float until the gate is met, then halves what can be taken back."""
        base, before = self.best, len(self._kept)
        order = [node.node for node in self._ranked() if node.op not in MOVERS]
        # With every node in float nothing of int8 would be left.
        most, emptied = min(len(order) - 1, most or len(order)), False
        failed, passed = self._in_vain[1] if self._in_vain[0] is base else 0, None
        while passed is None and failed < most and not self.ended:
            count = (failed + most + 1) // 2 if emptied else min(max(1, 2 * failed), most)
            candidate = self._try_float(base, order[:count], before)
            if candidate is not None and not candidate.model.file.coverage.quantized:
                most, emptied = count - 1, True
            elif candidate is not None and candidate.passed:
                passed = count
            else:
                failed = count
        self._in_vain = base, failed
        while passed is not None and passed - failed > 1 and not self.ended:
            middle = (passed + failed) // 2
            candidate = self._try_float(base, order[:middle], before)
            if candidate is not None and candidate.passed:
                passed = middle
            else:
                failed = middle

    def _try_float(self, base: Judged, names: Sequence[str], before: int) -> Judged | None:
        """The model with these nodes in float; takes the place of what was kept after `before` where it is better."""

        def apply(scheme: QuantScheme) -> QuantScheme:
            exclude = (*scheme.exclude, *(name for name in names if name not in scheme.exclude))
            return msgspec.structs.replace(scheme, exclude=exclude)

        candidate = self._judged(apply(base.model.file.scheme))
        if candidate is None:
            return None
        # Fewer nodes in float are better once the gate is met, whatever that costs in SQNR.
        kept = candidate.passed or (not self.best.passed and better(candidate, self.best))
        if kept:
            for change in self._kept[before:]:
                self._mark(change.index, kept=False)
            del self._kept[before:]
        count = f"{len(names)} nodes" if len(names) > 1 else "1 node"
        self._record(f"{count} in float: {_named(names)}", candidate, apply, before=base, kept=kept, slower=True)
        return candidate

    def _take_back(self) -> None:
        """Drops changes that the gate is met without; one that costs nothing stays where it still brings SQNR."""
        for change in self._kept[-2::-1]:
            if not self.best.passed or self.ended:
                return
            others = [one for one in self._kept if one is not change]
            candidate = self._judged(self._scheme_of(others))
            if candidate is None or not candidate.passed:
                continue
            if change.slower or noise_db(candidate) > noise_db(self.best) - GAIN_DB:
                self._mark(change.index, kept=False)
                self._taken_back = True
                self._kept = others
                self.best = candidate

    def _tell_anew(self) -> None:
        """Says what each kept change brought to those before it, where one between them was taken back."""
        before = self._first
        for number, change in enumerate(self._kept if self._taken_back else (), 1):
            last = number == len(self._kept)
            after = self.best if last else self._judged(self._scheme_of(self._kept[:number]))
            if after is None:
                return
            told = change_of("", before, after, kept=True)
            self._mark(change.index, sqnr_db=told.sqnr_db, metric=told.metric, quantized=told.quantized)
            before = after

    def _measure(self) -> None:
        """Races each kept change against what was there before it."""
        before = self._first.model
        for number, change in enumerate(self._kept, 1):
            after = self._workshop.make(self._scheme_of(self._kept[:number]))
            self._mark(change.index, latency=self._workshop.race(after, before))
            before = after

    def _scheme_of(self, changes: Sequence[Change]) -> QuantScheme:
        scheme = self._first.model.file.scheme
        for change in changes:
            scheme = change.apply(scheme)
        return scheme

    def _try(self, text: str, *, slower: bool = False, **values: object) -> None:
        def apply(scheme: QuantScheme) -> QuantScheme:
            return changed(scheme, values)

        before = self.best
        candidate = self._judged(apply(self._scheme))
        if candidate is not None:
            kept = better(candidate, before)
            self._record(text, candidate, apply, before=before, kept=kept, slower=slower)

    def _judged(self, scheme: QuantScheme) -> Judged | None:
        self.ended = self.ended or not self._budget.spend()
        return None if self.ended else self._workshop.judge(scheme)

    def _record(
        self,
        text: str,
        candidate: Judged,
        apply: Callable[[QuantScheme], QuantScheme],
        *,
        before: Judged,
        kept: bool,
        slower: bool,
    ) -> None:
        self.repairs.append(change_of(text, before, candidate, kept=kept))
        if kept:
            self._kept.append(Change(len(self.repairs) - 1, apply, slower))
            self.best = candidate

    def _mark(self, index: int, **values: object) -> None:
        self.repairs[index] = msgspec.structs.replace(self.repairs[index], **values)

    def _ranked(self) -> Sequence[NodeDamage]:
        return self._workshop.rank(self.best.model)

    def _worst(self) -> Sequence[NodeDamage]:
        ranked = self._ranked()
        return ranked[: max(1, round(WORST_SHARE * len(ranked)))]


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{shown}{more}"
