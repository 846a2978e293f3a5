"""`show`: one bundle on a terminal. `compare`: two bundles or profiles, with gates that end a release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundles import HOSTILE, counts, replaced, rewritten, slower
from jsonschema import Draft202012Validator
from support import Workplace, refused

from exporter.artifacts import canonical
from exporter.bundle import read_manifest, read_profiles

SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"


@pytest.fixture(scope="module")
def first(shared_place: Workplace) -> Path:
    shared_place.onnx()
    shared_place.quadrants()
    flags = ("--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y")
    _, path = shared_place.built("model.onnx", *flags)
    return path


@pytest.fixture(scope="module")
def second(shared_place: Workplace, first: Path) -> Path:
    """The same float file; the int8 one is another file, twice as slow, and both are less accurate."""

    def worse(manifest):
        variants = tuple(
            replaced(one, fidelity=replaced(one.fidelity, metric=replaced(one.fidelity.metric, value=0.5)))
            for one in manifest.variants
        )
        return replaced(manifest, variants=variants, notes=("worse",))

    def slow(profile):
        return slower(profile, 2.0, variants=("int8",))

    return rewritten(first, shared_place / "second", worse, slow, other="int8")


# --- show ----------------------------------------------------------------------------------------------------------


def test_show_names_variants_latency_the_default_and_why_in_80_columns(shared_place: Workplace, first: Path) -> None:
    result = shared_place.run("show", first)
    assert result.code == 0, result.err
    for wanted in ("model for cpu", "input image: float32[batch, 1, 8, 8]", "SQNR dB", "default: ", "latency in ms"):
        assert wanted in result.out
    table = [line for line in result.out.splitlines() if not line.startswith("bundle: ")]
    assert max(map(len, table)) <= 80
    assert "\x1b" not in result.out, "piped output is plain"


def test_show_as_json_is_one_document_without_raw_samples(shared_place: Workplace, first: Path) -> None:
    document = shared_place.run("show", first, "--json").document
    assert [one["name"] for one in document["variants"]] == ["fp32", "int8"]
    (profile,) = document["profiles"].values()
    assert profile["variants"][0]["summary"]["count"] >= 20
    assert "samples_ns" not in profile["variants"][0]
    assert document["default"]["why"]


def test_manifest_and_profiles_are_what_their_schemas_say(first: Path) -> None:
    schemas = {
        name: json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
        for name in ("manifest", "profile", "instructions", "benchmark")
    }
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    manifest = json.loads((first / "manifest.json").read_bytes())
    (path,) = (first / "profiles").iterdir()
    for name, document in (("manifest", manifest), ("profile", json.loads(path.read_bytes()))):
        validator = Draft202012Validator(schemas[name])
        validator.validate(document)
        for wrong in ({**document, "colour": "red"}, {**document, "target": 1}, {**document, "schema": 2}):
            assert not validator.is_valid(wrong)
        assert not validator.is_valid({key: value for key, value in document.items() if key != "target"})


def test_show_of_a_bundle_without_profiles_says_how_to_measure(
    shared_place: Workplace, first: Path, tmp_path: Path
) -> None:
    bare = rewritten(first, tmp_path / "bare", lambda one: replaced(one, choice=replaced(one.choice, profile=None)))
    shutil.rmtree(bare / "profiles")
    out = shared_place.run("show", bare).out
    assert "latency: not measured" in out
    assert "edge-exporter profile" in out


def test_show_of_hostile_names_fits_and_moves_no_cursor(shared_place: Workplace, first: Path, tmp_path: Path) -> None:
    name = HOSTILE + "\x1b[2J\r"
    hostile = rewritten(
        first,
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


def test_show_of_what_is_no_bundle_is_told(shared_place: Workplace, first: Path, tmp_path: Path) -> None:
    refused(shared_place.run("show", tmp_path / "nothing"), 3, "no such bundle folder", "nothing")
    refused(shared_place.run("show", tmp_path), 6, "manifest.json", hint=False)
    refused(shared_place.run("show", first.parent), 3, "holds bundles, 1 of them", f"name one, as {first}")


# --- compare -------------------------------------------------------------------------------------------------------


def test_a_bundle_against_itself_is_equal_and_passes_every_gate(shared_place: Workplace, first: Path) -> None:
    gates = [("--gate", f"{name}=+0%") for name in ("accuracy", "size", "memory", "p50")]
    result = shared_place.run("compare", first, first, *(word for gate in gates for word in gate))
    assert result.code == 0, result.err
    assert "no difference" in result.out
    assert result.out.count("passed") == 4
    assert max(map(len, result.out.splitlines())) <= 80


def test_a_worse_bundle_fails_with_7_and_one_document(shared_place: Workplace, first: Path, second: Path) -> None:
    gates = ("--gate", "accuracy=-0.5%", "--gate", "p50=+5%", "--gate", "size=+1%", "--variant", "int8")
    result = shared_place.run("compare", first, second, *gates, "--json")
    assert result.code == 7
    assert [gate["passed"] for gate in result.document["gates"]] == [False, False, True]
    (pair,) = result.document["variants"]
    assert pair["latency"]["p50"]["ratio"] == pytest.approx(2.0, rel=0.01)
    assert pair["latency"]["p50"]["verdict"] == "slower"
    assert "2 of 3 gates were not met" in result.err


def test_markdown_is_a_table_that_says_what_failed(shared_place: Workplace, first: Path, second: Path) -> None:
    gates = ("--gate", "p50=+5%", "--variant", "int8")
    result = shared_place.run("compare", first, second, *gates, "--format", "md")
    assert result.code == 7
    assert "| p50 ms |" in result.out
    assert "FAILED" in result.out


def test_profiles_compare_as_files_too(shared_place: Workplace, first: Path, second: Path, tmp_path: Path) -> None:
    (mine,), (theirs,) = (sorted((bundle / "profiles").iterdir()) for bundle in (first, second))
    inside = shared_place.run("compare", mine, theirs, "--json")
    assert inside.code == 0, inside.err
    alone = Path(shutil.copy(theirs, tmp_path / "alone.json"))
    document = shared_place.run("compare", mine, alone, "--json", "--variant", "int8").document
    assert document["variants"][0]["latency"]["p50"]["verdict"] == "slower"
    assert document["variants"][0]["size"]["a"] is None
    refused(shared_place.run("compare", mine, alone, "--gate", "size=+0%"), 3, "cannot be gated", "profile alone")


def test_one_file_measured_on_a_slower_day_makes_no_difference(
    shared_place: Workplace, first: Path, tmp_path: Path
) -> None:
    """The float file is the same on both sides: what it differs by is the host, and no more is claimed."""
    slow_day = rewritten(first, tmp_path / "slow", profile=lambda one: slower(one, 1.3), other="int8")
    result = shared_place.run("compare", first, slow_day, "--json", "--gate", "p50=+5%")
    assert result.code == 0, result.err
    control = result.document["control"]
    assert control["variant"] == "fp32"
    assert control["ratio"] == pytest.approx(1.3, rel=0.02)
    for pair in result.document["variants"]:
        assert pair["latency"]["p50"]["verdict"] == "no difference"
    assert "control: fp32 is the same file" in " ".join(shared_place.run("compare", first, slow_day).out.split())


def test_one_file_whose_slowest_runs_were_disturbed_makes_no_difference_there_either(
    shared_place: Workplace, first: Path, tmp_path: Path
) -> None:
    def disturbed(profile):
        def longer(samples):
            usual = sorted(samples)[round(0.8 * len(samples))]
            return tuple(4 * sample if sample > usual else sample for sample in samples)

        return replaced(
            profile,
            variants=tuple(replaced(one, samples_ns=longer(one.samples_ns)) for one in profile.variants),
        )

    busy = rewritten(first, tmp_path / "busy", profile=disturbed, other="int8")
    result = shared_place.run("compare", first, busy, "--json", "--gate", "p90=+5%")
    assert result.code == 0, result.err
    assert result.document["control"]["tails"]["p90"] > 3
    for pair in result.document["variants"]:
        assert pair["latency"]["p90"]["ratio"] > 2
        assert pair["latency"]["p90"]["verdict"] == "no difference"
    assert ", of p90 " in " ".join(shared_place.run("compare", first, busy).out.split())


def test_what_disturbed_a_measurement_and_other_inputs_are_told_beside_the_numbers(
    shared_place: Workplace, first: Path, tmp_path: Path
) -> None:
    flags = ("drift: median 1 ms at first, 2 ms at last (fp32)", "host busy: load average 9.00 over 2 cores")

    def other_edges(manifest):
        (output,) = manifest.signature.outputs
        signature = replaced(manifest.signature, outputs=(replaced(output, name="other"),))
        return replaced(manifest, signature=signature)

    def disturbed(profile):
        return replaced(profile, flags=flags)

    busy = rewritten(first, tmp_path / "busy", other_edges, disturbed)
    result = shared_place.run("compare", first, busy)
    assert result.code == 0, result.err
    told = " ".join(result.out.split())
    assert f"note: second: {flags[1]}; {flags[0]}" in told
    name = read_manifest(first).signature.outputs[0].name
    assert f"not the same: outputs: {name} and other" in told


def test_counts_of_an_emulated_device_are_refused_as_latency(
    shared_place: Workplace, first: Path, tmp_path: Path
) -> None:
    emulated = rewritten(first, tmp_path / "emulated")
    counted = emulated / "profiles" / "pi5.instructions.json"
    counted.write_bytes(canonical(counts(read_manifest(emulated))))
    for path in (counted, Path(shutil.copy(counted, tmp_path / "renamed.json"))):
        refused(shared_place.run("compare", first, path), 3, "no runs that could be compared")


def test_other_hosts_and_runtimes_are_refused_unless_asked_for(
    shared_place: Workplace, first: Path, tmp_path: Path
) -> None:
    elsewhere = rewritten(
        first,
        tmp_path / "elsewhere",
        profile=lambda one: replaced(one, provenance="imported", device="pi", host=replaced(one.host, cpu="Cortex")),
    )
    refused(shared_place.run("compare", first, elsewhere), 3, "imported", "Cortex", "--across")
    asked = shared_place.run("compare", first, elsewhere, "--across")
    assert asked.code == 0
    assert "not the same: CPU" in asked.out
    left_out = shared_place.run("compare", first, elsewhere, "--no-latency")
    assert left_out.code == 0
    assert "p50" not in left_out.out


def test_accuracy_on_other_data_is_not_compared_unless_asked_for(
    shared_place: Workplace, first: Path, tmp_path: Path
) -> None:
    other = rewritten(first, tmp_path / "data", lambda one: replaced(one, data=replaced(one.data, evaluation="0")))
    result = shared_place.run("compare", first, other)
    assert result.code == 0
    assert "accuracy: not compared: accuracy was measured on other data" in result.out
    refused(shared_place.run("compare", first, other, "--gate", "accuracy=-1%"), 3, "other data")
    asked = shared_place.run("compare", first, other, "--gate", "accuracy=-1%", "--across")
    assert asked.code == 0
    assert "not the same: accuracy was measured on other data" in asked.out


def test_without_a_profile_latency_is_not_compared_and_cannot_be_gated(
    shared_place: Workplace, first: Path, tmp_path: Path
) -> None:
    bare = rewritten(first, tmp_path / "bare", lambda one: replaced(one, choice=replaced(one.choice, profile=None)))
    shutil.rmtree(bare / "profiles")
    result = shared_place.run("compare", first, bare)
    assert result.code == 0
    assert "not compared: bare has no latency profile" in " ".join(result.out.split())
    refused(shared_place.run("compare", first, bare, "--gate", "p50=+5%"), 3, "no latency profile")


@pytest.mark.slow
def test_remeasuring_runs_both_again_and_leaves_both_as_they_were(shared_place: Workplace, first: Path) -> None:
    floats = ("--set", "quantize.enabled=false", "--no-profile", "--output", "floats")
    _, bundle = shared_place.built("model.onnx", "--calib", "calib.npz", *floats)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    result = shared_place.run("compare", bundle, bundle, "--remeasure", "--rounds", "6", "--json")
    assert result.code == 0, result.err
    assert result.document["remeasured"] == 6
    found = result.document["variants"][0]["latency"]["p50"]
    assert found["count"] == 6
    assert found["low"] < found["high"], "each side was measured by itself"
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


def test_rounds_in_which_one_and_the_same_file_was_slower_make_no_difference(
    shared_place: Workplace, first: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other variants in the same process slow it down: that says nothing of the file."""
    asked = []

    def bench(path: Path, settings: Any, variants: int, *, variant: str | None) -> Any:
        asked.append(variant)
        (profile,) = read_profiles(path, read_manifest(path)).values()
        return slower(profile, (1.2 if path == second else 1.0) * (1 + len(asked) / 1000))

    monkeypatch.setattr("exporter.pipeline.side_by_side.run_bench", bench)
    result = shared_place.run("compare", first, second, "--remeasure", "--rounds", "6", "--json")
    assert result.code == 0, result.err
    assert result.document["control"]["variant"] == "fp32"
    found = {pair["a"]: pair["latency"]["p50"] for pair in result.document["variants"]}
    assert found["fp32"]["ratio"] == pytest.approx(1.2, rel=0.01)
    assert (found["fp32"]["verdict"], found["int8"]["verdict"]) == ("no difference", "slower")
    assert set(asked) == {None}
    alone = ("--variant", "int8", "--remeasure", "--rounds", "6")
    assert shared_place.run("compare", first, second, *alone).code == 0
    assert asked[-1] == "int8"


@pytest.mark.parametrize(
    ("arguments", "code", "mention"),
    [
        (("--gate", "speed=+5%"), 2, "no gate 'speed'"),
        (("--gate", "p50=quick"), 2, "a name and a number"),
        (("--remeasure", "--no-latency"), 2, "choose one"),
        (("--variant", "int4"), 3, "int4"),
    ],
)
def test_what_does_not_go_together_is_told(
    shared_place: Workplace, first: Path, arguments: tuple[str, ...], code: int, mention: str
) -> None:
    refused(shared_place.run("compare", first, first, *arguments), code, mention, hint=False)


def test_what_is_neither_bundle_nor_profile_is_told(shared_place: Workplace, first: Path, tmp_path: Path) -> None:
    refused(shared_place.run("compare", first, tmp_path / "nothing"), 3, "no such bundle or profile")
    junk = tmp_path / "junk.json"
    junk.write_text("{}")
    refused(shared_place.run("compare", first, junk), 3, "no profile")
    (first.parent / "dented").mkdir()
    dented = shutil.copytree(first, first.parent / "dented", dirs_exist_ok=True)
    (dented / "plan.toml").write_text("")
    refused(shared_place.run("compare", first, dented), 6, "plan.toml")


def test_hostile_names_stay_text_in_markdown(shared_place: Workplace, first: Path, tmp_path: Path) -> None:
    hostile = rewritten(
        first,
        tmp_path / "hostile",
        profile=lambda one: replaced(one, host=replaced(one.host, cpu=HOSTILE)),
    )
    out = shared_place.run("compare", hostile, hostile, "--format", "md").out
    assert "<script>" not in out
    assert "&lt;script&gt;" in out
