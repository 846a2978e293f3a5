"""Environments of runtimes: made once, kept, never half, and told why where there can be none."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter.devices import environments, kept, kept_python
from exporter.errors import MissingError
from exporter.events import Event, StepFailed, StepFinished
from exporter.store import Store
from exporter.target_api import EnvironmentNeed

BARE = EnvironmentNeed(name="bare", requirements=("pip",), oldest=(3, 9), newest=None)
OTHER = EnvironmentNeed(name="bare", requirements=("pip",), oldest=(3, 90), newest=(3, 91))


def ignore(event: Event) -> None:
    """What is told here matters to nobody."""


def seen(python: str) -> list[str]:
    """The environment's folder, and whether numpy can be found in it."""
    code = "import sys; from importlib.util import find_spec; print(sys.prefix, find_spec('numpy') is not None)"
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.split()


def entries(store: Store) -> list[str]:
    return [usage.stage for usage in store.usage()]


def test_an_environment_is_made_once_and_is_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text("raise SystemExit('PYTHONPATH was seen')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    store, events = Store(tmp_path / "store"), list[Event]()
    python = kept_python(store, BARE, events.append)
    prefix, numpy = seen(python)
    assert Path(prefix).is_relative_to(tmp_path / "store")
    assert numpy == "False"
    assert kept_python(store, BARE, events.append) == python
    assert [event.cached for event in events if isinstance(event, StepFinished)] == [False, True]
    assert entries(store) == ["environment"]


def test_what_cannot_be_installed_leaves_nothing_and_tells_pips_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wanted = EnvironmentNeed(name="absent", requirements=("no-such-runtime==1",), oldest=(3, 9), newest=None)
    store, events = Store(tmp_path), list[Event]()
    with pytest.raises(MissingError, match="could not install no-such-runtime==1") as caught:
        kept_python(store, wanted, events.append)
    assert caught.value.why == "ERROR: No matching distribution found for no-such-runtime==1"
    assert isinstance(events[-1], StepFailed)
    assert entries(store) == []


def test_a_runtime_for_another_python_takes_one_that_really_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("python3.91", "exit 127"), ("python3.90", f'exec "{sys.executable}" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert kept._interpreter(OTHER)[0] == str(tmp_path / "python3.90")


def test_where_no_python_fits_the_message_says_which_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="no environment for bare can be made here") as caught:
        kept_python(Store(tmp_path), OTHER, ignore)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert caught.value.why == f"it has wheels for Python 3.90 to 3.91; this is Python {here}, and no other was found"
    assert caught.value.hint == "install Python 3.91, so that `python3.91` starts it"


def test_packages_that_pip_put_elsewhere_are_missed_before_anything_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = EnvironmentNeed(name="absent", requirements=("no-such-runtime==1",))
    real = environments._call

    def elsewhere(command: list[str], purpose: str, hint: str) -> None:
        if not purpose.startswith("install"):
            real(command, purpose, hint)

    monkeypatch.setattr(environments, "_call", elsewhere)
    store = Store(tmp_path)
    with pytest.raises(MissingError, match="could not find no-such-runtime in the environment") as caught:
        kept_python(store, wanted, ignore)
    assert "pip config list" in str(caught.value.hint)
    assert entries(store) == []


def test_variables_that_send_packages_elsewhere_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    assert "PIP_TARGET" not in environments.clean_environment()


INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path

from exporter.devices import environments

# What starts tests in the background has them ignore the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
told = Path(sys.argv[1])


def interrupt():
    while not (told.is_file() and told.read_text().endswith("\\n")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


threading.Thread(target=interrupt, daemon=True).start()
try:
    environments._call([sys.executable, "-c", sys.argv[2]], "wait", "")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_what_an_interrupted_installer_started_ends_with_it(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); "
        f"open({str(told)!r}, 'w').write(f'{{child.pid}}\\n'); child.wait()"
    )
    command = [sys.executable, "-c", INTERRUPTED, str(told), code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "interrupted\n", done.stderr
    child = Path(f"/proc/{told.read_text().strip()}/stat")
    deadline = time.monotonic() + 10
    # One whose parent has gone is no more than an entry, until the system takes it away.
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
