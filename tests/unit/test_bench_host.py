import subprocess
import sys
from pathlib import Path

from targets.runner import host

X86 = """\
processor\t: 0
model name\t: Some CPU @ 3.00GHz
cpu MHz\t\t: 2445.406
flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni hypervisor
vmx flags\t: avx2_is_not_here

processor\t: 1
model name\t: Some CPU @ 3.00GHz
cpu MHz\t\t: 1200.000
flags\t\t: fpu sse4_2 avx2 avx512f hypervisor
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 fphp asimdhp asimddp i8mm

Model\t\t: Raspberry Pi 5 Model B
"""


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_features_are_those_that_every_core_has_and_only_relevant_ones(tmp_path: Path) -> None:
    assert host.cpu_features(tree(tmp_path / "x86", cpuinfo=X86)) == ("avx2", "avx512f", "sse4_2")
    arm = host.cpu_features(tree(tmp_path / "arm", cpuinfo=ARM))
    assert arm == ("asimd", "asimddp", "asimdhp", "fphp", "i8mm")


def test_host_facts_come_from_proc_and_sys(tmp_path: Path) -> None:
    proc = tree(tmp_path / "proc", cpuinfo=ARM, meminfo="MemTotal:        1024 kB\nMemFree: 1 kB\n")
    cpufreq = "devices__system__cpu__cpu{}__cpufreq__scaling_governor"
    sysfs = tree(tmp_path / "sys", **{cpufreq.format(0): "ondemand\n", cpufreq.format(1): "performance\n"})
    facts = host.host_facts(proc, sysfs)
    assert facts["cpu"] == "Raspberry Pi 5 Model B"
    assert facts["memory_bytes"] == 1024 * 1024
    assert facts["governor"] == "ondemand+performance"


def test_host_state_reads_load_frequencies_in_cpu_order_and_the_hottest_cpu_sensor(tmp_path: Path) -> None:
    proc = tree(tmp_path / "proc", loadavg="0.50 0.25 0.10 1/200 3\n", cpuinfo=X86)
    cpufreq = "devices__system__cpu__cpu{}__cpufreq__scaling_cur_freq"
    files = {cpufreq.format(cpu): f"{1000000 + cpu}\n" for cpu in (0, 2, 10)}
    zones = [("cpu-thermal", "51000"), ("battery", "90000"), ("x86_pkg_temp", "55500")]
    for index, (kind, value) in enumerate(zones):
        files[f"class__thermal__thermal_zone{index}__type"] = kind
        files[f"class__thermal__thermal_zone{index}__temp"] = value
    assert host.host_state(proc, tree(tmp_path / "sys", **files)) == {
        "load_average": [0.5, 0.25, 0.1],
        "frequency_mhz": [1000.0, 1000.002, 1000.01],
        "temperature_c": 55.5,
        "governor": None,
        "throttling": None,
        "throttle_events": None,
    }
    assert host.host_state(proc, tmp_path / "empty")["frequency_mhz"] == [2445.406, 1200.0]


def test_host_state_tells_what_holds_the_cpu_back(tmp_path: Path) -> None:
    firmware = "devices__platform__soc__soc:firmware__get_throttled"
    cpu = "devices__system__cpu__cpu0__"
    quiet = {firmware: "50000\n", f"{cpu}cpufreq__scaling_max_freq": "1800000\n"}
    quiet[f"{cpu}cpufreq__cpuinfo_max_freq"] = "1800000\n"
    assert host.host_state(tmp_path, tree(tmp_path / "quiet", **quiet))["throttling"] == []
    held = {
        firmware: "50005\n",
        f"{cpu}cpufreq__scaling_max_freq": "1500000\n",
        f"{cpu}cpufreq__cpuinfo_max_freq": "1800000\n",
        f"{cpu}thermal_throttle__core_throttle_count": "3\n",
        f"{cpu}thermal_throttle__package_throttle_count": "4\n",
        "class__thermal__cooling_device0__type": "cpufreq-cpu0\n",
        "class__thermal__cooling_device0__cur_state": "2\n",
        "class__thermal__cooling_device1__type": "pwm-fan\n",
        "class__thermal__cooling_device1__cur_state": "4\n",
    }
    state = host.host_state(tmp_path, tree(tmp_path / "held", **held))
    assert state["throttle_events"] == 7
    assert state["throttling"] == [
        "firmware: under-voltage",
        "firmware: throttled",
        "cooling: cpufreq-cpu0 at level 2",
        "limited to 1500 of 1800 MHz",
    ]


def test_what_the_system_does_not_tell_is_none(tmp_path: Path) -> None:
    facts, state = host.host_facts(tmp_path, tmp_path), host.host_state(tmp_path, tmp_path)
    assert facts["memory_bytes"] is None
    assert facts["governor"] is None
    assert facts["features"] == []
    assert facts["cpu"]
    assert set(state) == {
        "load_average", "frequency_mhz", "temperature_c", "governor", "throttling", "throttle_events"
    }  # fmt: skip
    assert set(state.values()) == {None}
    assert host.busy_seconds(tmp_path) is None


def test_other_work_is_all_work_less_our_own_and_unknown_over_short_times() -> None:
    assert host.busy_others((10.0, 100.0, 5.0), (12.0, 103.0, 6.0)) == 1.0
    assert host.busy_others((10.0, 100.0, 5.0), (12.0, 101.0, 7.0)) == 0.0
    assert host.busy_others((10.0, 100.0, 5.0), (10.1, 100.1, 5.1)) is None
    assert host.busy_others(None, None) is None


def test_peak_memory_is_at_least_what_is_held() -> None:
    held = bytearray(b"x" * 50_000_000)
    peak = host.peak_rss_bytes()
    assert peak is None or peak >= len(held)


def test_a_large_parent_is_not_charged_to_the_process_it_starts() -> None:
    held = bytearray(b"x" * 300_000_000)
    code = "import host; print(host.peak_rss_bytes())"
    folder = Path(host.__file__).parent
    command = [sys.executable, "-B", "-c", code]
    child = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "None" or int(child.stdout) < len(held) / 2
