"""A stand-in for `adb`, put on PATH by tests: it answers as adb 29 to 35 do and runs things here.

`ADB_DEVICES` holds what is connected, as in `R58M=device,emulator-5554=offline`. `ADB_ROOT` plays the device's root
folder: paths below /data/local/tmp mean files there. Every call is noted in `ADB_LOG`, if that is set.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

UNAUTHORIZED = (
    "adb: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\n"
    "Try 'adb kill-server' if that seems wrong.\nOtherwise check for a confirmation dialog on your device."
)


def fail(words: str) -> None:
    print(words, file=sys.stderr)
    raise SystemExit(1)


def main(arguments: list[str]) -> None:
    connected = dict(pair.split("=", 1) for pair in os.environ.get("ADB_DEVICES", "").split(",") if pair)
    if log := os.environ.get("ADB_LOG"):
        with Path(log).open("a") as stream:
            stream.write(repr(arguments) + "\n")
    if arguments == ["devices"]:
        print("List of devices attached")
        for serial, state in connected.items():
            print(f"{serial}\t{state}")
        print()
        return
    serial = os.environ.get("ANDROID_SERIAL")
    if arguments[:1] == ["-s"]:
        serial, arguments = arguments[1], arguments[2:]
    if not connected:
        fail("adb: no devices/emulators found")
    if serial is None and len(connected) > 1:
        fail("adb: more than one device/emulator")
    serial = serial or next(iter(connected))
    if serial not in connected:
        fail(f"adb: device '{serial}' not found")
    if connected[serial] != "device":
        fail(UNAUTHORIZED if connected[serial] == "unauthorized" else f"adb: device {connected[serial]}")
    root = os.environ["ADB_ROOT"]
    if arguments[0] == "shell":
        # Words are joined with spaces and read by the device's shell, whatever quotes they had here.
        words = [word for word in arguments[1:] if word not in ("-T", "-x", "-n")]
        command = " ".join(words).replace("/data/local/tmp", f"{root}/data/local/tmp")
        os.execvp("sh", ["sh", "-c", command])
    if arguments[0] == "push":
        *sources, target = arguments[1:]
        for source in sources:
            Path(target.replace("/data/local/tmp", f"{root}/data/local/tmp")).write_bytes(Path(source).read_bytes())
        print(f"{len(sources)} file pushed, 0 skipped.", file=sys.stderr)
        return
    fail(f"adb: unknown command {arguments[0]}")


main(sys.argv[1:])
