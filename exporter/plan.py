"""The only reader of plans: TOML text, flags and `--set` to one frozen Plan, each value knowing where it came from.

Later layers win: built-in default, target default, plan, the plan's target table, `--set`. All problems are
collected and shown together before any work starts.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from exporter.convert import convert_struct, defaults_of
from exporter.errors import InputError, PlanError, shorten
from exporter.merge_checks import check_merge, default_source
from exporter.plan_checks import (
    check_compress,
    check_dynamic,
    check_files,
    check_preprocessing,
    check_top_level,
    learns,
)
from exporter.plan_sets import deep_merge, parse_sets
from exporter.plan_types import (
    CompressPlan,
    DataPlan,
    EvaluationPlan,
    ExportPlan,
    GatePlan,
    MergePlan,
    ModelPlan,
    ProfilePlan,
    QuantizePlan,
    TrainingPlan,
)
from exporter.plan_variants import split_variants
from exporter.target_api import Target, TargetOptions

Tables = dict[str, Any]

GLOBAL: dict[str, type[msgspec.Struct]] = {
    "model": ModelPlan,
    "merge": MergePlan,
    "compress": CompressPlan,
    "calibration": DataPlan,
    "training": TrainingPlan,
    "evaluation": EvaluationPlan,
}
PER_TARGET: dict[str, type[msgspec.Struct]] = {
    "export": ExportPlan,
    "quantize": QuantizePlan,
    "gate": GatePlan,
    "profile": ProfilePlan,
}
TOP_LEVEL = ("schema", "name", "targets", "variants", *GLOBAL, *PER_TARGET)
HINT = "docs/plan.md lists every key with its type and default"
TOML_TIMES = (datetime.datetime, datetime.date, datetime.time)
PATH_KEYS = {
    "model": ("source", "weights", "depends"), "calibration": ("data",), "training": ("data",),
    "evaluation": ("data", "metric"),
}  # fmt: skip

NESTED_PATHS = ("merge", "compress")
"""Sections whose lists of tables hold paths."""


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
        merge: what is merged into it, or None.
        compress: what makes it smaller, or None.
        calibration: representative inputs, or None.
        training: what students learn from instead, or None.
        evaluation: held-out data, or None.
        targets: one entry a target to build.
        origins: where each value came from, by dotted key.
        written: the tables as the user wrote them, paths untouched.
        label: what an alternative is called in its plan; empty for the plan itself.
        variants: the alternatives that are built instead of the plan itself, where it has some.
    """

    name: str
    model: ModelPlan
    merge: MergePlan | None = None
    compress: CompressPlan | None = None
    calibration: DataPlan | None
    training: TrainingPlan | None = None
    evaluation: EvaluationPlan | None
    targets: tuple[TargetPlan, ...]
    origins: dict[str, str]
    written: Tables
    label: str = ""
    variants: tuple[Plan, ...] = ()

    def resolved(self, target: TargetPlan) -> Tables:
        """All values in force for one target, as TOML can hold them; absolute paths are cut to their last part."""
        tables: Tables = {"schema": 1, "name": self.name}
        for section, value in (
            ("model", self.model),
            ("merge", self.merge),
            ("compress", self.compress),
            ("calibration", self.calibration),
            ("training", self.training),
            ("evaluation", self.evaluation),
        ):
            if value is not None:
                plain = cast(Tables, msgspec.to_builtins(value, builtin_types=TOML_TIMES, enc_hook=str))
                written = self.written.get(section, {})
                plain |= {key: _portable(written[key]) for key in PATH_KEYS.get(section, ()) if key in written}
                tables[section] = _portable(plain) if section in NESTED_PATHS else plain
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
    except (ValueError, RecursionError) as error:
        # Not only TOMLDecodeError: a number of thousands of digits, or deep nesting, is a fault of the file as well.
        raise InputError("the plan is not valid TOML", where=str(file), why=shorten(error)) from error
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
    rest, variants = split_variants(tables, problems)
    plans: dict[str, Plan] = {}
    for name, own in {"": rest, **variants}.items():
        try:
            plans[name] = _resolve(own, base, where, origin, default_name, load_target, sets, only)
        except RecursionError as error:
            raise PlanError(["tables or lists are nested too deeply"], where=where) from error
        except PlanError as error:
            # What an alternative shares with the plan is said once.
            new = [problem for problem in error.problems if problem not in problems]
            problems += [f"variant '{name}': {problem}" if name else problem for problem in new]
    if problems:
        raise PlanError(problems, where=where, hint=HINT)
    plan = plans.pop("")
    if plan.training is not None and not any(learns(one.merge, one.compress) for one in (plan, *plans.values())):
        unused = "training: nothing learns from it; `distil` in [compress] and `transfer` in [merge] do"
        raise PlanError([unused], where=where, hint=HINT)
    named = (msgspec.structs.replace(one, name=f"{plan.name}-{name}", label=name) for name, one in plans.items())
    return msgspec.structs.replace(plan, variants=tuple(named))


def _resolve(
    tables: Tables,
    base: Path,
    where: str,
    origin: str,
    default_name: str,
    load_target: Callable[[str], Target],
    sets: Sequence[str],
    only: Sequence[str],
) -> Plan:
    problems: list[str] = []
    overrides = parse_sets(sets, problems)
    tables = dict(default_source(_select_targets(tables, only)))
    name = check_top_level(tables, overrides, TOP_LEVEL, default_name, problems)
    origins: dict[str, str] = {}
    globals_: dict[str, Any] = {}
    written: Tables = {}
    for section, kind in GLOBAL.items():
        if section not in tables and section not in overrides:
            if section == "model":
                problems.append("[model] is missing: it names the trained model (`source = ...`)")
            continue
        layers = [(origin, tables.get(section, {})), ("--set", overrides.get(section, {}))]
        before = len(problems)
        merged = _merge(layers, section, kind, origins, problems)
        if len(problems) == before:
            written[section] = merged
            globals_[section] = convert_struct(merged, kind, section, problems, base=base)
    before = len(problems)
    for section, kind in PER_TARGET.items():
        convert_struct(tables.get(section, {}), kind, section, problems, base=None)
        convert_struct(overrides.get(section, {}), kind, f"--set {section}", problems, base=None)
    shared_sound = len(problems) == before
    present = _table(tables, "targets", problems)
    targets = [
        _target_plan(target, present, tables, overrides, origin, load_target, origins, problems, shared_sound)
        for target in present
    ]
    if not targets:
        problems.append("no target: add a table such as [targets.cpu], or name one with --target")
    check_files(globals_, problems)
    check_merge(globals_.get("merge"), globals_.get("model"), globals_.get("compress"), problems)
    check_compress(globals_.get("compress"), list(present), problems)
    check_preprocessing(globals_.get("model"), problems)
    if problems:
        raise PlanError(problems, where=where, hint=HINT)
    return Plan(
        name=name,
        model=globals_["model"],
        merge=globals_.get("merge"),
        compress=globals_.get("compress"),
        calibration=globals_.get("calibration"),
        training=globals_.get("training"),
        evaluation=globals_.get("evaluation"),
        targets=tuple(target for target in targets if target is not None),
        origins=origins,
        written=written,
    )


def _target_plan(
    name: str,
    present: Tables,
    tables: Tables,
    overrides: Tables,
    origin: str,
    load_target: Callable[[str], Target],
    origins: dict[str, str],
    problems: list[str],
    shared_sound: bool,
) -> TargetPlan | None:
    try:
        target = load_target(name)
    except PlanError as error:
        problems.extend(f"[targets.{name}] {problem} ({error.hint})" for problem in error.problems)
        return None
    table = present[name]
    override = overrides.get("targets", {}).get(name, {})
    before = len(problems)
    for where, value in ((f"targets.{name}", table), (f"--set targets.{name}", override)):
        if not isinstance(value, Mapping):
            problems.append(f"{where}: a table is expected, not {shorten(repr(value), 80)}")
    if len(problems) > before:
        return None
    for section, kind in PER_TARGET.items():
        for where, own_table in ((f"targets.{name}", table), (f"--set targets.{name}", override)):
            convert_struct(own_table.get(section, {}), kind, f"{where}.{section}", problems, base=None)
    own = [
        (origin, {key: value for key, value in table.items() if key not in PER_TARGET}),
        ("--set", {key: value for key, value in override.items() if key not in PER_TARGET}),
    ]
    merged = _merge(own, f"targets.{name}", target.options_type, origins, problems)
    options = convert_struct(
        merged, target.options_type, f"targets.{name}", problems, base=None, also=tuple(PER_TARGET)
    )
    # What is wrong with the sections that all targets share is said once, not again for each target.
    if options is None or len(problems) > before or not shared_sound:
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
    said = deep_merge(table.get("quantize", {}), override.get("quantize", {}))
    usual = target.defaults.get("quantize", {})
    check_dynamic(sections["quantize"], usual, said, f"targets.{name}.quantize", problems)
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
            problems.append(f"{where}: a table is expected, not {shorten(repr(table), 80)} ({origin})")
            continue
        for key, value in table.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            origins[f"{where}.{key}"] = f"{origins[f'{where}.{key}']}, {origin}" if both else origin
        merged = deep_merge(merged, table)
    return merged


def _select_targets(tables: Tables, only: Sequence[str]) -> Tables:
    present = tables.get("targets", {})
    if not only or not isinstance(present, Mapping):
        return tables
    return tables | {"targets": {name: present.get(name, {}) for name in only}}


def _table(tables: Tables, key: str, problems: list[str]) -> Tables:
    value = tables.get(key, {})
    if not isinstance(value, dict):
        problems.append(f"{key}: a table is expected, not {shorten(repr(value), 80)}")
        return {}
    return value


def _portable(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    text = value
    path, colon, function = text.rpartition(":") if ".py:" in text else (text, "", "")
    return (Path(path).name + colon + function) if Path(path).is_absolute() else text


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return type(value)(_without_none(item) for item in value)
    return value
