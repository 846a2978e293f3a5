"""`compare`: two bundles or profiles, with gates that end a release."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bundles import HOSTILE, replaced, rewritten, slower
from support import Workplace, refused


@pytest.fixture(scope="module")
def first(shared_place: Workplace) -> Path:
    shared_place.onnx()
    shared_place.quadrants()
    flags = ("--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y")
    _, path = shared_place.built("model.onnx", *flags)
    return path


@pytest.fixture(scope="module")
def second(shared_place: Workplace, first: Path) -> Path:
    """The same model, twice as slow, less accurate and with other operators in float."""

    def worse(manifest):
        variants = tuple(
            replaced(one, fidelity=replaced(one.fidelity, metric=replaced(one.fidelity.metric, value=0.5)))
            for one in manifest.variants
        )
        return replaced(manifest, variants=variants, notes=("worse",))

    return rewritten(first, shared_place / "second", worse, lambda profile: slower(profile, 2.0))


def test_a_bundle_against_itself_is_equal_and_passes_every_gate(shared_place: Workplace, first: Path) -> None:
    gates = [("--gate", f"{name}=+0%") for name in ("accuracy", "size", "memory", "p50")]
    result = shared_place.run("compare", first, first, *(word for gate in gates for word in gate))
    assert result.code == 0, result.err
    assert "no difference" in result.out
    assert result.out.count("passed") == 4
    assert max(map(len, result.out.splitlines())) <= 80


def test_a_worse_bundle_fails_with_7_and_one_document(shared_place: Workplace, first: Path, second: Path) -> None:
    gates = ("--gate", "accuracy=-0.5%", "--gate", "p50=+5%", "--gate", "size=+0%")
    result = shared_place.run("compare", first, second, *gates, "--json")
    assert result.code == 7
    assert [gate["passed"] for gate in result.document["gates"]] == [False, False, True]
    pair = result.document["variants"][0]
    assert pair["default"]
    assert pair["latency"]["p50"]["ratio"] == pytest.approx(2.0, rel=0.01)
    assert pair["latency"]["p50"]["verdict"] == "slower"
    assert "2 of 3 gates were not met" in result.err


def test_markdown_is_a_table_that_says_what_failed(shared_place: Workplace, first: Path, second: Path) -> None:
    result = shared_place.run("compare", first, second, "--gate", "p50=+5%", "--format", "md")
    assert result.code == 7
    assert "| p50 ms |" in result.out
    assert "FAILED" in result.out


def test_profiles_compare_as_files_too(shared_place: Workplace, first: Path, second: Path, tmp_path: Path) -> None:
    (mine,), (theirs,) = (sorted((bundle / "profiles").iterdir()) for bundle in (first, second))
    inside = shared_place.run("compare", mine, theirs, "--json")
    assert inside.code == 0, inside.err
    alone = Path(shutil.copy(theirs, tmp_path / "alone.json"))
    document = shared_place.run("compare", mine, alone, "--json").document
    assert document["variants"][0]["latency"]["p50"]["verdict"] == "slower"
    assert document["variants"][0]["size"]["a"] is None
    refused(shared_place.run("compare", mine, alone, "--gate", "size=+0%"), 3, "cannot be gated", "profile alone")


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
