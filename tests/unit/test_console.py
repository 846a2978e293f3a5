"""What reaches a terminal: names out of a model's file cannot move its cursor, colour it or look like other lines."""

from __future__ import annotations

import pytest

from exporter.console import Console
from exporter.errors import StageError, printable
from exporter.events import Note, Quiet, StepFinished, StepStarted

NAME = "node\x1b[31m\nerror: fake\r\x9b2J\u202e"
SHOWN = r"node\x1b[31m\nerror: fake\r\x9b2J\u202e"


@pytest.mark.parametrize("style", ["plain", "live"])
def test_events_are_one_line_each_whatever_a_node_is_called(capfd: pytest.CaptureFixture[str], style: str) -> None:
    with Console("plain" if style == "plain" else "live") as console:
        console.emit(StepStarted(step=NAME))
        console.emit(Note(text=f"left in float: {NAME}"))
        console.emit(StepFinished(step=NAME, cached=False, seconds=1.0, detail=NAME))
    told = capfd.readouterr().err
    assert f"note: left in float: {SHOWN}" in told
    assert f"{SHOWN}: 1.0 s ({SHOWN})" in told
    assert "\nerror: fake" not in told
    assert "\x9b" not in told


def test_tables_and_results_hold_no_control_characters(capfd: pytest.CaptureFixture[str]) -> None:
    with Console("none") as console:
        console.table(["node", "op"], [(NAME, "Conv"), ("plain", "Gemm")], title=NAME)
        console.result(f"first\nsecond {NAME}")
    told = capfd.readouterr().out.splitlines()
    assert told[0] == SHOWN
    assert told[2] == f"{SHOWN}  Conv"
    assert told[4] == "first"
    assert told[5].startswith(r"second node\x1b[31m")


def test_how_long_runs_take_at_most_is_said_before_they_begin(capfd: pytest.CaptureFixture[str]) -> None:
    with Console("plain") as console:
        console.emit(Quiet(step="measure latency", at_most=20.3))
    assert capfd.readouterr().err == "measure latency (runs for at most 20 s, after loading) ...\n"


def test_a_piped_table_folds_no_row_however_long_its_names_are(capfd: pytest.CaptureFixture[str]) -> None:
    name = "node_scaled_dot_product_attention_" + "x" * 120
    with Console() as console:
        console.table(["node", "module", "SQNR dB"], [[name, "encoder 层", "13.0"], ["b", "-", "2.0"]])
    told = capfd.readouterr().out.splitlines()
    assert len(told) == 3
    assert told[1].split() == [name, "encoder", "层", "13.0"]


def test_errors_keep_their_lines(capfd: pytest.CaptureFixture[str]) -> None:
    with Console("plain") as console:
        console.error(StageError("it failed:\n  - one\x07\n  - two", where="a\x1b]0;title", hint="b"))
        console.say("said\x08")
    told = capfd.readouterr().err
    assert told == "error: it failed:\n  - one\\x07\n  - two\n  where: a\\x1b]0;title\n  hint:  b\nsaid\\x08\n"


def test_letters_of_all_languages_and_half_characters_can_be_written() -> None:
    assert printable("узел 節點 é 🙂 C:\\new\t\n") == "узел 節點 é 🙂 C:\\new\t\n"
    assert printable("\udc80").encode() == rb"\udc80"
