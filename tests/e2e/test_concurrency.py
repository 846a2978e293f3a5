"""Builds at once share their work: each step is built once, and each bundle published once."""

from __future__ import annotations

import re
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest
from support import COMMAND, QUICK, Result, Workplace

from exporter.bundle import check_bundle

STEP = re.compile(r"(?P<step>.+): (?P<how>cached|\d+\.\d s)(?: \(.*\))?")


@pytest.fixture
def model(place: Workplace) -> Workplace:
    place.onnx()
    place.quadrants()
    return place


def start(place: Workplace, *flags: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "build", "model.onnx", "--calib", "calib.npz", "--progress", "plain", *QUICK, *flags]
    return subprocess.Popen(
        command,
        cwd=place.folder,
        env=place.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def at_once(place: Workplace, *flags: tuple[str, ...]) -> list[Result]:
    """Several builds, started together."""
    processes = [start(place, *own) for own in flags]
    results = []
    for process in processes:
        out, error = process.communicate(timeout=200)
        results.append(Result(code=process.returncode, out=out, err=error))
    return results


def steps(result: Result) -> dict[str, bool]:
    """Steps by name, and whether this process built them."""
    found = [STEP.fullmatch(line) for line in result.err.splitlines()]
    return {match["step"]: match["how"] != "cached" for match in found if match}


def entries(place: Workplace) -> Counter[str]:
    return Counter(path.parent.name for path in (place.cache / "v1").glob("*/*"))


def test_two_builds_of_one_plan_build_each_step_once_and_publish_one_bundle(model: Workplace) -> None:
    # What a race finds decides which steps come after it.
    no_race = ("--set", "quantize.try_products=false")
    results = at_once(model, no_race, no_race)
    assert [result.code for result in results] == [0, 0], [result.err for result in results]
    first, second = (steps(result) for result in results)
    measuring = "cpu: measure latency"
    assert len(first) >= 9, results[0].err
    assert set(first) - {measuring} == set(second) - {measuring}
    built = Counter(step for seen in (first, second) for step, own in seen.items() if own)
    assert built == Counter(first.keys() | second.keys()), "each step is built in exactly one of both"
    (bundle,) = model.bundles()
    check_bundle(bundle)
    for result in results:
        assert f"bundle: {bundle}" in result.out
    stored = first.keys() - {measuring, "cpu: publish"}
    assert sum(entries(model).values()) == len(stored), entries(model)
    assert not list((model.cache / "tmp").iterdir())


def test_two_plans_at_once_share_the_steps_that_they_have_in_common(model: Workplace) -> None:
    results = at_once(model, ("--no-profile",), ("--no-profile", "--set", "quantize.observer=percentile"))
    assert [result.code for result in results] == [0, 0], [result.err for result in results]
    first, second = (steps(result) for result in results)
    shared = {
        "read the model file",
        "check data",
        "take the ONNX file",
        "run the trained model",
        "cpu: accuracy of fp32",
    }
    assert shared <= first.keys() & second.keys()
    assert all(first[step] != second[step] for step in shared)
    assert len(model.bundles()) == 2
    for bundle in model.bundles():
        check_bundle(bundle)
    assert entries(model)["quantize"] == 2
    assert entries(model)["adopt"] == 1


def test_one_plan_into_two_folders_is_built_once_and_published_twice(model: Workplace) -> None:
    results = at_once(model, ("--no-profile", "--output", "one"), ("--no-profile", "--output", "two"))
    assert [result.code for result in results] == [0, 0], [result.err for result in results]
    (one,), (two,) = (list((model / name).iterdir()) for name in ("one", "two"))
    assert one.name == two.name
    assert check_bundle(one) == check_bundle(two)
    assert entries(model)["bundle"] == 1


def test_cleaning_the_store_of_what_is_old_disturbs_no_build(model: Workplace) -> None:
    from exporter.store import Store

    process = start(model, "--no-profile")
    done = threading.Event()
    removed: list[object] = []

    def clean() -> None:
        while not done.is_set():
            removed.extend(Store(model.cache).collect(older_than_seconds=3600))
            done.wait(0.01)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    out, error = process.communicate(timeout=200)
    done.set()
    cleaner.join()
    assert process.returncode == 0, error
    assert removed == []
    assert Path(out.rpartition("bundle: ")[2].splitlines()[0]).is_dir()
