"""A source made of columns: arrays whose samples belong together by their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from exporter.data.values import Chunk, Column, Problem

if TYPE_CHECKING:
    from exporter.data.values import Array


@dataclass(frozen=True, kw_only=True)
class ColumnSource:
    """Columns by name, without those that the plan ignores; see `Source`."""

    columns: Mapping[str, Column]
    faults: tuple[tuple[str, Problem], ...] = ()
    notes: tuple[str, ...] = ()
    prepared: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all arrays, the unusable ones included."""
        return (*self.columns, *(name for name, _ in self.faults))

    @property
    def count(self) -> int:
        """How many samples every column has."""
        return min((column.count for column in self.columns.values()), default=0)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Columns of different lengths."""
        counts = {name: column.count for name, column in self.columns.items()}
        if len(set(counts.values())) < 2:
            return ()
        listed = ", ".join(f"'{name}' has {count}" for name, count in counts.items())
        return (Problem(f"the arrays have different numbers of samples: {listed}"),)

    def row_bytes(self) -> int:
        """Size of one raw sample in all stacked columns; files of one sample each are read one by one anyway."""
        stacked = [column for column in self.columns.values() if not column.single]
        return sum(prod(column.shape) * column.dtype.itemsize for column in stacked)

    def chunks(self, size: int, limit: int | None, *, whole: bool = False) -> Iterator[Chunk]:
        """One pass; chunks have one sample where a column's samples may differ in shape."""
        left = self.count if limit is None else min(limit, self.count)
        step = 1 if any(column.single for column in self.columns.values()) else size
        with ExitStack() as stack:
            readers = {name: stack.enter_context(column.open()) for name, column in self.columns.items()}
            while left > 0:
                rows = min(step, left)
                values: dict[str, Array | Problem] = {}
                for name, take in readers.items():
                    try:
                        values[name] = take(rows)
                    except Problem as problem:
                        values[name] = problem
                yield Chunk(rows=rows, values=values)
                left -= rows


def from_found(
    found: Mapping[str, Column | Problem],
    *,
    ignore: tuple[str, ...],
    notes: tuple[str, ...] = (),
    prepared: bool = False,
) -> ColumnSource:
    """A source of what a reader found, without the arrays that the plan ignores.

    An ignored name that is not there is no fault: a mistyped one leaves its array, which is then reported.
    """
    columns: dict[str, Column] = {}
    faults: list[tuple[str, Problem]] = []
    for name, column in found.items():
        if name in ignore:
            continue
        if isinstance(column, Problem):
            faults.append((name, column))
        else:
            columns[name] = column
    return ColumnSource(columns=columns, faults=tuple(faults), notes=notes, prepared=prepared)
