"""Targets are found through entry points, and each way of bringing a wrong one has its message."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from exporter import plan, registry
from exporter.errors import ExporterError, MissingError, PlanError
from exporter.registry import METHODS, load_target, target_names
from exporter.target_api import TargetOptions

GOOD = """\
from exporter.target_api import TargetOptions

class Mine:
    name = "mine"
    version = 1
    summary = "one line"
    options_type = TargetOptions
    defaults = {}
    distributions = ()
    def missing(self, options): ...
    def requires(self, options): ...
    def convert(self, request, options, folder): ...
    def payload(self, options): ...
    def open_session(self, model, *, simulated): ...
    def tolerance(self, variant, model, expected): ...

TARGET = Mine()
"""

Bring = Callable[..., None]


@pytest.fixture
def bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bring:
    """Puts a distribution with one target on the path: metadata and a module, as an installer leaves them."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def bring(source: str, *, name: str = "mine", module: str = "mine_target", value: str = "TARGET") -> None:
        sys.modules.pop(module, None)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[edge_exporter.targets]\n{name} = {module}:{value}\n")

    return bring


def changed(**members: str) -> str:
    """The good module with some members of its target replaced by source text."""
    lines = "\n".join(f"Mine.{member} = {text}" for member, text in members.items())
    return f"{GOOD}{lines}\n"


def test_a_target_of_another_package_is_listed_beside_the_built_in_ones(bring: Bring) -> None:
    bring(GOOD)
    assert {"cpu", "mine"} <= set(target_names())
    assert target_names() == sorted(target_names())
    assert load_target("mine").summary == "one line"


def test_the_built_in_targets_load() -> None:
    assert load_target("cpu").name == "cpu"


def test_an_unknown_target_is_a_plan_error_with_the_closest_name(bring: Bring) -> None:
    bring(GOOD)
    with pytest.raises(PlanError) as caught:
        load_target("mime")
    assert "did you mean 'mine'" in str(caught.value)
    assert "cpu" in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import a_package_that_is_not_there", "a_package_that_is_not_there"),
        ("raise RuntimeError('no licence key')", "RuntimeError: no licence key"),
        ("raise SystemExit('needs another system')", "SystemExit: needs another system"),
        ("this is no python", "SyntaxError"),
        ("OTHER = 1", "TARGET"),
    ],
)
def test_a_target_that_cannot_be_imported_is_missing_and_says_who_brings_it(
    bring: Bring, source: str, why: str
) -> None:
    bring(source)
    with pytest.raises(MissingError) as caught:
        load_target("mine")
    assert caught.value.exit_code == 4
    assert "mine-target" in (caught.value.where or "")
    assert why in (caught.value.why or "")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"name": "'yours'"}, "it calls itself 'yours'"),
        ({"version": "'1'"}, "version is '1'"),
        ({"version": "True"}, "version is True"),
        ({"summary": "'two\\nlines'"}, "summary"),
        ({"summary": "''"}, "summary"),
        ({"options_type": "dict"}, "options_type"),
        ({"options_type": "TargetOptions()"}, "options_type"),
        ({"distributions": "'onnx'"}, "distributions"),
        ({"distributions": "(1,)"}, "distributions"),
        ({"defaults": "[]"}, "defaults"),
        ({"defaults": "{'quantise': {}}"}, "defaults has 'quantise'"),
        ({"defaults": "{'model': {}}"}, "defaults has 'model'"),
        ({"defaults": "{'quantize': {'activation': 'int8'}}"}, "did you mean 'activations'"),
        ({"defaults": "{'quantize': 1}"}, "defaults of quantize"),
        ({"convert": "None"}, "convert is not a method"),
        ({"summary": "property(lambda self: 1 / 0)"}, "ZeroDivisionError"),
        ({"version": "'1'", "summary": "3"}, "summary is 3"),
    ],
)
def test_a_member_that_is_not_what_the_protocol_says_is_named(
    bring: Bring, members: dict[str, str], why: str
) -> None:
    bring(changed(**members))
    with pytest.raises(ExporterError) as caught:
        load_target("mine")
    assert caught.value.exit_code == 5
    assert "does not follow the protocol" in caught.value.what
    assert why in (caught.value.why or "")
    assert "mine-target" in (caught.value.where or "")


def test_all_lacking_members_are_named_at_once(bring: Bring) -> None:
    bring("class Mine:\n    name = 'mine'\n\nTARGET = Mine()\n")
    with pytest.raises(ExporterError) as caught:
        load_target("mine")
    assert all(member in (caught.value.why or "") for member in ("version", "defaults", *METHODS))


def test_a_class_in_place_of_its_instance_is_told_from_a_target(bring: Bring) -> None:
    bring(GOOD, value="Mine")
    with pytest.raises(ExporterError, match="not an instance"):
        load_target("mine")


def test_a_name_that_cannot_be_in_a_folders_name_is_refused(bring: Bring) -> None:
    bring(changed(name="'../mine'"), name="../mine")
    with pytest.raises(ExporterError, match="folder's name"):
        load_target("../mine")


def test_two_packages_with_a_target_of_one_name_are_both_named(bring: Bring) -> None:
    bring(GOOD)
    bring(GOOD, module="other_target")
    with pytest.raises(MissingError) as caught:
        load_target("mine")
    assert "mine-target" in (caught.value.where or "")
    assert "other-target" in (caught.value.where or "")
    assert target_names().count("mine") == 1


def test_a_broken_target_leaves_the_others_alone(bring: Bring) -> None:
    bring("import a_package_that_is_not_there")
    assert "mine" in target_names()
    assert load_target("cpu").name == "cpu"


def test_sections_with_defaults_are_those_that_a_plan_resolves_for_each_target() -> None:
    sections: Mapping[str, Any] = plan.PER_TARGET
    assert dict(registry.SECTIONS) == sections


def test_the_protocols_members_are_all_checked() -> None:
    from exporter.target_api import Target

    declared = {name for name in vars(Target) if not name.startswith("_")}
    assert {*registry.VALUES, *METHODS} == declared
    assert issubclass(load_target("cpu").options_type, TargetOptions)
