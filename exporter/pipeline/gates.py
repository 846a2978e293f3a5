"""A target's accuracy gate: what is held against it, and what is said where it is not met."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.artifacts import Fidelity, HistoryEntry, Signature, WeakestChannel
from exporter.errors import GateError
from exporter.events import Note
from exporter.measure import apply_gate
from exporter.pipeline.judging import judged_by, unjudged
from exporter.pipeline.steps import Steps
from exporter.plan import Plan, TargetPlan
from exporter.tables import history_lines
from exporter.target_api import VariantFile

LOST_DB = 10.0
"""A channel with noise of over a tenth of its signal, in an output that is better by as much, is worth a warning."""

REMARKS = 20
"""Remarks of steps that a message has at most."""


class Gates:
    """Holds a target's models against `[gate]`."""

    def __init__(self, steps: Steps, target: str, whole: Plan, plan: TargetPlan) -> None:
        self._steps, self._target, self._whole, self._plan = steps, target, whole, plan

    def applied(self, fidelity: Fidelity) -> Fidelity:
        """Fidelity with what the gate says of it; nothing is raised."""
        return apply_gate(
            fidelity, self._plan.gate, unjudged(self._whole, [output.output for output in fidelity.outputs])
        )

    def hold_history(self, history: Sequence[HistoryEntry]) -> None:
        """Holds the compressed torch model against the gate, before anything is exported from it.

        Raises:
            GateError: it lost more than the gate allows.
        """
        last = next(iter(history[::-1]), None)
        if last is None or last.role != "step" or last.fidelity is None:
            return
        if failures := self.applied(last.fidelity).gate.failures:
            notes = [f"  {entry.name}: {note}" for entry in history for note in entry.notes]
            shown = [
                "the compressed model does not meet the accuracy gate; nothing is exported",
                *(f"  - {failure}" for failure in failures),
                *history_lines(history),
                *notes[:REMARKS],
                *([f"  and {len(notes) - REMARKS} more remarks"] if notes[REMARKS:] else []),
            ]
            raise GateError(
                "\n".join(shown),
                where=f"target {self._target}, [compress]",
                hint="compress less, add a step that recovers accuracy, or change [gate]",
            )

    def hold(self, judged: Sequence[tuple[VariantFile, Fidelity]]) -> None:
        """Holds all variants against the gate.

        Raises:
            GateError: one lost more than the gate allows.
        """
        failing = [(variant, fidelity.gate.failures) for variant, fidelity in judged if fidelity.gate.failures]
        if not failing:
            return
        passing = [variant for variant, fidelity in judged if not fidelity.gate.failures]
        lines, elsewhere = [], set()
        for variant, failures in failing:
            twins = [one for one in passing if one.scheme == variant.scheme and one.runtime != variant.runtime]
            right = f" (on {variant.runtime}; {twins[0].runtime} computes it within the gate)" if twins else ""
            lines += [f"\n  - {variant.name}: {failure}{right}" for failure in failures]
            elsewhere.add(variant.runtime if twins else None)
        raise GateError(
            f"the accuracy gate was not met; nothing is published{''.join(lines)}",
            where=f"target {self._target}",
            hint=self._hint() if None in elsewhere else self._other_hint(sorted(map(str, elsewhere))),
        )

    def unseen(self, judged: Sequence[tuple[VariantFile, Fidelity]]) -> tuple[str, ...]:
        """What is lost in outputs that pass: the gate, which goes by the whole output, cannot see it."""
        evaluation = self._whole.evaluation
        measured = judged_by(evaluation) is not None
        if measured and evaluation is not None and evaluation.metric != "accuracy":
            return ()
        channels: dict[str, list[tuple[str, float, WeakestChannel]]] = {}
        varying: dict[str, list[tuple[str, float, float]]] = {}
        for variant, fidelity in judged:
            names = [output.output for output in fidelity.outputs]
            seen = set(names) - set(unjudged(self._whole, names)) if measured else set()
            for output in fidelity.outputs:
                weak, whole, own = output.weakest, output.sqnr_db, output.varying_db
                if whole is None or output.output in seen:
                    continue
                if own is not None and own < min(LOST_DB, whole - LOST_DB):
                    varying.setdefault(output.output, []).append((variant.name, whole, own))
                elif weak is not None and weak.sqnr_db < min(LOST_DB, whole - LOST_DB):
                    channels.setdefault(output.output, []).append((variant.name, whole, weak))
        return (
            *(_steady_text(name, found) for name, found in varying.items()),
            *(_lost_text(name, found) for name, found in channels.items()),
        )

    def warn_of_chance(self, fidelity: Fidelity, signature: Signature) -> None:
        """A trained model that guesses points to labels in another order; the gate, being relative, cannot see it."""
        evaluation = self._whole.evaluation
        if fidelity.metric is None or evaluation is None or evaluation.metric != "accuracy":
            return
        name = evaluation.output or signature.outputs[0].name
        shape = next(spec.shape for spec in signature.outputs if spec.name == name)
        classes = shape[1] if len(shape) >= 4 else shape[-1]
        if isinstance(classes, int) and fidelity.metric.reference <= 1 / classes:
            text = (
                f"the trained model itself is right in {fidelity.metric.reference:.2%} of cases, as a guess would be"
            )
            self._steps.emit(Note(text=f"{text}: are labels and classes in the same order?"))

    def _hint(self) -> str:
        budget = self._plan.quantize.budget
        repairs = (
            "let failing models be repaired with [quantize] budget"
            if budget == 0
            else f"allow more repairs than [quantize] budget = {budget!r}"
        )
        return f"{repairs}, calibrate with more data, leave nodes in float with [quantize] exclude, or change [gate]"

    def _other_hint(self, runtimes: Sequence[str]) -> str:
        """The same model passes on another runtime: it is not the quantization that has to change."""
        names = " and ".join(runtimes)
        return (
            f"take {names} out of [targets.{self._target}] runtimes, or leave nodes in float with [quantize] exclude"
        )


def _lost_text(output: str, found: Sequence[tuple[str, float, WeakestChannel]]) -> str:
    _, whole, weak = min(found, key=lambda one: one[2].sqnr_db)
    return (
        f"output '{output}' is lost in part ({_names(found)}): at index {weak.index} of axis {weak.axis} its SQNR is "
        f"{_decibels(weak.sqnr_db)} dB, though as a whole it has {whole:.1f} dB. {_UNSEEN} see "
        "with `edge-exporter analyze` where it is lost"
    )


def _steady_text(output: str, found: Sequence[tuple[str, float, float]]) -> str:
    _, whole, own = min(found, key=lambda one: one[2])
    return (
        f"of output '{output}' little is left but its mean ({_names(found)}): what differs from sample to sample has "
        f"an SQNR of {_decibels(own)} dB, though as a whole it has {whole:.1f} dB. {_UNSEEN} leave "
        "what adds the mean in float ([quantize] exclude)"
    )


_UNSEEN = "The gate does not see it: let a metric of your own judge it ([evaluation] metric), and"


def _names(found: Sequence[tuple[str, float, object]]) -> str:
    return ", ".join(name for name, _, _ in found)


def _decibels(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # No "-0.0".
