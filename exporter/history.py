"""What was built and measured here over time: small records beside the store's results, for `report`.

A record is a fact with a time and a host, so that it can be no result of a stage: nothing is ever taken from it but
what a report shows. `cache clear` leaves records alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from exporter.artifacts import Manifest, Profile, Provenance, Value, canonical

BUILDS = "builds"
MEASUREMENTS = "measurements"
KEPT = 2000
"""Records of each kind; the oldest go."""
LARGEST = 4 * 2**20


class StepRecord(Value, frozen=True, kw_only=True):
    """A step of a build: whether its result was there already, and how long it took.

    `key` names the result in the store; steps without one, such as measuring, have none.
    """

    step: str
    cached: bool
    seconds: float
    key: str = ""
    detail: str = ""


class TargetRecord(Value, frozen=True, kw_only=True):
    """What became of a target: the digest of its bundle, or what went wrong."""

    target: str
    digest: str = ""
    failed: str = ""


class BuildRecord(Value, frozen=True, kw_only=True):
    """One build: its steps in order, and its bundles. `started` is UTC in ISO 8601."""

    schema: Literal[1] = 1
    name: str
    started: str
    seconds: float
    exporter: str
    steps: tuple[StepRecord, ...]
    targets: tuple[TargetRecord, ...]


class MeasuredVariant(Value, frozen=True, kw_only=True):
    """A variant's median latency with its interval in nanoseconds, its size, and its metric."""

    variant: str
    median_ns: float
    low_ns: float
    high_ns: float
    peak_rss_bytes: int | None
    size: int
    metric: float | None


class MeasurementRecord(Value, frozen=True, kw_only=True):
    """One measurement of one bundle. `time` is UTC in ISO 8601."""

    schema: Literal[1] = 1
    time: str
    name: str
    target: str
    digest: str
    device: str
    provenance: Provenance
    cpu: str
    cores: int
    runtime: str
    threads: int
    metric: str | None
    variants: tuple[MeasuredVariant, ...]


Record = TypeVar("Record", BuildRecord, MeasurementRecord)


def now() -> str:
    """This moment in UTC, in ISO 8601 with microseconds: sorts as it happened."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def measurement(manifest: Manifest, profile: Profile) -> MeasurementRecord:
    """What is kept of a profile: no raw samples, which lie in the bundle."""
    known = {variant.name: variant for variant in manifest.variants}
    metrics = [variant.fidelity.metric for variant in manifest.variants if variant.fidelity.metric]
    found = []
    for one in profile.variants:
        variant = known[one.variant]
        found.append(
            MeasuredVariant(
                variant=one.variant,
                median_ns=one.summary.median,
                low_ns=one.summary.median_low,
                high_ns=one.summary.median_high,
                peak_rss_bytes=one.peak_rss_bytes,
                size=manifest.size_of(variant),
                metric=variant.fidelity.metric.value if variant.fidelity.metric else None,
            )
        )
    return MeasurementRecord(
        time=now(),
        name=manifest.name,
        target=manifest.target,
        digest=manifest.digest,
        device=profile.device,
        provenance=profile.provenance,
        cpu=profile.host.cpu,
        cores=profile.host.cores,
        runtime=f"{profile.runtime.name} {profile.runtime.version}",
        threads=profile.settings.threads,
        metric=metrics[0].name if metrics else None,
        variants=tuple(found),
    )


class History:
    """Records below the store's root folder. Safe for several processes at once: each record is a file of its own."""

    def __init__(self, root: Path) -> None:
        self._root = root / "history"

    def add(self, record: BuildRecord | MeasurementRecord) -> None:
        """Keeps a record; a reader sees it whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        build = isinstance(record, BuildRecord)
        folder = self._root / (BUILDS if build else MEASUREMENTS)
        folder.mkdir(parents=True, exist_ok=True)
        stamp = "".join(one for one in now() if one.isdigit())
        temp = folder / f".{stamp}-{uuid.uuid4().hex[:12]}"
        try:
            temp.write_bytes(canonical(record))
            temp.replace(folder / f"{temp.name[1:]}.json")
        finally:
            temp.unlink(missing_ok=True)
        for old in sorted(folder.glob("*.json"))[:-KEPT]:
            old.unlink(missing_ok=True)

    def builds(self) -> list[BuildRecord]:
        """All builds, oldest first."""
        return list(self._read(BUILDS, BuildRecord))

    def measurements(self) -> list[MeasurementRecord]:
        """All measurements, oldest first."""
        return list(self._read(MEASUREMENTS, MeasurementRecord))

    def _read(self, folder: str, kind: type[Record]) -> Iterator[Record]:
        """Records that can be read; one of another version, or damaged, is no record."""
        for path in sorted((self._root / folder).glob("*.json")):
            try:
                if path.stat().st_size <= LARGEST:
                    yield msgspec.json.decode(path.read_bytes(), type=kind)
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue


def made_in(builds: list[BuildRecord]) -> Mapping[str, float]:
    """Seconds that each result in the store took when it was made, by its key."""
    return {step.key: step.seconds for build in builds for step in build.steps if step.key and not step.cached}


def build_of(builds: list[BuildRecord], digest: str) -> BuildRecord | None:
    """The latest build that ended with this bundle."""
    return next((one for one in reversed(builds) if any(made.digest == digest for made in one.targets)), None)
