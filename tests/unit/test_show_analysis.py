"""An analysis on the terminal: columns that say something, rows on one line, and nothing that was not measured."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from exporter.analysis import AnalysedNode, Analysis
from exporter.artifacts import QuantScheme
from exporter.console import Console
from exporter.show_analysis import show_analysis

TOLD = Analysis(
    source="plan.toml",
    target="phone",
    variant="int8",
    precision="int8",
    scheme=QuantScheme(activations="int8"),
    data="evaluation",
    samples=3,
    nodes=(
        AnalysedNode(node="squared_difference_145", op="SQUARED_DIFFERENCE", bits=8, weight_bits=8,
                     range=(-0.0855, 0.0725), sqnr_db=30.0, channel_db=29.0, accumulated_db=20.0),
        AnalysedNode(node="softmax_2", op="SOFTMAX", reason="masked values pass through it", accumulated_db=20.0),
    ),
    added={},
    runtime=None,
    why="nobody times it",
    lints=None,
)  # fmt: skip


def shown(capfd: pytest.CaptureFixture[str], **changes: Any) -> list[str]:
    with Console("none") as console:
        show_analysis(console, msgspec.structs.replace(TOLD, **changes), 0)
    return capfd.readouterr().out.splitlines()


def test_what_a_kind_of_file_does_not_tell_has_no_column_and_time_is_said_to_be_unknown(
    capfd: pytest.CaptureFixture[str],
) -> None:
    title, heading, *rows, time = shown(capfd)
    assert title == "plan.toml, int8 for phone (s8s8 per-channel minmax): noise on 3 evaluation samples, worst first"
    assert " ".join(heading.split()) == "node op weights bits range SQNR dB channels dB so far dB time"
    assert rows[0].split()[:4] == ["squared_difference_145", "SQUARED_DIFFERENCE", "8", "8"]
    assert rows[1].split()[:4] == ["softmax_2", "SOFTMAX", "-", "float"]
    assert [row.endswith("not measured") for row in rows] == [True, True], "one line each"
    assert time == "time: not measured, nobody times it"


def test_findings_are_said_to_be_none_only_where_they_were_looked_for(capfd: pytest.CaptureFixture[str]) -> None:
    assert "no findings" not in shown(capfd)
    assert shown(capfd, lints=())[-1] == "no findings"


def test_a_file_without_integers_has_no_noise(capfd: pytest.CaptureFixture[str]) -> None:
    title, *_ = shown(capfd, samples=0, scheme=None, precision="dynamic-int8")
    assert title == "plan.toml, int8 for phone (dynamic-int8): nothing computes in integers"
