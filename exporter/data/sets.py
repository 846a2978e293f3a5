"""Calibration and evaluation sets: raw samples joined with what the model takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.artifacts import Preprocessing, TensorSpec
from exporter.data.batching import Rows, rebatch
from exporter.data.convert import to_model
from exporter.data.source import open_source
from exporter.data.values import Batch, Chunk, Problem, Source, Wanted, labels_of
from exporter.errors import DataError, closest
from exporter.plan_types import DataPlan, EvaluationPlan

if TYPE_CHECKING:
    from exporter.data.values import Array


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Samples that a model can run, with labels where there are some; made by `open_set`.

    Attributes:
        wanted: the plan and what else was known when the set was opened.
        source: the raw samples.
        inputs: what the model takes.
        class_labels: labels are class indices, so that they must be integers.
    """

    wanted: Wanted
    source: Source
    inputs: tuple[TensorSpec, ...]
    class_labels: bool = False

    @property
    def samples(self) -> int | None:
        """How many samples `batches` gives, or None where only a pass over a callable can tell."""
        available = self.available
        return None if available is None else available - self._rest(available)

    @property
    def notes(self) -> tuple[str, ...]:
        """How the data were understood, and how many samples are left out for the model's fixed batch."""
        available = self.available
        rest = 0 if available is None else self._rest(available)
        return (*self.source.notes, *fewer(self.source.count, self.wanted.plan), *dropped(rest, self.fixed_batch))

    @property
    def available(self) -> int | None:
        """Samples in the data, at most as many as the plan uses."""
        count, limit = self.source.count, self.wanted.plan.samples
        return count if count is None or limit is None else min(count, limit)

    @property
    def fixed_batch(self) -> int | None:
        """The batch that the model is fixed to, if it is."""
        sizes = {spec.shape[0] for spec in self.inputs if spec.shape and isinstance(spec.shape[0], int)}
        size = next(iter(sizes), None)
        return size if isinstance(size, int) and not self.whole else None

    @property
    def whole(self) -> bool:
        """Whether inputs have no common sample axis, so that what a callable yields is run as it is."""
        if any(not spec.shape for spec in self.inputs):
            return True
        return len({spec.shape[0] for spec in self.inputs if isinstance(spec.shape[0], int)}) > 1

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """One pass over the set; call it again for another.

        Memory holds about one batch. Samples of different shapes come in batches of equal shape; a model with a
        fixed batch gets batches of exactly that size; a set without a common sample axis comes as it was yielded.

        Args:
            batch_size: samples in a batch; the last one may be smaller.

        Raises:
            DataError: names, dtypes or shapes do not fit the model; only `check` looks for NaN and at labels.
            ValueError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        size = self.fixed_batch or batch_size
        return self._batches(size)

    def _batches(self, size: int) -> Iterator[Batch]:
        if problems := self.static_problems():
            raise data_error(problems, self.wanted.plan.data)
        rows = self.rows(size, self._raise)
        if self.whole:
            yield from (Batch(inputs=dict(part.inputs), labels=part.labels) for part in rows)
        else:
            yield from rebatch(rows, size, exact=self.fixed_batch is not None)

    def rows(
        self,
        size: int,
        report: Callable[[Problem, int, int], None],
        note: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Rows]:
        """One pass of model-ready samples in chunks of about `size`.

        Args:
            size: samples in a chunk.
            report: called with each problem, the index of the chunk's first sample and its sample count; inputs
                with a problem are missing in what is given.
            note: called with facts about conversions.
        """
        first = 0
        for chunk in self.source.chunks(size, self.wanted.plan.samples, whole=self.whole):
            yield self._convert(chunk, first, report, note)
            first += chunk.rows

    def static_problems(self) -> list[Problem]:
        """What is wrong with the set that can be seen without reading its samples."""
        source, problems = self.source, list(self.source.problems)
        if source.names is not None:
            problems += self.name_problems(source.names)
            if self.whole:
                listed = ", ".join(map(str, self.inputs))
                text = f"the inputs have no common sample axis ({listed}), so that arrays cannot be stacked"
                problems.append(Problem(text, "give the data through a Python callable that yields whole inputs"))
        problems += [Problem(f"{self._subject(name)} {fault.text}", fault.hint) for name, fault in source.faults]
        if self.samples == 0 and not problems:
            batch = self.fixed_batch
            enough = f"; the model's batch is fixed to {batch}" if batch and self.available else ""
            problems.append(Problem(f"the data have {self.available} samples{enough}"))
        return problems

    def name_problems(self, names: Collection[str]) -> list[Problem]:
        """Missing, unexpected and doubly named arrays."""
        wanted = self.wanted
        given = [name for name in names if name != wanted.labels]
        renamed = [wanted.input_name(name) for name in given]
        inputs = [spec.name for spec in self.inputs]
        problems = []
        for name in inputs:
            if name not in renamed:
                spare = [other for other in given if wanted.input_name(other) not in inputs]
                text = f"input '{name}' is missing in the data, which have {_listed(names)}{closest(name, spare)}"
                problems.append(Problem(text, "map names with `rename`" if spare else None))
            elif renamed.count(name) > 1:
                problems.append(Problem(f"more than one array is named or renamed to input '{name}'"))
        for name in given:
            if wanted.input_name(name) not in inputs:
                text = f"array '{name}' is no input of the model{closest(wanted.input_name(name), inputs)}"
                hint = "list arrays that are not inputs in `ignore`, or use `rename`"
                if wanted.labels is None:
                    hint = f'if it holds labels, `labels = "{name}"` in [evaluation] (`--labels {name}`); else {hint}'
                problems.append(Problem(text, hint))
        if wanted.labels is not None and wanted.labels not in names:
            text = f"labels '{wanted.labels}' are missing in the data, which have {_listed(names)}"
            problems.append(Problem(text + closest(wanted.labels, given)))
        problems += [
            Problem(f"`rename` names '{name}', which the data do not have{closest(name, given)}")
            for name in wanted.plan.rename
            if name not in names
        ]
        return problems

    def _convert(
        self,
        chunk: Chunk,
        first: int,
        report: Callable[[Problem, int, int], None],
        note: Callable[[str], None],
    ) -> Rows:
        found = list(chunk.faults)
        if not found and self.source.names is None:
            found += self.name_problems(chunk.values)
        inputs: dict[str, Array] = {}
        by_name = {self.wanted.input_name(name): value for name, value in chunk.values.items()}
        for spec in self.inputs:
            if spec.name not in by_name:
                continue
            value = by_name[spec.name]
            subject = f"input '{spec.name}'"
            try:
                if isinstance(value, Problem):
                    raise value
                preprocessing = None if self.source.prepared else self.wanted.preprocessing.get(spec.name)
                inputs[spec.name] = to_model(value, spec, preprocessing, note, whole=self.whole)
            except Problem as problem:
                found.append(Problem(f"{subject} {problem.text}", problem.hint))
        found += self._axis_problems(inputs)
        labels = None if self.wanted.labels is None else chunk.values.get(self.wanted.labels)
        if isinstance(labels, Problem):
            found.append(Problem(f"array '{self.wanted.labels}' {labels.text}", labels.hint))
            labels = None
        for finding in found:
            report(finding, first, chunk.rows)
        return Rows(count=chunk.rows, inputs=inputs, labels=labels)

    def _axis_problems(self, inputs: Mapping[str, Array]) -> list[Problem]:
        """Named axes that differ between the inputs of one run."""
        sizes: dict[str, tuple[str, int]] = {}
        problems = []
        for spec in self.inputs:
            shape = inputs[spec.name].shape if spec.name in inputs else ()
            for axis, size in enumerate(shape):
                name = spec.shape[axis]
                if not isinstance(name, str) or (axis == 0 and not self.whole):
                    continue
                other, expected = sizes.setdefault(name, (spec.name, size))
                if size != expected:
                    text = f"input '{spec.name}' has {size} on axis {axis} '{name}', input '{other}' has {expected}"
                    problems.append(Problem(text))
        return problems

    def _subject(self, name: str) -> str:
        inputs = [spec.name for spec in self.inputs]
        renamed = self.wanted.input_name(name)
        return f"input '{renamed}'" if renamed in inputs else f"array '{name}'"

    def _raise(self, problem: Problem, first: int, rows: int) -> None:
        del rows
        raise data_error([problem], f"{self.wanted.plan.data}, from sample {first}") from problem

    def _rest(self, available: int) -> int:
        return available % self.fixed_batch if self.fixed_batch else 0


def open_set(
    plan: DataPlan,
    *,
    inputs: tuple[TensorSpec, ...],
    preprocessing: Mapping[str, Preprocessing],
    labels: str | None = None,
    class_names: tuple[str, ...] = (),
) -> CalibrationSet:
    """Opens a set for a model; sample values are not read yet.

    Args:
        plan: `[calibration]` or `[evaluation]`.
        inputs: what the model takes; axis 0 is the sample axis where all inputs share it.
        preprocessing: input name -> preprocessing of raw pixels.
        labels: name of the array with labels; by default what an `[evaluation]` section says. For a folder of
            images, any name: labels are then the sub-folders.
        class_names: classes in the model's order, for labels from folders.

    Raises:
        DataError: the data do not exist or cannot be read, or a callable does not load.
        MissingError: images without Pillow.
    """
    labels = labels_of(plan, labels)
    wanted = Wanted(
        plan=plan,
        labels=labels,
        inputs=tuple(spec.name for spec in inputs),
        preprocessing=preprocessing,
        class_names=class_names,
    )
    return CalibrationSet(
        wanted=wanted,
        source=open_source(wanted),
        inputs=inputs,
        class_labels=labels is not None and isinstance(plan, EvaluationPlan) and plan.metric == "accuracy",
    )


def dropped(rest: int, batch: int | None) -> tuple[str, ...]:
    """The note on samples that do not fill a fixed batch."""
    if not rest:
        return ()
    subject, verb = ("sample does", "is") if rest == 1 else ("samples do", "are")
    return (f"{rest} {subject} not fill the model's fixed batch of {batch} and {verb} left out",)


def fewer(count: int | None, plan: DataPlan) -> tuple[str, ...]:
    """The note on data that hold fewer samples than the plan asks for."""
    if count is None or plan.samples is None or count >= plan.samples:
        return ()
    return (f"the plan asks for {plan.samples} samples, and there are {count}",)


def data_error(problems: list[Problem], where: str, limit: int = 12) -> DataError:
    """One error for all problems: at most `limit` of them, and how many more there are."""
    hints = list(dict.fromkeys(problem.hint for problem in problems if problem.hint))
    hint = "; ".join(hints[:3]) or None
    if len(problems) == 1:
        return DataError(f"the data do not fit: {problems[0].text}", where=where, hint=hint)
    lines = [f"\n  - {problem.text}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"\n  - and {len(problems) - limit} more")
    return DataError(f"the data have {len(problems)} problems{''.join(lines)}", where=where, hint=hint)


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "no arrays"
