"""Short races between int8 forms of one model, where the machine is one that the target's files are made for."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import msgspec

from exporter.artifacts import Value, canonical
from exporter.devices import cpu_features
from exporter.measure import latency_ratio
from exporter.pipeline.expected import Cases
from exporter.pipeline.results import Int8Model, load_json
from exporter.pipeline.steps import Steps, versions
from exporter.target_api import Target, VariantFile, made_for

Files = Callable[[Int8Model], tuple[Path, VariantFile]]


class Raced(Value, frozen=True, kw_only=True):
    """race.json: latency of one form by that of the other."""

    ratio: float


class QuickRaces(msgspec.Struct, frozen=True, kw_only=True):
    """Runs races, and keeps their results: another build on this machine chooses alike.

    Attributes:
        steps: the build's.
        target: opens the files.
        machine: family of processors that the target's bundle is made for, or None for any.
        enabled: whether the plan wants latency measured at all.
        cases: inputs to run; the smallest batch is taken.
        cases_digest: of what they hold.
        files: folder and variant that the target makes of a model.
    """

    steps: Steps
    target: Target
    machine: str | None
    enabled: bool
    cases: Cases
    cases_digest: str
    files: Files

    def possible(self, model: Int8Model) -> bool:
        """Whether this machine can tell how fast a model is."""
        here = self.machine in (None, platform.machine())
        return self.enabled and here and made_for(model.file.requires, cpu_features())

    def ratio(self, after: Int8Model, before: Int8Model, label: str) -> float | None:
        """Latency of a model by that of another, one thread; None where this machine cannot tell."""
        if not (self.possible(after) and self.possible(before)):
            return None

        def build(result: Path) -> None:
            paths = [folder / variant.main for folder, variant in map(self.files, (after, before))]
            sessions = [self.target.open_session(path, simulated=False) for path in paths]
            feed = min(self.cases.read(), key=lambda arrays: sum(array.size for array in arrays.values()))
            ratio = latency_ratio(lambda: sessions[0](feed), lambda: sessions[1](feed))
            (result / "race.json").write_bytes(canonical(Raced(ratio=ratio)))

        parts = {
            "models": [after.content, before.content],
            "cases": self.cases_digest,
            "cpu": cpu_features(),
            "target": [self.target.name, self.target.version],
            "versions": versions(*self.target.distributions),
        }
        stored = self.steps.stored("race", 1, parts, build, label=f"{self.target.name}: {label}")
        return load_json(stored.folder / "race.json", Raced).ratio
