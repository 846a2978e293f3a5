"""Android devices through the `adb` command, played by a stand-in that answers as the real one does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import Result, Workplace, put_adb_on_path, refused

from exporter.bundle import read_manifest, read_profiles

MEASURED = ("--min-seconds", "0.02", "--max-seconds", "0.3")


@pytest.fixture(scope="module")
def bundle(ready: Workplace) -> Path:
    _, made = ready.built("model.onnx", "--calib", "calib.npz", "--no-profile")
    return made


@pytest.fixture(autouse=True)
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in on PATH, with one phone connected; gives the file that notes its calls."""
    put_adb_on_path(tmp_path, monkeypatch)
    return tmp_path / "calls"


def phone(ready: Workplace, at: Path, *arguments: str | Path, address: str = "adb:R58M", **keys: str) -> Result:
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"address": address, **keys}.items()]
    file = at / "devices.toml"
    file.write_text("\n".join(["schema = 1", "[devices.phone]", *lines]) + "\n")
    return ready.run(*arguments, "--devices", file)


def profiled(ready: Workplace, bundle: Path, at: Path, **keys: str) -> Result:
    home = str(at / "data" / "it's $HOME")
    return phone(ready, at, "profile", bundle, "--device", "phone", *MEASURED, **{"folder": home, **keys})


def test_a_bundle_is_measured_by_the_python_on_the_phone(ready, bundle, tmp_path, adb) -> None:
    result = profiled(ready, bundle, tmp_path, python=sys.executable)
    assert result.code == 0, result.err
    (profile,) = read_profiles(bundle, read_manifest(bundle)).values()
    assert (profile.device, profile.provenance, profile.self_test) == ("phone", "native", "passed")
    assert (tmp_path / "data" / "it's $HOME" / "lock").exists()
    calls = adb.read_text()
    assert calls.count("'-s', 'R58M', 'shell', '-T'") == 1


def test_check_tells_what_the_phones_python_sees(ready, tmp_path) -> None:
    result = phone(ready, tmp_path, "devices", "check", "phone", "--json", python=sys.executable)
    assert result.code == 0, result.err
    assert result.document["runtimes"]["onnxruntime"]
    assert result.document["folder"] == "/data/local/tmp/edge-exporter"


def test_check_without_python_tells_what_android_tells(ready, tmp_path) -> None:
    prop = tmp_path / "bin" / "getprop"
    prop.write_text(
        '#!/bin/sh\ncase "$1" in *manufacturer) echo Fairphone;; *model) echo FP5;; *release) echo 14;; esac\n'
    )
    prop.chmod(0o755)
    result = phone(ready, tmp_path, "devices", "check", "phone", "--json")
    assert result.code == 0, result.err
    host = result.document["host"]
    assert host["cpu"].startswith("Fairphone FP5")
    assert host["system"] == "Android 14"
    assert host["memory_bytes"] > 0
    assert result.document["state"]["load_average"]
    assert "no bundle can be run" in result.document["notes"][0]


def test_the_only_device_needs_no_serial(ready, tmp_path) -> None:
    assert ready.run("devices", "check", "adb:", "--json").code == 0


@pytest.mark.parametrize(
    ("connected", "address", "words", "hint"),
    [
        ("", "adb:R58M", "adb sees no device 'R58M'", "USB debugging"),
        ("", "adb:", "no Android device is connected", "USB debugging"),
        ("R58M=unauthorized", "adb:R58M", "adb cannot use R58M: unauthorized", "accept the question"),
        ("R58M=offline", "adb:", "adb cannot use R58M: offline", "plug it in again"),
        ("R58M=no permissions (user in plugdev group); see [http://x]", "adb:", "no permissions", "udev"),
        ("R58M=device,emulator-5554=device", "adb:", "several Android devices", "--device adb:R58M"),
        ("emulator-5554=device", "adb:R58M", "adb sees emulator-5554 (device)", "adb devices"),
    ],
)
def test_a_device_that_cannot_be_used_says_why(
    ready, bundle, tmp_path, monkeypatch, connected, address, words, hint
) -> None:
    monkeypatch.setenv("ADB_DEVICES", connected)
    result = profiled(ready, bundle, tmp_path, python=sys.executable, address=address)
    assert hint in refused(result, 4, words)


def test_one_of_several_is_taken_by_its_serial(ready, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ADB_DEVICES", "R58M=device,emulator-5554=offline")
    assert phone(ready, tmp_path, "devices", "check", "phone", python=sys.executable).code == 0


def test_without_adb_the_message_says_what_brings_it(ready, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    refused(ready.run("devices", "check", "adb:R58M"), 4, "there is no adb", "apt install adb")


def test_a_phone_without_python_says_how_to_get_one(ready, bundle, tmp_path) -> None:
    refused(profiled(ready, bundle, tmp_path), 4, "nothing is known on phone that runs a bundle", "Termux")
    lacking = "/data/data/com.termux/files/usr/bin/python"
    refused(profiled(ready, bundle, tmp_path, python=lacking), 4, f"phone cannot run {lacking}", "adb shell")
