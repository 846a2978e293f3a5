"""One pass over a whole set that finds everything wrong with it, and what two sets have in common."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from exporter.data.batching import Rows
from exporter.data.sets import CalibrationSet, data_error, dropped, fewer
from exporter.data.values import DataReport, Problem
from exporter.errors import DataError

if TYPE_CHECKING:
    from exporter.data.values import Array

_CHUNK_BYTES = 4 << 20
_CHUNK_ROWS = 1024


def check(data_set: CalibrationSet) -> DataReport:
    """Reads every sample as a run would, and compares all of it with what the model takes.

    Args:
        data_set: the set, from `open_set`.

    Returns:
        Sample count, notes, and a digest of each distinct sample for `overlap`.

    Raises:
        DataError: all problems together: names, dtypes, ranks and sizes, NaN or infinity, emptiness, counts,
            labels, unreadable files, a callable that fails.
    """
    findings = _Findings()
    static = data_set.static_problems()
    if static and data_set.whole:
        raise data_error(static, data_set.wanted.plan.data)
    raw = data_set.source.row_bytes() * (4 if data_set.wanted.preprocessing else 1)
    size = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // max(raw, 1))) if raw else _CHUNK_ROWS
    failure: DataError | None = None
    try:
        for rows in data_set.rows(size, findings.add, findings.note):
            findings.look(rows, data_set)
    except DataError as error:
        failure = error
    problems = static + findings.problems(data_set)
    used = findings.used(data_set.fixed_batch)
    if failure is None and used == 0 and not problems:
        batch = data_set.fixed_batch
        enough = f"; the model's batch is fixed to {batch}" if batch and findings.total else ""
        problems.append(Problem(f"the data have {findings.total} samples{enough}"))
    if failure is not None:
        if not problems:
            raise failure
        problems.append(Problem("; ".join(line.strip() for line in failure.lines())))
    if problems:
        raise data_error(problems, data_set.wanted.plan.data) from failure
    notes = [*data_set.source.notes, *findings.notes, *fewer(findings.total, data_set.wanted.plan)]
    notes += dropped(findings.total - used, data_set.fixed_batch)
    if data_set.whole:
        notes.append("the inputs have no common sample axis; what the callable yields is run as it is")
    digests = frozenset(findings.digests[:used])
    copies = len(findings.digests[:used]) - len(digests)
    if copies:
        notes.append(f"{copies} samples are copies of earlier ones")
    return DataReport(samples=used, notes=tuple(notes), sample_digests=digests)


def overlap(first: DataReport, second: DataReport) -> int:
    """How many distinct samples two sets have in common, byte for byte as the model takes them."""
    return len(first.sample_digests & second.sample_digests)


@dataclass(kw_only=True)
class _Seen:
    """Where one problem was seen."""

    hint: str | None
    first: int
    rows: int = 0


@dataclass(kw_only=True)
class _Nonfinite:
    values: int = 0
    samples: int = 0
    first: int = 0


@dataclass(kw_only=True)
class _Findings:
    """What a pass has seen so far."""

    total: int = 0
    seen: dict[str, _Seen] = field(default_factory=dict)
    nonfinite: dict[str, _Nonfinite] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    digests: list[bytes] = field(default_factory=list)
    runs: list[tuple[object, int]] = field(default_factory=list)

    def add(self, problem: Problem, first: int, rows: int) -> None:
        """A problem of the chunk that starts at sample `first`."""
        seen = self.seen.setdefault(problem.text, _Seen(hint=problem.hint, first=first))
        seen.rows += rows

    def note(self, text: str) -> None:
        """A fact, kept once."""
        self.notes.setdefault(text)

    def look(self, rows: Rows, data_set: CalibrationSet) -> None:
        """Looks at the values of a chunk."""
        for name, values in rows.inputs.items():
            self._finite(f"input '{name}'", values, rows.count, whole=data_set.whole)
        if rows.labels is not None:
            self._labels(rows, data_set)
        if not self.seen and len(rows.inputs) == len(data_set.inputs):
            self.digests += _digests(rows, whole=data_set.whole)
        if self.runs and self.runs[-1][0] == rows.shapes:
            self.runs[-1] = (rows.shapes, self.runs[-1][1] + rows.count)
        else:
            self.runs.append((rows.shapes, rows.count))
        self.total += rows.count

    def used(self, batch: int | None) -> int:
        """Samples that batches are made of."""
        return sum(count - count % batch if batch else count for _, count in self.runs)

    def problems(self, data_set: CalibrationSet) -> list[Problem]:
        """Everything found, each once, with the samples that have it where that is not all of them."""
        found = []
        for text, seen in self.seen.items():
            which = ""
            if seen.rows < self.total:
                which = f" (sample {seen.first}" + (f", {seen.rows} samples in all)" if seen.rows > 1 else ")")
            found.append(Problem(text + which, seen.hint))
        found += [
            Problem(
                f"{subject} has {bad.values} NaN or infinite value{'s' if bad.values > 1 else ''} "
                f"in {bad.samples} sample{'s' if bad.samples > 1 else ''}, first in sample {bad.first}"
            )
            for subject, bad in self.nonfinite.items()
        ]
        return found

    def _finite(self, subject: str, values: Array, count: int, *, whole: bool) -> None:
        if values.dtype.kind != "f":
            return
        finite = np.isfinite(values)
        if finite.all():
            return
        bad = ~finite
        per_sample = np.array([bad.sum()]) if whole else bad.reshape(count, -1).sum(axis=1)
        where = np.flatnonzero(per_sample)
        known = self.nonfinite.setdefault(subject, _Nonfinite(first=self.total + int(where[0])))
        known.values += int(per_sample.sum())
        known.samples += len(where)

    def _labels(self, rows: Rows, data_set: CalibrationSet) -> None:
        labels = rows.labels
        if labels is None:
            return
        subject = f"labels '{data_set.wanted.labels}'"
        self._finite(subject, labels, rows.count, whole=data_set.whole)
        if not data_set.class_labels:
            return
        classes = data_set.wanted.class_names
        if labels.dtype.kind not in "iu":
            hint = "save them with .astype('int64'), or name a metric of your own"
            text = f"{subject} are {labels.dtype}; accuracy needs class indices, which are integers"
            self.add(Problem(text, hint), self.total, rows.count)
        elif classes and labels.size and (int(labels.min()) < 0 or int(labels.max()) >= len(classes)):
            text = f"{subject} are not all within 0..{len(classes) - 1}, the model has {len(classes)} classes"
            self.add(Problem(text), self.total, rows.count)


def _digests(rows: Rows, *, whole: bool) -> list[bytes]:
    count = 1 if whole else rows.count
    views = []
    head = b""
    for name in sorted(rows.inputs):
        values = rows.inputs[name]
        shape = values.shape if whole else values.shape[1:]
        head += repr((name, values.dtype.str, shape)).encode()
        views.append(np.ascontiguousarray(values).reshape(count, -1).view(np.uint8))
    digests = []
    for index in range(count):
        digest = hashlib.blake2b(head, digest_size=16)
        for view in views:
            digest.update(view[index])
        digests.append(digest.digest())
    return digests
