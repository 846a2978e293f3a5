"""Plots as SVG, each a picture of its own that follows the reader's light or dark scheme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from exporter.report.page import Distribution, Plot, Shares, Timeline, Tradeoff
from exporter.views import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Stands for the colour of text, which the page's scheme decides."""
COLOURS = ("#3b82f6", "#d97706", "#159a52", "#c2558f", "#8b5cf6", "#6b7f8f")
"""Can be told apart on white and on black, and by most who see colours differently; lines differ in style too."""
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
SCHEME = (
    "<style>:root{color:#1f2328}text{fill:currentColor}"
    "@media (prefers-color-scheme: dark){:root{color:#e6edf3}}</style>"
)
WIDTH, HEIGHT = 6.4, 3.4
LABEL = 40
"""Characters of a name in a plot; the tables have all of it."""
POINTS = 400
CUT = 0.995
MOST_SHARES = 12


def svg(plot: Plot) -> str:
    """A plot as an SVG document."""
    with _style():
        if isinstance(plot, Distribution):
            return _drawn(lambda axes: _distribution(axes, plot))
        if isinstance(plot, Tradeoff):
            return _drawn(lambda axes: _tradeoff(axes, plot))
        if isinstance(plot, Shares):
            return _drawn(lambda axes: _shares(axes, plot))
        return _drawn(lambda axes: _timeline(axes, plot))


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    ink = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor"), INK
    )
    wanted: Any = {
        "svg.fonttype": "none",  # Text stays text: it scales with the page, and can be searched.
        "svg.hashsalt": "edge-exporter",
        "text.parse_math": False,  # A name with dollar signs is a name.
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.color": "#808080",
        "legend.frameon": False,
        **ink,
    }
    with matplotlib.rc_context(wanted), warnings.catch_warnings():
        # The font that text is measured with need not have every sign; the reader's browser draws it.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _drawn(draw: Callable[[Axes], None]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=2, fontsize=8)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue().replace(INK, "currentColor")
    return re.sub(r"(<svg\b[^>]*>)", lambda match: match[1] + SCHEME, text, count=1)


def _distribution(axes: Axes, plot: Distribution) -> None:
    end = 0.0
    for index, series in enumerate(plot.series):
        count = len(series.x)
        kept = sorted({round(step * (count - 1) / (POINTS - 1)) for step in range(POINTS)})
        axes.step(
            [series.x[one] for one in kept],
            [(one + 1) / count for one in kept],
            where="post",
            label=_short(series.label),
            color=COLOURS[index % len(COLOURS)],
            linestyle=STYLES[index % len(STYLES)],
        )
        end = max(end, series.x[min(count - 1, int(CUT * count))])
    axes.set_xlim(left=0.95 * min(series.x[0] for series in plot.series), right=1.02 * end)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("latency of one run in ms")
    axes.set_ylabel("share of runs")


def _tradeoff(axes: Axes, plot: Tradeoff) -> None:
    for index, point in enumerate(plot.points):
        axes.plot(
            point.x,
            point.y,
            marker=MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
            color=COLOURS[index % len(COLOURS)],
            linestyle="",
            markersize=8,
            label=_short(point.label),
        )
    front = sorted((point.x[0], point.y[0]) for point in plot.points if point.label in plot.front)
    axes.plot([x for x, _ in front], [y for _, y in front], color="#808080", linewidth=1, zorder=0, label="front")
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.margins(0.15)


def _shares(axes: Axes, plot: Shares) -> None:
    labels = [_short(label) for label in plot.labels[:MOST_SHARES]]
    shares = [100 * share for share in plot.shares[:MOST_SHARES]]
    places = range(len(labels))
    axes.barh(list(places), shares, color=COLOURS[0])
    axes.set_yticks(list(places), labels)
    axes.invert_yaxis()
    axes.set_xlabel("share of the time in %")


def _timeline(axes: Axes, plot: Timeline) -> None:
    from datetime import UTC, datetime

    for index, series in enumerate(plot.series):
        times = [datetime.fromtimestamp(moment, UTC) for moment in series.x]
        below = [middle - low for middle, low in zip(series.y, series.low, strict=True)]
        above = [high - middle for middle, high in zip(series.y, series.high, strict=True)]
        axes.errorbar(
            times,  # type: ignore[arg-type]
            series.y,
            yerr=(below, above),
            label=_short(series.label),
            color=COLOURS[index % len(COLOURS)],
            linestyle=STYLES[index % len(STYLES)],
            marker=MARKERS[index % len(MARKERS)],
            capsize=3,
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("median latency in ms")
    axes.tick_params("x", rotation=25)


def _short(label: str) -> str:
    plain = printable(label)
    # A leading underscore hides a line from matplotlib's legend.
    plain = f" {plain}" if plain.startswith("_") else plain
    return plain if len(plain) <= LABEL else plain[: LABEL - 1] + "…"
