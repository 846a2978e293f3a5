"""Brings an int8 model that fails the gate back within it, the cheapest change first.

Even channels cost nothing at run time, nor does another observer or other scales of weights; a node in float does.
So nodes become float last, worst first, and only as many as the gate needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from exporter.artifacts import Fidelity, NodeDamage, ObserverName, QuantScheme, Repair
from exporter.pipeline.results import Int8Model

WORST_SHARE = 0.25
"""Share of the nodes whose ranges and scales are tried otherwise before any becomes float."""
OTHER_OBSERVERS: tuple[ObserverName, ...] = ("mse", "percentile")
CONVOLUTIONS = ("Conv", "ConvTranspose")
GAIN_DB = 0.1
"""SQNR that a change must bring to stay where it does not better the metric."""
NAMES_SHOWN = 3


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """An int8 model and its gated fidelity."""

    model: Int8Model
    fidelity: Fidelity

    @property
    def passed(self) -> bool:
        """Whether the gate was met by a model of which something is int8."""
        return not self.fidelity.gate.failures and self.model.file.coverage.quantized > 0

    @property
    def sqnr_db(self) -> float | None:
        """Of the worst output; None when all are equal bit for bit."""
        found = [output.sqnr_db for output in self.fidelity.outputs if output.sqnr_db is not None]
        return min(found, default=None)


class Workshop(msgspec.Struct, frozen=True, kw_only=True):
    """What repairing needs done.

    Attributes:
        judge: makes the model of a scheme, runs it over the evaluation data and gates it.
        rank: noise of each int8 node, worst first.
        uneven: pairs of layers that equalizing promises something for.
    """

    judge: Callable[[QuantScheme], Judged]
    rank: Callable[[Int8Model], Sequence[NodeDamage]]
    uneven: Callable[[Int8Model], int]


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
        self.repairs: list[Repair] = []
        self.ended = False
        self._workshop = workshop
        self._budget = budget

    def run(self) -> Judged:
        """Tries changes until the gate is met, the budget ends, or nothing is left to try."""
        for phase in (self._equalize, self._saturation, self._observers, self._scales, self._floats):
            phase()
            if self.best.passed or self.ended:
                break
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

    def _observers(self) -> None:
        tensors = [node.output for node in self._worst() if node.range is not None]
        for observer in OTHER_OBSERVERS:
            now = self._scheme
            changed = [name for name in tensors if now.observers.get(name, now.observer) != observer]
            if changed and not self.best.passed:
                observers = {**now.observers, **dict.fromkeys(changed, observer)}
                self._try(f"observer {observer} for {_named(changed)}", observers=observers)

    def _scales(self) -> None:
        if not self._scheme.per_channel:
            self._try("one scale for each output channel of weights", per_channel=True)
        convolutions = [node.node for node in self._worst() if node.op in CONVOLUTIONS]
        changed = [name for name in convolutions if name not in self._scheme.per_tensor]
        if changed and not self.best.passed and self._scheme.per_channel:
            per_tensor = (*self._scheme.per_tensor, *changed)
            self._try(f"one scale for the weights of {_named(changed)}", per_tensor=per_tensor)

    def _floats(self) -> None:
        """Doubles the number of worst nodes in float until the gate is met, then halves what can be taken back."""
        base = self.best
        order = [node.node for node in self._ranked()]
        failed, passed = 0, None
        # With every node in float nothing of int8 would be left.
        most = len(order) - 1
        while passed is None and failed < most and not self.ended:
            count = min(max(1, 2 * failed), most)
            if self._try_float(base, order[:count]):
                passed = count
            failed = count if passed is None else failed
        while passed is not None and passed - failed > 1 and not self.ended:
            middle = (passed + failed) // 2
            if self._try_float(base, order[:middle]):
                passed = middle
            else:
                failed = middle

    def _try_float(self, base: Judged, names: Sequence[str]) -> bool:
        """Whether the gate is met with these nodes in float as well."""
        scheme = base.model.file.scheme
        exclude = (*scheme.exclude, *(name for name in names if name not in scheme.exclude))
        candidate = self._judged(msgspec.structs.replace(scheme, exclude=exclude))
        if candidate is None:
            return False
        # Fewer nodes in float are better once the gate is met, whatever that costs in SQNR.
        kept = candidate.passed or (not self.best.passed and _better(candidate, self.best))
        self._record(f"{_named(names)} in float", candidate, kept=kept)
        return candidate.passed

    def _try(self, change: str, **changes: object) -> None:
        candidate = self._judged(msgspec.structs.replace(self._scheme, **changes))
        if candidate is not None:
            self._record(change, candidate, kept=_better(candidate, self.best))

    def _judged(self, scheme: QuantScheme) -> Judged | None:
        self.ended = self.ended or not self._budget.spend()
        return None if self.ended else self._workshop.judge(scheme)

    def _record(self, change: str, candidate: Judged, *, kept: bool) -> None:
        before = self.best
        metrics = before.fidelity.metric, candidate.fidelity.metric
        self.repairs.append(
            Repair(
                change=change,
                kept=kept,
                sqnr_db=(before.sqnr_db, candidate.sqnr_db),
                metric=(metrics[0].value, metrics[1].value) if metrics[0] and metrics[1] else None,
                quantized=(before.model.file.coverage.quantized, candidate.model.file.coverage.quantized),
            )
        )
        if kept:
            self.best = candidate

    def _ranked(self) -> Sequence[NodeDamage]:
        return self._workshop.rank(self.best.model)

    def _worst(self) -> Sequence[NodeDamage]:
        ranked = self._ranked()
        return ranked[: max(1, round(WORST_SHARE * len(ranked)))]


def _better(one: Judged, other: Judged) -> bool:
    """Whether a model is nearer to the gate: it passes, loses less, or, with equal losses, has less noise."""
    if one.passed != other.passed:
        return one.passed
    losses = [_loss(side.fidelity) for side in (one, other)]
    noise = [float("inf") if side.sqnr_db is None else side.sqnr_db for side in (one, other)]
    return losses[0] < losses[1] or (losses[0] == losses[1] and noise[0] > noise[1] + GAIN_DB)


def _loss(fidelity: Fidelity) -> tuple[int, float]:
    """Values that are no numbers count before any metric, which may pass over them."""
    broken = sum(output.broken for output in fidelity.outputs)
    return broken, fidelity.metric.relative_loss if fidelity.metric else 0.0


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{shown}{more}"
