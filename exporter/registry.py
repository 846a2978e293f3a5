"""Finds targets through entry points; the built-in ones come the same way as third parties'."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import cast

from exporter.errors import ExporterError, MissingError, PlanError, closest, shorten
from exporter.target_api import ENTRY_POINT_GROUP, Target

PROTOCOL = (
    "name", "version", "summary", "options_type", "defaults", "distributions",
    "missing", "requires", "convert", "payload", "open_session", "tolerance",
)  # fmt: skip


def target_names() -> list[str]:
    """Names of all registered targets, sorted."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


def load_target(name: str) -> Target:
    """Loads one target.

    Raises:
        PlanError: no target has this name.
        MissingError: the package that brings the target cannot be imported.
    """
    points = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == name]
    if not points:
        names = target_names()
        raise PlanError(
            [f"there is no target '{name}'{closest(name, names)}"],
            where=f"[targets.{name}]",
            hint=f"known targets: {', '.join(names)} (see `edge-exporter targets`)",
        )
    if len({point.value for point in points}) > 1:
        raise MissingError(
            f"several packages bring a target '{name}'",
            where=", ".join(_origin(point) for point in points),
            hint="uninstall all but one of them",
        )
    return _load(points[0])


def _load(point: EntryPoint) -> Target:
    try:
        target = point.load()
    except Exception as error:
        raise MissingError(
            f"target '{point.name}' cannot be loaded",
            where=_origin(point),
            why=shorten(f"{type(error).__name__}: {error}"),
            hint="install or update the package that brings it",
        ) from error
    lacking = [member for member in PROTOCOL if not hasattr(target, member)]
    if lacking or target.name != point.name:
        why = f"it lacks {', '.join(lacking)}" if lacking else f"it calls itself '{target.name}'"
        raise ExporterError(f"target '{point.name}' does not follow the protocol", where=_origin(point), why=why)
    return cast(Target, target)


def _origin(point: EntryPoint) -> str:
    distribution = point.dist.name if point.dist else "an unknown distribution"
    return f"{point.value} ({distribution})"
