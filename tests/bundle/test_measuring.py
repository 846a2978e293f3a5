"""The runner's benchmark: exactly a profile, measured as it was asked to."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from lone_bundle import QUICK, change_samples, profile_of, run, wrong_value


def test_bench_prints_exactly_a_profile(bundle: Path) -> None:
    profile = profile_of(bundle, "--seed", "5")
    assert profile.bundle_digest == "d" * 64
    assert profile.seal == ""
    assert profile.provenance == "native"
    assert profile.settings.seed == 5
    assert profile.settings.batch == 1
    assert profile.settings.affinity is None
    assert [entry.variant for entry in profile.variants] == ["fp32", "int8", "third"]
    for entry in profile.variants:
        assert len(entry.samples_ns) == entry.summary.count >= 30
        assert min(entry.load_ns, entry.first_ns, *entry.samples_ns) > 0
        assert set(entry.summary.percentiles) <= {"p90", "p95", "p99"}
        assert entry.peak_rss_bytes is None or entry.peak_rss_bytes > 10_000_000
    assert [(found.variant, found.baseline) for found in profile.comparisons] == [("int8", "fp32"), ("third", "fp32")]
    assert {found.pairs for found in profile.comparisons} == {profile.variants[0].summary.count}


def test_one_variant_alone_is_measured_without_comparison(bundle: Path) -> None:
    profile = profile_of(bundle, "--variant", "int8")
    assert [entry.variant for entry in profile.variants] == ["int8"]
    assert profile.comparisons == ()


def test_a_precision_that_was_not_reached_is_flagged(bundle: Path) -> None:
    profile = profile_of(bundle, "--ci-width", "0.000001", "--max-seconds", "0.2")
    assert any(flag.startswith("confidence interval wider than asked: ") for flag in profile.flags)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin processes")
def test_affinity_is_applied_and_recorded(bundle: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    assert profile_of(bundle, "--affinity", str(cpu), "--variant", "fp32").settings.affinity == (cpu,)
    done = run(bundle, "--bench", "--affinity", "0,4000")
    assert done.returncode == 3
    assert "--affinity 0,4000: the CPUs here are " in done.stderr


def test_the_most_frequent_batch_is_measured_where_there_is_no_single_sample(bundle: Path) -> None:
    def without_singles(arrays: dict[str, np.ndarray]) -> None:
        for name in [name for name in arrays if name.startswith(("0/", "1/"))]:
            arrays[name] = np.concatenate([arrays[name]] * 2)

    change_samples(bundle, without_singles)
    assert profile_of(bundle, "--variant", "fp32").settings.batch == 2


def test_people_get_a_table_of_80_columns(bundle: Path) -> None:
    done = run(bundle, "--bench", *QUICK)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith(("fp32 ", "int8 ", "third "))][:3] == [
        "fp32",
        "int8",
        "third",
    ]
    flowing = " ".join(done.stdout.split())
    assert re.search(r"int8 [a-z ]+ fp32: [\d.]+ of its time \(95 % interval [\d.]+-[\d.]+\)", flowing)


def test_nothing_is_measured_when_the_self_test_fails(bundle: Path) -> None:
    change_samples(bundle, wrong_value)
    done = run(bundle, "--bench", "--json", *QUICK)
    assert done.returncode == 6
    assert done.stdout == ""
    assert "case 2, output y" in done.stderr
    assert "nothing was measured" in done.stderr
