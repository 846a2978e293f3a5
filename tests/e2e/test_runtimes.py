"""`profile --runtime`: one of a bundle's runtimes, alone, in an environment of its own."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import pytest
from bundles import slower
from support import QUICK, Result, Workplace, refused

from exporter.artifacts import NotMeasured, Profile
from exporter.bundle import read_manifest, read_profiles
from exporter.errors import BundleError, MissingError
from exporter.pipeline import beside
from exporter.pipeline.steps import RunLog, Steps
from exporter.plan_types import ProfilePlan
from exporter.registry import load_target
from exporter.store import Store
from exporter.target_api import Target

MOBILE: Target = load_target("mobile")
MISSING = MOBILE.missing(MOBILE.options_type())
SHORT = ("--max-seconds", "0.5", "--min-seconds", "0.02")
BOTH = 'targets.cpu.runtimes=["onnxruntime", "openvino"]'


@pytest.fixture(scope="module")
def bundle(ready: Workplace) -> Path:
    return ready.built("model.onnx", "--calib", "calib.npz", "--target", "cpu")[1]


def contents(bundle: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def test_an_unknown_runtime_is_refused_with_those_that_there_are(ready: Workplace, bundle: Path) -> None:
    message = refused(ready.run("profile", bundle, "--runtime", "onnx-runtime"), 3, "did you mean 'onnxruntime'?")
    assert "it runs on: onnxruntime" in message


@pytest.mark.parametrize(
    "flags", [("--import", "x.json"), ("--device", "ssh://pi@board"), ("--device", "emulated:pi5")]
)
def test_a_runtime_is_chosen_on_this_machine_only(ready: Workplace, bundle: Path, flags: tuple[str, str]) -> None:
    refused(ready.run("profile", bundle, "--runtime", "onnxruntime", *flags), 2, "--runtime")


def test_without_an_index_the_message_is_pips_and_the_bundle_stays_as_it_was(
    ready: Workplace, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    before = contents(bundle)
    result = ready.run("profile", bundle, "--runtime", "onnxruntime")
    refused(result, 4, "could not install onnxruntime>=", "ERROR: No matching distribution found for onnxruntime")
    assert contents(bundle) == before


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(util.find_spec("openvino") is None, reason="openvino is not installed")
def test_a_runtime_beside_the_main_one_is_measured_without_it_and_chooses_no_default(ready: Workplace) -> None:
    flags = ("model.onnx", "--calib", "calib.npz", "--target", "cpu", "--set", BOTH, "--output", "both")
    _, bundle = ready.built(*flags, "--no-profile")
    result = ready.run("profile", bundle, "--runtime", "openvino", *SHORT, "--json")
    assert result.code == 0, result.err
    profile = result.document["profile"]
    assert (profile["runtime"]["name"], profile["runtime"]["others"]) == ("openvino", {})
    assert [one["variant"] for one in profile["variants"]] == ["fp32-openvino", "int8-openvino"]
    assert [one["baseline"] for one in profile["comparisons"]] == ["fp32-openvino"]
    assert result.document["fastest_here"] is None
    again = ready.run("profile", bundle, "--runtime", "openvino", "--set-default")
    refused(again, 2, "chooses among all variants")


@pytest.fixture(scope="module")
def phone(ready: Workplace) -> list[Result]:
    """A build for both runtimes of phones where nothing can be installed, then where it can, then once more."""
    if MISSING is not None:
        pytest.skip("the extra `mobile` is missing")
    ready.factory()
    flags = ("build", "model.py:make", "--calib", "calib.npz", "--target", "mobile", "--progress", "json", *QUICK)
    both = ("--set", 'targets.mobile.runtimes=["litert", "tflite-runtime"]', "--output", "phone")
    with pytest.MonkeyPatch.context() as offline:
        offline.setenv("PIP_NO_INDEX", "1")
        first = ready.run(*flags, *both)
    return [first, ready.run(*flags, *both), ready.run(*flags, *both, "--json")]


class TestPhones:
    pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

    def test_a_second_runtime_that_cannot_be_had_is_told_and_stops_nothing(self, phone: list[Result]) -> None:
        assert phone[0].code == 0, phone[0].err
        words = "latency on tflite-runtime: not measured, could not install tflite-runtime==2.14.0"
        assert words in phone[0].out
        assert "--runtime tflite-runtime` measures it" in phone[0].out

    def test_both_runtimes_are_in_the_table_and_the_default_follows_the_main_one(self, phone: list[Result]) -> None:
        assert phone[1].code == 0, phone[1].err
        for words in ("latency in ms: ai-edge-litert 2.3", "latency in ms: tflite-runtime 2.14.0"):
            assert words in phone[1].out
        assert "tflite-runtime against ai-edge-litert, the same files in processes in turn: fp32 " in phone[1].out
        assert "tflite-runtime" not in next(line for line in phone[1].out.splitlines() if line.startswith("default:"))

    def test_what_was_measured_on_both_is_not_measured_again(self, phone: list[Result]) -> None:
        assert phone[2].rebuilt == set()
        (target,) = phone[2].document["targets"]
        other = target["beside"]["tflite-runtime"]
        assert other["measured"]
        assert other["runtime"]["version"] == "2.14.0"
        assert other["runtime"]["numpy"].startswith("1.")
        assert [one["baseline"] for one in other["across"]] == ["ai-edge-litert"] * 2

    def test_each_runtime_tells_how_much_of_each_file_its_delegate_computes(self, phone: list[Result]) -> None:
        (target,) = phone[2].document["targets"]
        here, there = (
            {one["variant"]: one["delegation"] for one in profile["variants"]}
            for profile in (target["profile"], target["beside"]["tflite-runtime"])
        )
        assert {one["delegate"] for one in (*here.values(), *there.values())} == {"XNNPACK"}
        assert all(one["operators"] == one["of"] > 3 for one in here.values())
        # Its XNNPACK is years older, and leaves what the newer quantizer writes to the runtime's own kernels.
        assert there["fp32"]["operators"] == there["fp32"]["of"] == here["fp32"]["of"]
        assert there["int8"]["operators"] < there["int8"]["of"] == here["int8"]["of"]
        assert "operators that XNNPACK computes: fp32 " in phone[1].out

    def test_the_older_one_alone_is_measured_in_the_environment_that_is_there(
        self, phone: list[Result], ready: Workplace
    ) -> None:
        bundle = phone[2].document["targets"][0]["bundle"]
        result = ready.run("profile", bundle, "--runtime", "tflite-runtime", *SHORT, "--progress", "json")
        assert result.code == 0, result.err
        (made,) = [one for one in result.events if one.get("step") == "environment for tflite-runtime"][1:]
        assert made["cached"]
        assert ready.run("verify", bundle).code == 0


def benches(monkeypatch: pytest.MonkeyPatch, profile: Profile, *factors: float | None) -> None:
    """Measurements that give the profile so many times as slow, one after the other; None is a failing self-test."""
    left = iter(factors)

    def bench(*arguments: object) -> Profile:
        factor = next(left)
        if factor is None:
            raise BundleError("the bundle's benchmark failed", why="1 of 4 values beyond")
        return slower(profile, factor)

    monkeypatch.setattr(beside, "run_bench", bench)


@pytest.fixture
def first(bundle: Path) -> Profile:
    (profile,) = read_profiles(bundle, read_manifest(bundle)).values()
    return profile


def measured(bundle: Path, first: Profile, ready: Workplace, *pythons: str | MissingError) -> list[beside.Beside]:
    steps = Steps(Store(ready.cache), lambda event: None, RunLog(ready.cache / "logs"))
    named = {f"other{index}": python for index, python in enumerate(pythons)}
    return [*beside.measure_beside(bundle, read_manifest(bundle), first, named, ProfilePlan(), steps, bundle)]


def test_a_ratio_between_runtimes_is_no_surer_than_the_host(
    ready: Workplace, bundle: Path, first: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    benches(monkeypatch, first, 3.0, 1.25)
    (found,) = measured(bundle, first, ready, "python")
    assert isinstance(found.profile, Profile)
    for one in found.profile.across:
        assert one.ratio == pytest.approx(3.0, rel=0.01)
        assert one.widened_by >= 1.25
        assert one.low <= 3.0 / 1.24
        assert one.high >= 3.0 * 1.24
        assert one.verdict == "slower"
    assert found.profile.comparisons == first.comparisons


def test_a_runtime_on_which_the_self_test_fails_has_no_profile_and_others_have(
    ready: Workplace, bundle: Path, first: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    benches(monkeypatch, first, None, 2.0, 1.0)
    failed, fine = measured(bundle, first, ready, "python", "python")
    assert isinstance(failed.profile, NotMeasured)
    assert failed.profile.reason == "the bundle's benchmark failed"
    assert isinstance(fine.profile, Profile)


def test_where_no_environment_can_be_made_the_main_runtime_is_not_measured_again(
    ready: Workplace, bundle: Path, first: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    benches(monkeypatch, first)
    (found,) = measured(bundle, first, ready, MissingError("no environment for other0 can be made here"))
    assert isinstance(found.profile, NotMeasured)
    assert found.profile.command == f"edge-exporter profile {bundle} --runtime other0"
