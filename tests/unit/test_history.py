"""Records of builds and measurements: kept, read back in order, bounded, and never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter import history
from exporter.events import Event, Note
from exporter.history import BuildRecord, History, StepRecord, TargetRecord, build_of, made_in
from exporter.pipeline.recording import Recorder
from exporter.pipeline.steps import RunLog, Steps
from exporter.store import Store


def record(name: str, *steps: StepRecord, digest: str = "d") -> BuildRecord:
    return BuildRecord(
        name=name, started="2026-01-01T00:00:00", seconds=1.0, exporter="0", steps=steps,
        targets=(TargetRecord(target="cpu", digest=digest),),
    )  # fmt: skip


def test_records_come_back_in_the_order_in_which_they_were_added(tmp_path: Path) -> None:
    kept = History(tmp_path)
    for index in range(5):
        kept.add(record(str(index)))
    assert [one.name for one in History(tmp_path).builds()] == ["0", "1", "2", "3", "4"]
    assert kept.measurements() == []


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", 3)
    for index in range(5):
        History(tmp_path).add(record(str(index)))
    assert [one.name for one in History(tmp_path).builds()] == ["2", "3", "4"]


def test_what_is_damaged_is_no_record(tmp_path: Path) -> None:
    History(tmp_path).add(record("whole"))
    folder = tmp_path / "history" / "builds"
    (folder / "0.json").write_text("{")
    (folder / "1.json").write_text('{"schema": 2}')
    (folder / ".3-killed").write_text("{")
    assert [one.name for one in History(tmp_path).builds()] == ["whole"]


def test_a_step_that_was_there_already_has_the_time_of_the_build_that_made_it() -> None:
    first = record("first", StepRecord(step="calibrate", cached=False, seconds=7.0, key="k"), digest="a")
    second = record("second", StepRecord(step="calibrate", cached=True, seconds=0.1, key="k"), digest="a")
    assert made_in([first, second]) == {"k": 7.0}
    assert build_of([first, second], "a") is second
    assert build_of([first, second], "b") is None


def test_a_store_that_cannot_be_written_costs_the_record_and_not_the_build(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("in the way")
    told: list[Event] = []
    recorder = Recorder(Steps(Store(tmp_path), told.append, RunLog(tmp_path / "logs")))
    recorder.keep("name", [])
    (note,) = told
    assert isinstance(note, Note)
    assert "will not know" in note.text
