"""A bundle on a runtime that stands in for its main one, and does not compute every variant right."""

from pathlib import Path
from typing import Any

import pytest
from lone_bundle import (
    change_samples,
    infer,
    manifest_of,
    profile_of,
    report,
    reseal,
    run,
    save_npz,
    variant,
    wrong_value,
)

from exporter.artifacts import RuntimeNeed
from exporter.bundle.readme import readme_text
from targets.runner import tflite_runtime

WHY = "its kernels are of another kind"
WRONG = f"onnxruntime does not compute int8 right: {WHY}"


@pytest.fixture
def elsewhere(bundle: Path) -> Path:
    """Made for another runtime; of the one that is here int8 is known to go wrong."""
    known: dict[str, Any] = {"not_on": {"onnxruntime": WHY}}
    main = RuntimeNeed(
        name="main-runtime",
        minimum="1",
        requirements=("main-runtime",),
        alternatives={"onnxruntime": ("onnxruntime",)},
    )
    reseal(bundle, runtime=main, variants=(variant("fp32"), variant("int8", **known), variant("third")))
    return bundle


def test_a_variant_that_is_wrong_on_the_runtime_here_is_not_run(elsewhere: Path) -> None:
    assert infer(elsewhere)[0] == "third"
    assert [tested["variant"] for tested in report(elsewhere, 0)["variants"]] == ["fp32", "third"]
    given = save_npz(elsewhere.parent / "none.npz")
    for action in (["--input", given, "--output", "y.npz"], ["--self-test"], ["--bench"]):
        done = run(elsewhere, *action, "--variant", "int8")
        assert done.returncode == 4
        assert WRONG in done.stderr
        assert "requirements-main-runtime.txt" in done.stderr
    readme = readme_text(manifest_of(elsewhere))
    assert "requirements-onnxruntime.txt  # instead of it, without `int8`\n" in readme
    assert f"`int8` does not run on onnxruntime: {WHY}." in readme
    about = run(elsewhere).stdout
    assert "int8: int8, not on onnxruntime" in about
    assert f"third runs by default: {WRONG}" in about


def test_what_such_a_runtime_computes_wrong_keeps_nothing_else_from_being_measured(elsewhere: Path) -> None:
    change_samples(elsewhere, lambda arrays: arrays["2/expected/third/y"].__iadd__(0.5))
    profile = profile_of(elsewhere)
    assert [one.variant for one in profile.variants] == ["fp32"]
    assert profile.not_measured["int8"] == WRONG
    assert profile.not_measured["third"].startswith("it fails its self-test on onnxruntime: case 2, output y: ")


def test_where_nothing_passes_nothing_is_measured(elsewhere: Path) -> None:
    reseal(elsewhere, variants=manifest_of(elsewhere).variants[:2])
    change_samples(elsewhere, lambda arrays: arrays["2/expected/fp32/y"].__iadd__(0.5))
    done = run(elsewhere, "--bench")
    assert done.returncode == 6
    assert done.stderr.endswith("error: nothing was measured, because the self-test failed\n")


def test_on_the_main_runtime_a_failure_still_stops_everything(bundle: Path) -> None:
    change_samples(bundle, wrong_value)
    assert run(bundle, "--bench").returncode == 6


def test_the_tflite_runtime_that_is_asked_for_is_the_one_that_is_taken() -> None:
    before = tflite_runtime._candidates()
    try:
        tflite_runtime.ask_for("tflite-runtime")
        with pytest.raises(tflite_runtime.RuntimeMissing, match=r"^tflite-runtime does not work here: ") as missing:
            tflite_runtime.version()
        assert missing.value.command.endswith("pip install tflite-runtime")
        tflite_runtime.ask_for("ai-edge-litert")
        assert tflite_runtime._library().name == "ai-edge-litert"
    finally:
        tflite_runtime._asked.clear()
        tflite_runtime._library.cache_clear()
    assert tflite_runtime._candidates() == before
