"""The self-test: outputs against the expected ones, and which variants are tested on which CPU."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from lone_bundle import ABSENT, change_samples, manifest_of, profile_of, report, reseal, run, variant, wrong_value

from exporter.artifacts import (
    Choice,
    RuntimeNeed,
    Tolerance,
)
from exporter.tables import runtimes_text
from targets.runner import choice, host


def wrong_integer(arrays: dict[str, np.ndarray]) -> None:
    arrays["2/expected/int8/file"][1] += 1


def nan_expected(arrays: dict[str, np.ndarray]) -> None:
    arrays["2/expected/int8/y"][0, 0] = np.nan


def infinite_expected(arrays: dict[str, np.ndarray]) -> None:
    arrays["2/expected/int8/y"][0, 0] = np.inf


def wrong_shape(arrays: dict[str, np.ndarray]) -> None:
    arrays["2/expected/int8/y"] = arrays["2/expected/int8/y"][:1]


def wrong_dtype(arrays: dict[str, np.ndarray]) -> None:
    arrays["2/expected/int8/y"] = arrays["2/expected/int8/y"].astype(np.float64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (wrong_value, "case 2, output y: 1 of 9 values beyond 0.0001 + 0 * |expected|; first at [1, 2]"),
        (wrong_integer, "case 2, output file: 1 of 3 values beyond 0 "),
        (nan_expected, "case 2, output y: 1 of 9 values beyond 0.0001 "),
        (infinite_expected, "case 2, output y: 1 of 9 values beyond 0.0001 "),
        (wrong_shape, "case 2, output y: is float32[3, 3] instead of float32[1, 3]"),
        (wrong_dtype, "case 2, output y: is float32[3, 3] instead of float64[3, 3]"),
    ],
)
def test_an_output_other_than_expected_fails_that_variant_alone(
    bundle: Path, change: Callable[[dict[str, np.ndarray]], None], words: str
) -> None:
    change_samples(bundle, change)
    tested = {item["variant"]: item for item in report(bundle, 6)["variants"]}
    assert [name for name, item in tested.items() if not item["passed"]] == ["int8"]
    assert len(tested["int8"]["problems"]) == 1
    assert words in tested["int8"]["problems"][0]


def test_an_error_within_tolerance_passes_and_is_reported_in_quanta(bundle: Path) -> None:
    change_samples(bundle, wrong_value)
    loose = {"y": Tolerance(atol=0.6, quantum=0.25), "file": Tolerance(atol=0)}
    manifest = manifest_of(bundle)
    changed = [msgspec.structs.replace(item, tolerances=loose) for item in manifest.variants]
    reseal(bundle, variants=tuple(changed))
    tested = report(bundle, 0, "--variant", "int8")["variants"][0]
    assert tested["max_abs_error"] == pytest.approx(0.5, abs=1e-4)
    assert tested["max_quanta"] == pytest.approx(2, abs=1e-3)
    assert "(2 quanta)" in run(bundle, "--self-test", "--variant", "int8").stdout


def test_samples_that_lack_a_case_fail(bundle: Path) -> None:
    change_samples(bundle, lambda arrays: arrays.pop("1/expected/int8/y"))
    tested = {item["variant"]: item for item in report(bundle, 6)["variants"]}
    assert tested["int8"]["problems"] == ["samples.npz lacks 1/expected/int8/y"]


def test_pickled_samples_are_refused(bundle: Path) -> None:
    def pickled(arrays: dict[str, np.ndarray]) -> None:
        arrays["0/inputs/x"] = np.array([{}], dtype=object)

    change_samples(bundle, pickled)
    assert "allow_pickle" in report(bundle, 6)["variants"][0]["problems"][0]


def test_samples_that_are_no_archive_fail(bundle: Path) -> None:
    (bundle / "samples.npz").write_bytes(b"not a zip file")
    reseal(bundle)
    assert "samples.npz cannot be read" in report(bundle, 6)["variants"][0]["problems"][0]


def test_no_samples_is_a_failure_and_not_a_pass(bundle: Path) -> None:
    reseal(bundle, samples=0)
    assert "nothing was tested" in report(bundle, 6)["variants"][0]["problems"][0]


def test_a_model_that_the_runtime_refuses_fails_with_its_words(bundle: Path) -> None:
    (bundle / "variants/int8/model.onnx").write_bytes(b"no model")
    reseal(bundle)
    tested = {item["variant"]: item for item in report(bundle, 6)["variants"]}
    assert tested["int8"]["problems"][0].startswith("variants/int8/model.onnx cannot be opened: ")
    assert tested["fp32"]["passed"] is True


def test_a_failing_variant_says_which_required_feature_the_cpu_lacks(bundle: Path) -> None:
    change_samples(bundle, wrong_value)
    reseal(bundle, variants=(variant("fp32"), variant("int8", requires=(ABSENT,)), variant("third")))
    tested = {item["variant"]: item for item in report(bundle, 6, "--variant", "int8")["variants"]}
    assert tested["int8"]["problems"][-1] == f"this CPU does not show {ABSENT}, which int8 requires"


def test_variants_made_for_other_cpus_are_neither_tested_nor_measured_and_that_is_said(bundle: Path) -> None:
    reseal(bundle, variants=(variant("fp32"), variant("int8", requires=(ABSENT,)), variant("third")))
    tested = report(bundle, 0)
    assert [item["variant"] for item in tested["variants"]] == ["fp32", "third"]
    assert tested["skipped"] == [f"this CPU does not show {ABSENT}, which int8 requires"]
    done = run(bundle, "--bench", "--json", "--min-samples", "20", "--min-seconds", "0", "--max-seconds", "1")
    assert done.returncode == 0, done.stderr
    assert f"not run here: this CPU does not show {ABSENT}, which int8 requires" in done.stderr
    assert [item["variant"] for item in json.loads(done.stdout)["variants"]] == ["fp32", "third"]


def test_a_variant_whose_runtime_is_not_installed_is_left_out_and_another_one_runs(bundle: Path) -> None:
    other = RuntimeNeed(name="absentvino", minimum="1.0", requirements=("absentvino>=1",))
    (bundle / "runtime_absentvino.py").write_text("class RuntimeMissing(Exception):\n    command = 'x'\n"
        "def version():\n    raise RuntimeMissing('absent')\n")  # fmt: skip
    elsewhere = variant("int8", runtime="absentvino")
    reseal(bundle, variants=(variant("fp32"), elsewhere, variant("third")), other_runtimes=(other,))
    why = "absentvino is not installed, which int8 runs on (requirements-absentvino.txt brings it)"
    assert report(bundle, 0)["skipped"] == [why]
    assert json.loads(run(bundle, "--json").stdout)["here"] == {"variant": "third", "why": why, "elsewhere": None}


def second_runtime(bundle: Path) -> None:
    """Makes int8 and third run on another runtime, which is onnxruntime by another name."""
    text = (bundle / "runtime.py").read_text().replace('NAME = "onnxruntime"', 'NAME = "numpy"')
    (bundle / "runtime_numpy.py").write_text(text)
    other = RuntimeNeed(name="numpy", minimum="1.0", requirements=("numpy>=1",))
    both = (variant("int8", runtime="numpy"), variant("third", runtime="numpy"))
    reseal(bundle, variants=(variant("fp32"), *both), other_runtimes=(other,))


def test_one_of_two_runtimes_is_tested_and_measured_without_the_other(bundle: Path) -> None:
    second_runtime(bundle)
    (bundle / "runtime.py").write_text("raise ImportError('the main runtime is not here')")
    reseal(bundle)
    found = report(bundle, 0, "--runtime", "numpy")
    assert [one["variant"] for one in found["variants"]] == ["int8", "third"]
    assert found["runtime"]["name"] == "numpy"
    profile = profile_of(bundle, "--runtime", "numpy")
    assert [one.variant for one in profile.variants] == ["int8", "third"]
    assert [(one.variant, one.baseline) for one in profile.comparisons] == [("third", "int8")]


def test_all_runtimes_that_were_tested_and_measured_are_named(bundle: Path) -> None:
    second_runtime(bundle)
    last = run(bundle, "--self-test").stdout.splitlines()[-1]
    version = profile_of(bundle).runtime.version
    assert last == f"self-test passed on onnxruntime {version}, CPUExecutionProvider and on numpy {version}"
    assert "numpy" not in run(bundle, "--self-test", "--variant", "fp32").stdout
    assert run(bundle, "--self-test", "--variant", "int8").stdout.splitlines()[-1] == (
        f"self-test passed on numpy {version}"
    )
    measured = profile_of(bundle)
    assert measured.runtime.others == {"numpy": version}
    assert profile_of(bundle, "--variant", "fp32").runtime.others == {}
    manifest = manifest_of(bundle)
    assert runtimes_text(measured, manifest) == f"onnxruntime {version} and numpy {version}"
    assert runtimes_text(profile_of(bundle, "--variant", "int8"), manifest) == f"numpy {version}"
    assert f"CPUExecutionProvider, numpy {version}, numpy" in run(
        bundle, "--bench", "--min-samples", "20", "--min-seconds", "0", "--max-seconds", "1"
    ).stdout.replace("\n" + " " * 9, " ")


def test_the_main_runtime_alone_runs_its_own_variants(bundle: Path) -> None:
    second_runtime(bundle)
    assert [one["variant"] for one in report(bundle, 0, "--runtime", "onnxruntime")["variants"]] == ["fp32"]


def test_a_runtime_that_the_bundle_does_not_run_on_is_refused_with_those_that_it_does(bundle: Path) -> None:
    second_runtime(bundle)
    done = run(bundle, "--bench", "--runtime", "openvino")
    assert done.returncode == 2
    assert "does not run on 'openvino'; it runs on onnxruntime, numpy" in done.stderr
    assert "--runtime goes with" in run(bundle, "--runtime", "numpy").stderr


def test_an_alternative_that_is_not_what_works_here_is_missing(bundle: Path) -> None:
    main = manifest_of(bundle).runtime
    reseal(bundle, runtime=msgspec.structs.replace(main, alternatives={"other-runtime": ("other-runtime==1",)}))
    done = run(bundle, "--self-test", "--runtime", "other-runtime")
    assert done.returncode == 4
    assert "onnxruntime" in done.stderr
    assert "requirements-other-runtime.txt" in done.stderr


def test_a_bundle_with_no_variant_for_this_cpu_says_so(bundle: Path) -> None:
    other = {"requires": (ABSENT,)}
    reseal(bundle, variants=(variant("fp32", **other), variant("int8", **other), variant("third", **other)))
    done = run(bundle, "--self-test")
    assert done.returncode == 4
    assert "no variant of this bundle is made for this CPU" in done.stderr


@pytest.mark.skipif(not host.cpu_features(), reason="this system does not tell what its CPU can do")
def test_a_requirement_is_met_by_any_of_its_alternatives(bundle: Path) -> None:
    either = variant("int8", requires=(f"{ABSENT}|{host.cpu_features()[0]}",))
    reseal(bundle, variants=(variant("fp32"), either, variant("third")))
    assert len(report(bundle, 0)["variants"]) == 3


def test_where_the_choice_cannot_run_the_fastest_measured_variant_does_be_it_float(bundle: Path) -> None:
    second_runtime(bundle)
    other = RuntimeNeed(name="numpy", minimum="99.0", requirements=())
    best = msgspec.structs.replace(variant("third"), runtime="numpy")
    for measured, taken in (
        (("third", "fp32", "int8"), "fp32"),
        (("third", "int8", "fp32"), "int8"),
        (("third",), "int8"),
        ((), "int8"),
    ):
        choice = Choice(variant="third", why="it was the fastest", measured=measured)
        variants = (variant("fp32"), variant("int8"), best)
        reseal(bundle, variants=variants, other_runtimes=(other,), choice=choice)
        here = json.loads(run(bundle, "--json").stdout)["here"]
        assert here["variant"] == taken
        assert f"numpy {np.__version__} is older than 99.0, which third runs on" in here["why"]


@pytest.mark.skipif(not host.cpu_features(), reason="this system does not tell what its CPU can do")
def test_a_variant_made_for_this_cpu_replaces_the_choice_unless_both_were_measured(bundle: Path) -> None:
    shown = host.cpu_features()[0]
    special = variant("third", requires=(f"{ABSENT}|{shown}",), specialises="int8")
    reseal(bundle, variants=(variant("fp32"), variant("int8"), special))
    answer = json.loads(run(bundle, "--json").stdout)["here"]
    assert answer == {
        "variant": "third", "why": f"this CPU shows {shown}, which it is made for in place of int8", "elsewhere": None
    }  # fmt: skip
    choice = Choice(variant="int8", why="it is faster here", measured=("fp32", "int8", "third"))
    reseal(bundle, variants=(variant("fp32"), variant("int8"), special), choice=choice)
    assert json.loads(run(bundle, "--json").stdout)["here"]["variant"] == "int8"
    absent = variant("third", requires=(ABSENT,), specialises="int8")
    reseal(bundle, variants=(variant("fp32"), variant("int8"), absent))
    assert json.loads(run(bundle, "--json").stdout)["here"]["variant"] == "int8"


HERE_FEATURES = host.cpu_features()
WIDE = [feature for feature in ("avx512_vnni", "avx_vnni", "asimddp") if feature in HERE_FEATURES]
OTHER_CPU = ["avx2"] if WIDE else ["avx2", "avx512_vnni"]


@pytest.mark.skipif(not HERE_FEATURES, reason="this system does not tell what its CPU can do")
def test_a_failing_int8_variant_says_when_the_cpus_saturate_differently(bundle: Path) -> None:
    change_samples(bundle, wrong_value)
    reseal(bundle, made_on={"features": OTHER_CPU})
    tested = {item["variant"]: item for item in report(bundle, 6)["variants"]}
    assert len(tested["int8"]["problems"]) == 2
    words = tested["int8"]["problems"][1]
    made, runs = ("without", "with") if WIDE else ("with avx512_vnni", "without")
    assert words.startswith(f"int8 was made on a CPU {made}")
    assert f" and runs on one {runs} " in words
    assert words.endswith("; rebuild with `--set quantize.reduce_range=true`")
    reseal(bundle, made_on={"features": list(HERE_FEATURES)})
    tested = {item["variant"]: item for item in report(bundle, 6)["variants"]}
    assert len(tested["int8"]["problems"]) == 1


def test_saturation_is_not_blamed_when_no_value_was_wrong(bundle: Path) -> None:
    change_samples(bundle, lambda arrays: arrays.pop("1/expected/int8/y"))
    reseal(bundle, made_on={"features": OTHER_CPU})
    tested = {item["variant"]: item for item in report(bundle, 6)["variants"]}
    assert tested["int8"]["problems"] == ["samples.npz lacks 1/expected/int8/y"]


@pytest.mark.parametrize(
    ("there", "here", "speaks"),
    [
        (["avx2", "avx512_vnni"], ["avx2"], True),
        (["avx_vnni"], ["avx2"], True),
        (["asimddp"], ["asimd"], True),
        (["avx2"], ["avx2", "avx_vnni"], True),
        (["avx512_vnni"], ["avx_vnni"], False),
        (["avx512_vnni"], ["asimddp"], False),
        (["avx2"], ["avx2"], False),
        ([], ["avx2"], False),
        (["avx512_vnni"], [], False),
        (None, ["avx2"], False),
    ],
)
def test_cpus_saturate_differently_where_one_alone_sums_in_32_bits(
    there: list[str] | None, here: list[str], speaks: bool
) -> None:
    manifest = {} if there is None else {"made_on": {"features": there}}
    int8 = {"name": "int8", "precision": "int8", "scheme": {"reduce_range": False}}
    assert (choice.saturation(int8, manifest, here) is not None) is speaks
    for other in ({**int8, "precision": "float32"}, {**int8, "scheme": {"reduce_range": True}}):
        assert choice.saturation(other, manifest, here) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "files": 3}'])
def test_a_manifest_that_is_none_fails_with_one_line(bundle: Path, content: str) -> None:
    (bundle / "manifest.json").write_text(content)
    done = run(bundle, "--self-test")
    assert done.returncode == 6
    assert done.stderr.startswith("error: manifest.json ")
    assert len(done.stderr.splitlines()) == 1
