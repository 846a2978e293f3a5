"""Writes the rows of accuracy.py as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
HEADER = (
    "model", "metric", "float", "plain int8", "ours int8", "repairs kept", "int8 nodes", "KB float / plain / ours",
    "latency plain", "latency ours", "default", "goal",
)  # fmt: skip
LOSS, SPEED = 0.01, 0.9


def table(rows: Sequence[Row]) -> str:
    """Markdown, with what rows cannot say below it."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    notes = [f"- {row['name']}: {text}" for row in rows for text in remarks(row)]
    return "\n".join([*lines, "", *notes, ""])


def cells(row: Row) -> list[str]:
    """One row's text."""
    if "error" in row:
        return [row["name"], *["-"] * (len(HEADER) - 2), "failed"]
    plain, ours = row["plain"], row.get("ours", {})
    sizes = " / ".join(_size(one) for one in (row["size_float"], plain.get("size"), ours.get("size")))
    nodes = f"{ours['quantized']}/{ours['eligible']}" if ours.get("eligible") is not None else "-"
    kept = [repair["change"] for repair in ours.get("repairs", ()) if repair["kept"]]
    return [
        row["name"], row["metric"], f"{row['float']:.4f}", _value(plain), _value(ours),
        "; ".join(kept) or ("none needed" if ours else "-"), nodes, sizes,
        _ratio(plain), _ratio(ours), row["default"], "; ".join(missed(row)) or "met",
    ]  # fmt: skip


def missed(row: Row) -> list[str]:
    """Where a row misses the goal: 1 % of float, not slower than float, 90 % of plain int8's speed."""
    if "error" in row:
        return ["no result"]
    found = []
    ours = row.get("ours")
    if row["failure"]:
        found.append("missed: no int8 within the gate")
    elif ours is not None and ours["value"] < row["float"] * (1 - LOSS):
        found.append("missed: accuracy")
    chosen = ours is not None and row["default"] == ours["variant"]
    if chosen and ours["ratio"] > 1:
        found.append("missed: slower than float")
    if row.get("speed_kept", 1) < SPEED:
        found.append(f"missed: {row['speed_kept']:.0%} of plain int8's speed")
    return found


def remarks(row: Row) -> list[str]:
    """What a reader must know of a row."""
    if "error" in row:
        return [f"failed: {row['error']}"]
    parts = [f"{row['task']}. {row['note']}".rstrip(". ")]
    if row["failure"]:
        parts.append(f"the build with int8 failed: {row['failure']}")
    if "failure" in row["plain"]:
        parts.append(f"plain int8 failed: {row['plain']['failure']}")
    if row["default"] == row.get("ours", {}).get("variant") or row["failure"]:
        return parts
    return [*parts, f"default {row['default']}: {row['why']}"]


def _value(side: Row) -> str:
    return f"{side['value']:.4f} ({side['sqnr_db']} dB)" if "value" in side else "failed" if side else "-"


def _ratio(side: Row) -> str:
    return f"{side['ratio']:.2f}x" if "ratio" in side else "-"


def _size(size: int | None) -> str:
    return "-" if size is None else f"{size / 1000:,.0f}"
