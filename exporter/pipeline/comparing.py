"""A merged model against those that went into it: it is refused when it loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exporter.artifacts import HistoryEntry
from exporter.errors import GateError
from exporter.events import Emit, Note
from exporter.tables import history_lines


def compare(entries: Sequence[HistoryEntry], emit: Emit, *, refuses: bool) -> None:
    """Compares the last entry with all before it.

    Args:
        entries: the base and the members, then what was made of them.
        emit: is told what was found.
        refuses: a worse result fails, instead of being reported only.

    Raises:
        GateError: with the table, when the result is worse than the best of the others.
    """
    *others, merged = entries
    notes = [f"  note: {note}" for note in merged.notes]
    judged = {entry.name: entry.metric for entry in others}
    hold(judged, merged.metric, [*history_lines(entries), *notes], emit, refuses=refuses)


def hold(
    members: Mapping[str, float | None], merged: float | None, lines: Sequence[str], emit: Emit, *, refuses: bool
) -> None:
    """Holds the metric of what was made of several models against theirs.

    Args:
        members: metrics by name, None where there is none.
        merged: of the result.
        lines: the table, for the message.
        emit: is told what was found.
        refuses: a worse result fails, instead of being reported only.

    Raises:
        GateError: the result is worse than the best of the others.
    """
    judged = {name: metric for name, metric in members.items() if metric is not None}
    if not judged:
        emit(Note(text="the merged model is not compared with its members: there are no labels to judge them by"))
        return
    best = max(judged, key=lambda name: judged[name])
    if merged is not None and merged >= judged[best]:
        return
    reached = "whose metric is no number" if merged is None else f"{merged:.4f}"
    text = f"the merged model ({reached}) is worse than '{best}' alone ({judged[best]:.4f})"
    if not refuses:
        emit(Note(text=text))
        return
    raise GateError(
        "\n".join([text, *lines]),
        where="[merge]",
        hint='try another method or `scale`, use the better model alone, or set `accept = "worse"` in [merge]',
    )
