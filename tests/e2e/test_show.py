"""`show`: one bundle on a terminal, or as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from bundles import HOSTILE, replaced, rewritten
from jsonschema import Draft202012Validator
from support import Workplace, refused

SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"


@pytest.fixture(scope="module")
def bundle(shared_place: Workplace) -> Path:
    shared_place.onnx()
    shared_place.quadrants()
    flags = ("--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y")
    _, path = shared_place.built("model.onnx", *flags)
    return path


def test_show_names_variants_latency_the_default_and_why_in_80_columns(shared_place: Workplace, bundle: Path) -> None:
    result = shared_place.run("show", bundle)
    assert result.code == 0, result.err
    for wanted in ("model for cpu", "input image: float32[batch, 1, 8, 8]", "SQNR dB", "default: ", "latency in ms"):
        assert wanted in result.out
    table = [line for line in result.out.splitlines() if not line.startswith("bundle: ")]
    assert max(map(len, table)) <= 80
    assert "\x1b" not in result.out, "piped output is plain"


def test_show_as_json_is_one_document_without_raw_samples(shared_place: Workplace, bundle: Path) -> None:
    document = shared_place.run("show", bundle, "--json").document
    assert [one["name"] for one in document["variants"]] == ["fp32", "int8"]
    (profile,) = document["profiles"].values()
    assert profile["variants"][0]["summary"]["count"] >= 20
    assert "samples_ns" not in profile["variants"][0]
    assert document["default"]["why"]


def test_manifest_and_profiles_are_what_their_schemas_say(bundle: Path) -> None:
    schemas = {
        name: json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
        for name in ("manifest", "profile", "instructions", "benchmark")
    }
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    (path,) = (bundle / "profiles").iterdir()
    for name, document in (("manifest", manifest), ("profile", json.loads(path.read_bytes()))):
        validator = Draft202012Validator(schemas[name])
        validator.validate(document)
        for wrong in ({**document, "colour": "red"}, {**document, "target": 1}, {**document, "schema": 2}):
            assert not validator.is_valid(wrong)
        assert not validator.is_valid({key: value for key, value in document.items() if key != "target"})


def test_show_of_a_bundle_without_profiles_says_how_to_measure(
    shared_place: Workplace, bundle: Path, tmp_path: Path
) -> None:
    bare = rewritten(bundle, tmp_path / "bare", lambda one: replaced(one, choice=replaced(one.choice, profile=None)))
    shutil.rmtree(bare / "profiles")
    out = shared_place.run("show", bare).out
    assert "latency: not measured" in out
    assert "edge-exporter profile" in out


def test_show_of_hostile_names_fits_and_moves_no_cursor(
    shared_place: Workplace, bundle: Path, tmp_path: Path
) -> None:
    name = HOSTILE + "\x1b[2J\r"
    hostile = rewritten(
        bundle,
        tmp_path / "hostile",
        lambda one: replaced(one, name=name, model=replaced(one.model, source=name, licence=name)),
        lambda one: replaced(one, host=replaced(one.host, cpu=name)),
    )
    result = shared_place.run("show", hostile)
    assert result.code == 0, result.err
    assert "\x1b" not in result.out
    assert "\r" not in result.out
    table = [line for line in result.out.splitlines() if not line.startswith("bundle: ")]
    assert max(map(len, table)) <= 80


def test_show_of_what_is_no_bundle_is_told(shared_place: Workplace, tmp_path: Path) -> None:
    refused(shared_place.run("show", tmp_path / "nothing"), 3, "no such bundle folder", "nothing")
    refused(shared_place.run("show", tmp_path), 6, "manifest.json", hint=False)
