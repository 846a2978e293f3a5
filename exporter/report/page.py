"""What a report is made of: sections of tables, lists and plots, with no form yet."""

from __future__ import annotations

import re

import msgspec

NUMBER = re.compile(r"-|exact|[-+]?[\d.,]+(e[-+]?\d+)?( ?(%|x|[kMG]B))?( (to|of) [\d.,]+)?")
"""A cell that holds a number with its unit, a range, or nothing."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Rows under headings; the first cell of a row names it. `folded` tables are closed at first."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Columns that hold numbers alone, and stand to the right."""
        return tuple(
            bool(self.rows) and all(NUMBER.fullmatch(row[index]) for row in self.rows)
            for index in range(len(self.columns))
        )


class Lines(msgspec.Struct, frozen=True, kw_only=True):
    """Sentences, each of its own."""

    items: tuple[str, ...]


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it is, closed at first."""

    caption: str
    text: str


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Points of one name: x, y, and where there are some, the ends of y's interval."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Empirical distribution functions of latencies in ms; each series' x are its sorted samples."""

    series: tuple[Series, ...]


class Tradeoff(msgspec.Struct, frozen=True, kw_only=True):
    """Cost against quality: one point a series, the front through some of them."""

    x_label: str
    y_label: str
    points: tuple[Series, ...]
    front: tuple[str, ...]


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of a whole by name, the largest first."""

    labels: tuple[str, ...]
    shares: tuple[float, ...]


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """Latency in ms over time; x are seconds since 1970."""

    series: tuple[Series, ...]


Plot = Distribution | Tradeoff | Shares | Timeline


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of what a table beside it says in numbers; `alt` says what can be seen."""

    caption: str
    alt: str
    plot: Plot


Block = Table | Lines | Text | Figure


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A heading, what stands under it, and sections below."""

    title: str
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = ()


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report."""

    title: str
    made: str
    sections: tuple[Section, ...]
