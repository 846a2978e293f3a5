"""Keeps what a build did and what was measured, for `report`."""

from __future__ import annotations

import time
from collections.abc import Sequence

from exporter.events import Event, Note, StepFinished
from exporter.history import BuildRecord, History, MeasurementRecord, StepRecord, TargetRecord, now
from exporter.pipeline.steps import Steps, versions


class Recorder:
    """Listens to a build's steps; `steps` are those that it hears."""

    def __init__(self, steps: Steps) -> None:
        self.steps = Steps(steps.store, self._emit, steps.log, steps.jobs)
        self._tell = steps.emit
        self._started, self._begun = now(), time.perf_counter()
        self._finished: list[StepRecord] = []

    def keep(self, name: str, targets: Sequence[TargetRecord]) -> None:
        """Writes the record of the build, which has ended."""
        record = BuildRecord(
            name=name,
            started=self._started,
            seconds=round(time.perf_counter() - self._begun, 3),
            exporter=versions("edge-exporter")["edge-exporter"],
            steps=tuple(self._finished),
            targets=tuple(targets),
        )
        remember(self.steps, record)

    def _emit(self, event: Event) -> None:
        if isinstance(event, StepFinished):
            self._finished.append(
                StepRecord(
                    step=event.step,
                    cached=event.cached,
                    seconds=round(event.seconds, 3),
                    key=event.key,
                    detail=event.detail,
                )
            )
        self._tell(event)


def remember(steps: Steps, record: BuildRecord | MeasurementRecord) -> None:
    """Keeps a record; what was built or measured is not lost because this cannot be written."""
    try:
        History(steps.store.root).add(record)
    except OSError as error:
        steps.emit(Note(text=f"`report` will not know of this: {error.strerror or error}"))
