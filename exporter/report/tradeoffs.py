"""Accuracy against latency and size, and which variants no other one beats in everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from exporter.artifacts import Profile
from exporter.report.page import Figure, Lines, Section, Series, Table, Tradeoff
from exporter.tables import human_size, milliseconds
from exporter.views import LATENCY_TIE, SIZE_TIE, BundleView, beats


class Candidate(NamedTuple):
    """A variant with what it costs and what it keeps; `latency` in ms is None where it was not measured.

    Where all are sparse they have the sizes that they are packed to.
    """

    label: str
    latency: float | None
    size: int
    quality: float
    packed: bool = False


def front(candidates: Sequence[Candidate]) -> list[str]:
    """Those that no other one beats: at least as good in latency, size and quality, and better in one of them.

    Sizes and latencies that are next to equal count as equal.
    """

    def costs(one: Candidate) -> tuple[float, ...]:
        return (one.latency or 0.0, float(one.size), -one.quality)

    def beaten(one: Candidate) -> bool:
        return any(beats(costs(other), costs(one), (LATENCY_TIE, SIZE_TIE, 0.0)) for other in candidates)

    return [one.label for one in candidates if not beaten(one)]


def tradeoff_sections(views: Sequence[BundleView]) -> list[Section]:
    """One section for each place where latency was measured; places do not compare. Emulated ones have no latency."""
    places: dict[str, list[tuple[BundleView, Profile]]] = {}
    for view in views:
        for profile in view.profiles.values():
            places.setdefault(place_of(profile), []).append((view, profile))
    several = len({view.manifest.digest for view in views}) > 1
    sections = []
    for place, measured in places.items():
        candidates = []
        variants = [view.variant(one.variant) for view, profile in measured for one in profile.variants]
        # One measure for all: zeros are worth nothing in a file, and much in a packed one.
        all_packed = all(variant.packed_bytes is not None for variant in variants)
        for view, profile in measured:
            for one in profile.variants:
                if (quality := _quality(view, one.variant)) is not None:
                    label = f"{view.path.name}: {one.variant}" if several else one.variant
                    label += _elsewhere(view, profile)
                    variant = view.variant(one.variant)
                    packed = variant.packed_bytes if all_packed else None
                    size = view.manifest.size_of(variant) if packed is None else packed
                    candidates.append(
                        Candidate(label, one.summary.median / 1e6, size, quality, packed=packed is not None)
                    )
        if len({_quality_name(view) for view, _ in measured}) == 1 and candidates:
            sections.append(_section(place, candidates, _quality_name(measured[0][0])))
    if not places:
        text = "not measured: no bundle here has a latency profile; `edge-exporter profile` makes one"
        sections.append(Section(title="Accuracy, latency and size", blocks=(Lines(items=(text,)),)))
    return sections


def place_of(profile: Profile) -> str:
    """Where and how latency was measured, but for the runtime: variants compare across runtimes on one host."""
    threads = f"{profile.settings.threads} thread{'s' if profile.settings.threads > 1 else ''}"
    device = "" if profile.device == "local" else f"{profile.device}: "
    pinned = f", on CPUs {profile.settings.affinity}" if profile.settings.affinity else ""
    return f"{profile.provenance} on {device}{profile.host.cpu}, {profile.host.cores} cores, {threads}{pinned}"


def _elsewhere(view: BundleView, profile: Profile) -> str:
    """What tells a file on another runtime from the same one on the bundle's main runtime."""
    name, own = profile.runtime.name, view.manifest.runtime.alternatives
    return f" on {name}" if name in own else ""


def _section(place: str, candidates: Sequence[Candidate], quality: str) -> Section:
    kept = front(candidates)
    ordered = sorted(candidates, key=lambda one: one.latency or 0.0)
    rows = tuple(
        (
            one.label,
            milliseconds(1e6 * (one.latency or 0.0)),
            f"{one.quality:.4f}",
            human_size(one.size) + (" packed" if one.packed else ""),
            "yes" if one.label in kept else "no",
        )
        for one in ordered
    )
    points = tuple(Series(label=one.label, x=(one.latency or 0.0,), y=(one.quality,)) for one in ordered)
    figure = Figure(
        caption=f"{quality} against median latency, {place}. Further left is faster, further up is better.",
        alt=f"{quality} against latency of {len(ordered)} variants; the table below has the numbers",
        plot=Tradeoff(x_label="median latency in ms", y_label=quality, points=points, front=tuple(kept)),
    )
    caption = f"Latency, {quality} and size, {place}; on the front is what no other variant beats in all three"
    columns = ("variant", "median ms", quality, "size", "on the front")
    return Section(
        title=f"Accuracy, latency and size, {place}",
        blocks=(figure, Table(caption=caption, columns=columns, rows=rows)),
    )


def _quality(view: BundleView, variant: str) -> float | None:
    """The metric; without labels top-1 agreement, else the cosine of the worst output."""
    fidelity = view.variant(variant).fidelity
    if fidelity.metric is not None:
        return fidelity.metric.value
    agreements = [one.top1_agreement for one in fidelity.outputs if one.top1_agreement is not None]
    return agreements[0] if agreements else min((one.cosine for one in fidelity.outputs), default=None)


def _quality_name(view: BundleView) -> str:
    fidelity = view.default.fidelity
    if fidelity.metric is not None:
        return fidelity.metric.name
    agreements = [one.top1_agreement for one in fidelity.outputs if one.top1_agreement is not None]
    return "top-1 agreement" if agreements else "cosine"
