"""Finds targets through entry points; the built-in ones come the same way as third parties'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import msgspec

from exporter.errors import ExporterError, MissingError, PlanError, closest, shorten
from exporter.plan_types import ExportPlan, GatePlan, ProfilePlan, QuantizePlan
from exporter.target_api import ENTRY_POINT_GROUP, Target, TargetOptions

VALUES = ("name", "version", "summary", "options_type", "defaults", "distributions")
METHODS = ("missing", "requires", "convert", "payload", "open_session", "tolerance")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    "export": ExportPlan,
    "quantize": QuantizePlan,
    "gate": GatePlan,
    "profile": ProfilePlan,
}
"""Sections of a plan that a target may have defaults for."""


def target_names() -> list[str]:
    """Names of all registered targets, sorted."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


def load_target(name: str) -> Target:
    """Loads one target.

    Raises:
        PlanError: no target has this name.
        MissingError: the package that brings the target cannot be imported, or several bring one of this name.
        ExporterError: what the package brings is not a target; every fault is named.
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
    except (Exception, SystemExit) as error:  # A module that is imported can raise anything, or try to exit.
        raise MissingError(
            f"target '{point.name}' cannot be loaded",
            where=_origin(point),
            why=shorten(f"{type(error).__name__}: {error}"),
            hint="install or update the package that brings it",
        ) from error
    try:
        problems = _problems(target, point.name)
    except Exception as error:
        problems = [f"reading its members raises {type(error).__name__}: {error}"]
    if problems:
        raise ExporterError(
            f"target '{point.name}' does not follow the protocol",
            where=_origin(point),
            why=shorten("; ".join(problems), 1000),
            hint="update the package that brings it; `exporter.target_api.Target` says what a target has",
        )
    return cast(Target, target)


def _problems(target: Any, name: str) -> list[str]:
    """What is wrong with a loaded object, judged by its values alone: nothing is called."""
    if isinstance(target, type):
        return [f"it is the class {target.__name__}, not an instance of it"]
    lacking = [member for member in (*VALUES, *METHODS) if not hasattr(target, member)]
    if lacking:
        return [f"it lacks {', '.join(lacking)}"]
    problems = [f"{method} is not a method" for method in METHODS if not callable(getattr(target, method))]
    if target.name != name:
        problems.append(f"it calls itself {target.name!r}")
    if not NAME.fullmatch(name):
        problems.append("its name cannot be part of a folder's name (letters, digits, '.', '_', '-'; at most 64)")
    if type(target.version) is not int:
        problems.append(f"version is {target.version!r}, not a whole number")
    summary = target.summary
    if not isinstance(summary, str) or not summary.strip() or len(summary.splitlines()) > 1:
        problems.append(f"summary is {summary!r}, not one line of text")
    options = target.options_type
    if not (isinstance(options, type) and issubclass(options, TargetOptions)):
        problems.append(f"options_type is {options!r}, not a kind of TargetOptions")
    names = target.distributions
    if not isinstance(names, tuple) or not all(isinstance(each, str) for each in names):
        problems.append(f"distributions is {names!r}, not a tuple of names")
    return problems + _wrong_defaults(target.defaults)


def _wrong_defaults(defaults: object) -> list[str]:
    if not isinstance(defaults, Mapping):
        return [f"defaults is {defaults!r}, not a mapping of plan sections"]
    problems = []
    for section, table in defaults.items():
        kind = SECTIONS.get(section)
        if kind is None:
            problems.append(f"defaults has {section!r}, which is none of {', '.join(SECTIONS)}")
        elif not isinstance(table, Mapping):
            problems.append(f"defaults of {section} is {table!r}, not a mapping")
        else:
            keys = [field.name for field in msgspec.structs.fields(kind)]
            unknown = [key for key in table if key not in keys]
            problems += [f"defaults has {section}.{key}{closest(str(key), keys)}" for key in unknown]
    return problems


def _origin(point: EntryPoint) -> str:
    distribution = point.dist.name if point.dist else "an unknown distribution"
    return f"{point.value} ({distribution})"
