"""The only reader of plans: TOML text, flags and `--set` to one frozen Plan, each value knowing where it came from.

Later layers win: built-in default, target default, plan, the plan's target table, `--set`. All problems are
collected and shown together before any work starts.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from exporter.convert import convert_struct, defaults_of
from exporter.errors import InputError, PlanError, closest
from exporter.plan_types import (
    DataPlan,
    EvaluationPlan,
    ExportPlan,
    GatePlan,
    ModelPlan,
    ProfilePlan,
    QuantizePlan,
)
from exporter.target_api import Target, TargetOptions

Tables = dict[str, Any]

GLOBAL: dict[str, type[msgspec.Struct]] = {"model": ModelPlan, "calibration": DataPlan, "evaluation": EvaluationPlan}
PER_TARGET: dict[str, type[msgspec.Struct]] = {
    "export": ExportPlan,
    "quantize": QuantizePlan,
    "gate": GatePlan,
    "profile": ProfilePlan,
}
TOP_LEVEL = ("schema", "name", "targets", *GLOBAL, *PER_TARGET)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PATH_KEYS = {"model": ("source", "weights", "depends"), "calibration": ("data",), "evaluation": ("data", "metric")}


class TargetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan says for one target, after all layers."""

    name: str
    options: TargetOptions
    export: ExportPlan
    quantize: QuantizePlan
    gate: GatePlan
    profile: ProfilePlan


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A resolved plan.

    Attributes:
        name: first part of the bundles' folder names.
        model: the trained model.
        calibration: representative inputs, or None.
        evaluation: held-out data, or None.
        targets: one entry a target to build.
        origins: where each value came from, by dotted key.
        written: the tables as the user wrote them, paths untouched.
    """

    name: str
    model: ModelPlan
    calibration: DataPlan | None
    evaluation: EvaluationPlan | None
    targets: tuple[TargetPlan, ...]
    origins: dict[str, str]
    written: Tables

    def resolved(self, target: TargetPlan) -> Tables:
        """All values in force for one target, as TOML can hold them; absolute paths are cut to their last part."""
        tables: Tables = {"schema": 1, "name": self.name}
        for section, value in (
            ("model", self.model),
            ("calibration", self.calibration),
            ("evaluation", self.evaluation),
        ):
            if value is not None:
                plain = cast(Tables, msgspec.to_builtins(value, enc_hook=str))
                written = self.written.get(section, {})
                plain |= {key: _portable(written[key]) for key in PATH_KEYS[section] if key in written}
                tables[section] = plain
        for section in PER_TARGET:
            tables[section] = msgspec.to_builtins(getattr(target, section))
        tables["targets"] = {target.name: msgspec.to_builtins(target.options)}
        return cast(Tables, _without_none(tables))


def read_plan(
    file: Path,
    *,
    load_target: Callable[[str], Target],
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Plan:
    """Reads a plan file.

    Args:
        file: the TOML file; paths in it are relative to its folder.
        load_target: finds a target by name.
        sets: `section.key=value` overrides from the command line.
        only: build these targets only, or all that the plan names when empty.

    Raises:
        InputError: the file is missing or is no TOML.
        PlanError: all problems of its contents.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "write one with `edge-exporter init MODEL --calib DATA`"
        raise InputError("the plan file does not exist", where=str(file), hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the plan file cannot be read", where=str(file), why=str(error)) from error
    except tomllib.TOMLDecodeError as error:
        raise InputError("the plan is not valid TOML", where=str(file), why=str(error)) from error
    folder = file.absolute().parent
    return resolve(
        tables,
        base=folder,
        where=str(file),
        origin=file.name,
        default_name=folder.name,
        load_target=load_target,
        sets=sets,
        only=only,
    )


def resolve(
    tables: Tables,
    *,
    base: Path,
    where: str,
    origin: str,
    default_name: str,
    load_target: Callable[[str], Target],
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Plan:
    """Turns tables into a Plan: checks every key and value, resolves paths, applies the layers.

    Raises:
        PlanError: everything that is wrong, at once.
    """
    problems: list[str] = []
    overrides = _parse_sets(sets, problems)
    tables = _select_targets(tables, only)
    name = _check_top_level(tables, overrides, default_name, problems)
    origins: dict[str, str] = {}
    globals_: dict[str, Any] = {}
    written: Tables = {}
    for section, kind in GLOBAL.items():
        if section not in tables and section not in overrides:
            if section == "model":
                problems.append("[model] is missing: it names the trained model (`source = ...`)")
            continue
        layers = [(origin, tables.get(section, {})), ("--set", overrides.get(section, {}))]
        merged = _merge(layers, section, kind, origins, problems)
        written[section] = merged
        globals_[section] = convert_struct(merged, kind, section, problems, base=base)
    for section, kind in PER_TARGET.items():
        for table in (tables.get(section, {}), overrides.get(section, {})):
            convert_struct(table, kind, section, problems, base=None)
    targets = [
        _target_plan(target, tables, overrides, origin, load_target, origins, problems)
        for target in _table(tables, "targets", problems)
    ]
    if not targets:
        problems.append("no target: add a table such as [targets.cpu], or name one with --target")
    _check_files(globals_, problems)
    if problems:
        raise PlanError(
            problems, where=where, hint="`edge-exporter plan PLAN` shows each value and where it came from"
        )
    return Plan(
        name=name,
        model=globals_["model"],
        calibration=globals_.get("calibration"),
        evaluation=globals_.get("evaluation"),
        targets=tuple(target for target in targets if target is not None),
        origins=origins,
        written=written,
    )


def _target_plan(
    name: str,
    tables: Tables,
    overrides: Tables,
    origin: str,
    load_target: Callable[[str], Target],
    origins: dict[str, str],
    problems: list[str],
) -> TargetPlan | None:
    try:
        target = load_target(name)
    except PlanError as error:
        problems.extend(f"[targets.{name}] {problem} ({error.hint})" for problem in error.problems)
        return None
    table = tables["targets"][name]
    override = overrides.get("targets", {}).get(name, {})
    if not isinstance(table, dict):
        problems.append(f"targets.{name}: a table is expected")
        return None
    before = len(problems)
    for section, kind in PER_TARGET.items():
        for own_table in (table.get(section, {}), override.get(section, {})):
            convert_struct(own_table, kind, f"targets.{name}.{section}", problems, base=None)
    own = [
        (origin, {key: value for key, value in table.items() if key not in PER_TARGET}),
        ("--set", {key: value for key, value in override.items() if key not in PER_TARGET}),
    ]
    merged = _merge(own, f"targets.{name}", target.options_type, origins, problems)
    options = convert_struct(
        merged, target.options_type, f"targets.{name}", problems, base=None, also=tuple(PER_TARGET)
    )
    if options is None or len(problems) > before:
        return None
    sections: dict[str, Any] = {}
    for section, kind in PER_TARGET.items():
        key = f"targets.{name}.{section}"
        layers = [
            (f"default of target {name}", target.defaults.get(section, {})),
            (origin, tables.get(section, {})),
            (f"{origin} [{key}]", table.get(section, {})),
            ("--set", overrides.get(section, {})),
            (f"--set {key}", override.get(section, {})),
        ]
        merged = _merge(layers, key, kind, origins, problems)
        sections[section] = convert_struct(merged, kind, key, problems, base=None)
    if None in sections.values():
        return None
    return TargetPlan(name=name, options=options, **sections)


def _merge(
    layers: Iterable[tuple[str, object]],
    where: str,
    kind: type[msgspec.Struct],
    origins: dict[str, str],
    problems: list[str],
) -> Tables:
    merged: Tables = {}
    origins |= {f"{where}.{key}": "built-in default" for key in defaults_of(kind)}
    for origin, table in layers:
        if not isinstance(table, Mapping):
            problems.append(f"{where}: a table is expected, not {table!r} ({origin})")
            continue
        merged |= _deep_merge(merged, table)
        origins |= {f"{where}.{key}": origin for key in table}
    return merged


def _deep_merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tables:
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = _deep_merge(cast(Tables, below), value) if both else value
    return result


def _parse_sets(sets: Sequence[str], problems: list[str]) -> Tables:
    tables: Tables = {}
    for text in sets:
        key, equals, value = text.partition("=")
        parts = key.strip().split(".")
        if not equals or len(parts) < 2 or not all(parts):
            problems.append(f"--set {text}: section.key=value is expected, as in --set quantize.per_channel=false")
            continue
        try:
            parsed = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value.strip()  # A bare word is taken as text, so that shells need no second pair of quotes.
        nested: Any = parsed
        for part in reversed(parts):
            nested = {part: nested}
        tables = _deep_merge(tables, nested)
    return tables


def _select_targets(tables: Tables, only: Sequence[str]) -> Tables:
    if not only:
        return tables
    present = tables.get("targets", {})
    return tables | {"targets": {name: present.get(name, {}) for name in only}}


def _check_top_level(tables: Tables, overrides: Tables, default_name: str, problems: list[str]) -> str:
    for key in [*tables, *overrides]:
        if key not in TOP_LEVEL:
            problems.append(f"{key}: unknown section or key{closest(key, TOP_LEVEL)}")
    targets = tables.get("targets", {})
    for target in overrides.get("targets", {}):
        if target not in targets:
            problems.append(f"--set targets.{target}: the plan does not build this target")
    schema = tables.get("schema")
    if schema != 1:
        stated = "is missing" if schema is None else f"is {schema!r}"
        problems.append(f"schema {stated}: this version reads `schema = 1`")
    name = tables.get("name", re.sub(r"[^A-Za-z0-9._-]+", "-", default_name).strip("-.") or "model")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        problems.append(f"name: {name!r} cannot start a folder's name (letters, digits, '.', '_', '-'; at most 64)")
        return "model"
    return name


def _table(tables: Tables, key: str, problems: list[str]) -> Tables:
    value = tables.get(key, {})
    if not isinstance(value, dict):
        problems.append(f"{key}: a table is expected")
        return {}
    return value


def file_part(reference: str) -> str | None:
    """The path in a source, data or metric reference, or None when it names an importable module."""
    path, colon, _ = reference.rpartition(":")
    if colon and path.endswith(".py"):
        return path
    return None if colon and "/" not in reference and "\\" not in reference else reference


def _check_files(sections: Mapping[str, Any], problems: list[str]) -> None:
    """Names every file that the plan refers to and that is not there."""
    found: list[tuple[str, str | Path | None]] = []
    if model := sections.get("model"):
        found += [("model.source", file_part(model.source)), ("model.weights", model.weights)]
        found += [("model.depends", path) for path in model.depends]
    for section in ("calibration", "evaluation"):
        if data := sections.get(section):
            found.append((f"{section}.data", file_part(data.data)))
    evaluation = sections.get("evaluation")
    if evaluation is not None and evaluation.metric != "accuracy":
        found.append(("evaluation.metric", file_part(evaluation.metric)))
    problems += [f"{key}: {path} does not exist" for key, path in found if path and not Path(path).exists()]


def _portable(value: object) -> object:
    if isinstance(value, list):
        return [_portable(item) for item in value]
    text = str(value)
    path, colon, function = text.rpartition(":") if ".py:" in text else (text, "", "")
    return (Path(path).name + colon + function) if Path(path).is_absolute() else text


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
