"""A merged model against those that went into it: it is refused when it loses."""

from __future__ import annotations

from collections.abc import Sequence

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
    judged = {entry.name: entry.metric for entry in others if entry.metric is not None}
    if not judged:
        emit(Note(text="the merged model is not compared with its members: there are no labels to judge them by"))
        return
    best = max(judged, key=lambda name: judged[name])
    if merged.metric is not None and merged.metric >= judged[best]:
        return
    reached = "whose metric is no number" if merged.metric is None else f"{merged.metric:.4f}"
    text = f"the merged model ({reached}) is worse than '{best}' alone ({judged[best]:.4f})"
    if not refuses:
        emit(Note(text=text))
        return
    notes = [f"  note: {note}" for note in merged.notes]
    raise GateError(
        "\n".join([text, *history_lines(entries), *notes]),
        where="[merge]",
        hint='try another method or `scale`, use the better model alone, or set `accept = "worse"` in [merge]',
    )
