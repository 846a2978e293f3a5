"""Devices over ssh: a real sshd on loopback plays the device, login to profile, and what goes wrong."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sshd import SSHD, Board, Server, free_port, only_profile, serving
from support import COMMAND, Workplace, refused

from exporter.bundle import read_manifest, read_profiles
from exporter.devices import remote

pytestmark = pytest.mark.skipif(SSHD is None, reason="sshd is missing: install openssh-server")

CUT = """\
import os, select, socket, sys
host, port, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
peer = socket.create_connection((host, port))
while True:
    for ready in select.select([0, peer], [], [])[0]:
        got = os.read(0, 4096) if ready == 0 else peer.recv(65536)
        if not got:
            sys.exit()
        if ready == 0:
            peer.sendall(got)
            most -= len(got)
            if most < 0:
                sys.exit()
        else:
            os.write(1, got)
"""


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    shared_place.onnx(width=256)
    shared_place.quadrants()
    return shared_place


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def bundle(place: Workplace, tmp_path: Path) -> Path:
    _, made = place.built("model.onnx", "--calib", "calib.npz", "--no-profile", "--output", str(tmp_path / "b"))
    return made


@pytest.fixture
def board(place: Workplace, server: Server, tmp_path: Path) -> Board:
    return Board(place, server, tmp_path)


def script(path: Path, body: str) -> str:
    """An interpreter that acts up: Python, but for command lines that `body` catches."""
    path.write_text(f'#!/bin/sh\n{body}\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def hanging(folder: Path) -> tuple[str, Path]:
    """An interpreter that never ends a benchmark, and the file in which it notes its process."""
    note = folder / "hanging"
    return script(folder / "hangs", f'case "$*" in *run.py*) echo $$ > "{note}"; exec sleep 600;; esac'), note


def until(happened: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def alive(note: Path) -> bool:
    stat = Path(f"/proc/{int(note.read_text())}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


# --- the whole life ------------------------------------------------------------------------------------------------


def test_a_bundle_is_measured_on_the_device_and_the_profile_says_where(board: Board, bundle: Path) -> None:
    before = read_manifest(bundle)
    result = board.profile(bundle, "--affinity", "0")
    assert result.code == 0, result.err
    profile = only_profile(bundle)
    assert (profile.device, profile.provenance, profile.self_test) == ("board", "native", "passed")
    assert profile.bundle_digest == before.digest
    assert profile.settings.affinity == (0,)
    assert profile.before.load_average is not None
    assert profile.after.load_average is not None
    assert "native on board: " in result.out
    # Measured elsewhere: the default variant stays what it was.
    assert read_manifest(bundle) == before
    assert board.place.run("verify", bundle, "--no-run").code == 0


def test_a_sweep_sends_the_bundle_once_and_keeps_a_profile_for_each_count(board: Board, bundle: Path) -> None:
    result = board.profile(bundle, "--threads", "1,2", "--progress", "json")
    assert result.code == 0, result.err
    steps = [event["step"] for event in result.events if event["type"] == "StepFinished"]
    assert steps.count("board: send the bundle") == 1
    found = read_profiles(bundle, read_manifest(bundle))
    assert sorted(profile.settings.threads for profile in found.values()) == [1, 2]
    assert all(name.startswith("board-") for name in found)


def test_threads_and_affinity_of_the_devices_file_hold_unless_flags_say_otherwise(board: Board, bundle: Path) -> None:
    board.set(threads=2, affinity=[0])
    assert board.profile(bundle).code == 0
    profile = only_profile(bundle)
    assert (profile.settings.threads, profile.settings.affinity) == (2, (0,))
    assert board.profile(bundle, "--threads", "1").code == 0
    threads = {profile.settings.threads for profile in read_profiles(bundle, read_manifest(bundle)).values()}
    assert threads == {1, 2}


def test_the_default_variant_follows_a_device_only_when_told_to(board: Board, bundle: Path) -> None:
    assert board.profile(bundle, "--set-default").code == 0
    assert "(board, native)" in read_manifest(bundle).choice.why
    assert board.place.run("verify", bundle, "--no-run").code == 0


@pytest.mark.parametrize(("keep", "left"), [("environment", []), ("nothing", []), ("all", ["blobs", "bundles"])])
def test_what_stays_on_the_device_is_what_was_asked_for(
    board: Board, bundle: Path, keep: str, left: list[str]
) -> None:
    assert board.set(keep=keep).profile(bundle).code == 0
    assert {name.split("/")[0] for name in board.files()} == {"lock", *left}
    again = board.profile(bundle, "--progress", "json")
    sent = next(
        event for event in again.events if event.get("step") == "board: send the bundle" and "cached" in event
    )
    assert sent["cached"] is (keep == "all")


def test_a_file_that_the_device_lost_is_sent_again(board: Board, bundle: Path) -> None:
    board.set(keep="all")
    assert board.profile(bundle).code == 0
    damaged = board.home / "blobs" / read_manifest(bundle).files[0].sha256
    size = damaged.stat().st_size
    damaged.unlink()
    damaged.write_bytes(b"\0" * size)
    result = board.profile(bundle)
    assert result.code == 0, result.err
    assert "send the bundle" in result.err
    assert "(1 of " in result.err


def test_check_tells_what_is_there_and_changes_nothing(board: Board) -> None:
    result = board.check("--json")
    assert result.code == 0, result.err
    facts = result.document
    assert facts["host"]["features"]
    assert facts["host"]["memory_bytes"] > 0
    assert facts["free_bytes"] > 0
    assert facts["runtimes"]["onnxruntime"]
    assert facts["python"] == sys.executable
    assert facts["provenance"] == "native"
    assert not board.home.exists()
    assert "onnxruntime" in board.check().out


def test_words_with_spaces_quotes_and_commands_reach_the_device_as_they_are(
    board: Board, bundle: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "it's; touch pwned $(touch pwned) `touch pwned` \" *"
    odd.mkdir()
    python = script(odd / "py thon", ":")
    board.home = odd / "folder"
    result = board.set(python=python, folder=str(board.home)).profile(bundle)
    assert result.code == 0, result.err
    assert board.files() == ["lock"]
    assert not [path for path in (tmp_path, Path.home(), bundle) if (path / "pwned").exists()]


def test_what_login_scripts_print_does_not_disturb(place: Workplace, bundle: Path, tmp_path: Path) -> None:
    noisy = 'ForceCommand echo "Welcome! {}"; echo oops >&2; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    with serving(tmp_path / "sshd", noisy) as server:
        result = Board(place, server, tmp_path).profile(bundle)
    assert result.code == 0, result.err


@pytest.mark.slow
def test_an_environment_is_made_once_from_wheels_that_are_sent(
    place: Workplace, bundle: Path, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    requirements = read_manifest(bundle).runtime.requirements
    fetch = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--only-binary",
        ":all:",
        "-d",
        str(wheels),
        *requirements,
    ]
    subprocess.run(fetch, check=True, capture_output=True)
    base = str(Path(sys.executable).resolve().parent)
    # No package index there: what pip installs can only come from the wheels that were sent.
    offline = {"PATH": f"{base}:/usr/bin:/bin", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    with serving(tmp_path / "sshd", environment=offline) as server:
        board = Board(place, server, tmp_path).set(python=None, wheels=str(wheels))
        refused(board.set(install_seconds=0.3).profile(bundle), 5, "making an environment on board did not end")
        # What was begun then is not taken for an environment.
        result = board.set(install_seconds=600).profile(bundle)
        assert result.code == 0, result.err
        assert "board: environment: cached" not in result.err
        assert only_profile(bundle).runtime.name == "onnxruntime"
        again = board.profile(bundle)
        assert again.code == 0, again.err
        assert "board: environment: cached" in again.err


# --- a device that cannot be used ----------------------------------------------------------------------------------


def test_a_key_that_the_device_does_not_know_is_refused_without_asking(board: Board, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    config = board.server.client("wrong-key.conf", IdentityFile=str(tmp_path / "other"))
    message = refused(board.set(ssh_config=str(config)).check(), 4, "board refuses the login", "Permission denied")
    assert "ssh-copy-id" in message


def test_a_host_that_does_not_answer_is_named(board: Board) -> None:
    port = free_port()
    message = refused(board.set(address=f"ssh://127.0.0.1:{port}").check(), 4, "board cannot be reached", "refused")
    assert f"`ssh -p {port} 127.0.0.1`" in message
    refused(board.set(address="ssh://no-such-host.invalid").check(), 4, "there is no host no-such-host.invalid")


def test_an_unknown_host_key_is_not_accepted(board: Board, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    config = board.server.client("unknown.conf", UserKnownHostsFile=str(tmp_path / "empty"))
    refused(board.set(ssh_config=str(config)).check(), 4, "the host key of board is not known", "fingerprint")
    assert (tmp_path / "empty").read_text() == ""


def test_a_host_key_that_changed_is_called_that(board: Board, tmp_path: Path) -> None:
    key = (board.server.folder / "user.pub").read_text().split()[:2]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{board.server.port} {' '.join(key)}\n")
    config = board.server.client("changed.conf", UserKnownHostsFile=str(tmp_path / "known"))
    refused(board.set(ssh_config=str(config)).check(), 4, "another host key than before", "someone may stand between")


def test_a_device_without_python_is_told_what_it_lacks(board: Board, bundle: Path) -> None:
    refused(board.set(python="/nowhere/python3").profile(bundle), 4, "board has no /nowhere/python3", "Python 3.9")


def test_a_python_that_is_too_old_is_told_so(board: Board, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho 'edge-exporter needs Python 3.9 or newer, this is 3.7.3' >&2\nexit 1\n")
    old.chmod(0o755)
    refused(board.set(python=str(old)).check(), 4, "the Python of board is too old", "3.7.3")


def test_an_interpreter_without_the_runtime_is_refused_in_the_runners_words(
    board: Board, bundle: Path, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    result = board.set(python=str(tmp_path / "bare" / "bin" / "python")).profile(bundle)
    refused(result, 4, "numpy cannot be imported", "leave `python` out")
    assert board.files() == ["lock"]


def test_wheels_that_do_not_fit_are_an_error_with_the_command_that_brings_others(
    place: Workplace, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "unrelated-1.0-py3-none-any.whl").write_bytes(b"PK")
    base = str(Path(sys.executable).resolve().parent)
    with serving(tmp_path / "sshd", environment={"PATH": f"{base}:/usr/bin:/bin"}) as server:
        board = Board(place, server, tmp_path).set(python=None, wheels=str(tmp_path / "wheels"))
        refused(board.profile(bundle), 4, "requirements cannot be installed on board", "onnxruntime", "pip download")
    assert read_profiles(bundle, read_manifest(bundle)) == {}


def test_a_self_test_that_fails_on_the_device_leaves_no_profile(board: Board, bundle: Path, tmp_path: Path) -> None:
    fails = script(tmp_path / "fails", 'case "$*" in *run.py*) echo "variant int8: 3 of 4 values" >&2; exit 6;; esac')
    refused(board.set(python=fails).profile(bundle), 6, "3 of 4 values", "on board", hint=False)
    assert read_profiles(bundle, read_manifest(bundle)) == {}


# --- what breaks on the way ----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk can be mounted by root only")
def test_a_full_disk_is_refused_before_anything_is_sent(place: Workplace, bundle: Path, tmp_path: Path) -> None:
    small = tmp_path / "on the device"
    small.mkdir()
    with serving(tmp_path / "sshd", small=(small, "1m")) as server:
        board = Board(place, server, tmp_path)
        refused(board.profile(bundle), 5, "no space left on board", "are free")
    assert read_profiles(bundle, read_manifest(bundle)) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk can be mounted by root only")
def test_a_disk_that_fills_while_sending_leaves_whole_files_and_the_next_run_completes(
    place: Workplace, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "on the device"
    small.mkdir()
    # Something else there takes the space after it was counted.
    monkeypatch.setattr(remote, "SPARE_BYTES", -(2**30))
    total = len(read_manifest(bundle).files) + 1
    with serving(tmp_path / "sshd", small=(small, "64k")) as server:
        board = Board(place, server, tmp_path).set(keep="all")
        refused(board.profile(bundle), 5, "no space left on board while sending the bundle", "free some space there")
        assert read_profiles(bundle, read_manifest(bundle)) == {}
        board.home = Path(f"/proc/{server.process.pid}/root{small}")
        kept = board.files("blobs")
        assert 0 < len(kept) < total
        for name in kept:
            assert hashlib.sha256((board.home / "blobs" / name).read_bytes()).hexdigest() == name
        assert board.files("tmp") == board.files("bundles") == []
        grow = ["nsenter", "-t", str(server.process.pid), "-m", "mount", "-o", "remount,size=64m", str(small)]
        subprocess.run(grow, check=True)
        monkeypatch.undo()
        again = board.profile(bundle)
        assert again.code == 0, again.err
    assert f"({total - len(kept)} of {total} files" in again.err
    assert only_profile(bundle).self_test == "passed"


def test_a_benchmark_that_hangs_is_ended_and_the_device_is_free_again(
    board: Board, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, note = hanging(tmp_path)
    monkeypatch.setattr(remote, "bench_seconds", lambda settings, variants: 1.0)
    refused(board.set(python=python).profile(bundle), 5, "the benchmark on board did not end within 1 s")
    assert not alive(note)
    monkeypatch.undo()
    assert board.set(python=sys.executable).profile(bundle).code == 0


def test_a_connection_cut_while_sending_leaves_whole_files_that_are_not_sent_again(
    board: Board, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "cut.py").write_text(CUT)
    proxy = f"{sys.executable} {tmp_path}/cut.py %h %p 80000"
    config = board.server.client("cut.conf", ProxyCommand=proxy)
    refused(board.set(ssh_config=str(config)).profile(bundle), 5, "the connection to board was lost while sending")
    assert read_profiles(bundle, read_manifest(bundle)) == {}
    kept = board.files("blobs")
    assert kept
    for name in kept:
        assert hashlib.sha256((board.home / "blobs" / name).read_bytes()).hexdigest() == name
    assert board.files("bundles") == []
    again = board.set(ssh_config=str(board.server.config)).profile(bundle)
    assert again.code == 0, again.err
    total = len(read_manifest(bundle).files) + 1
    assert f"({total - len(kept)} of {total} files" in again.err


def test_a_connection_cut_while_measuring_ends_what_runs_there(board: Board, bundle: Path, tmp_path: Path) -> None:
    python, note = hanging(tmp_path)
    board.set(python=python)
    away = subprocess.Popen(
        [*COMMAND, *board.arguments(bundle)],
        cwd=board.place.folder, env=board.place.environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(note.exists)
    until(lambda: note.read_text().strip())
    for process in board.server.children():
        os.kill(process, signal.SIGKILL)
    assert "the connection to board was lost while the benchmark" in away.communicate(timeout=60)[1]
    assert away.returncode == 5
    until(lambda: not alive(note))
    assert board.set(python=sys.executable, wait_seconds=10).profile(bundle).code == 0


def test_a_device_serves_one_exporter_at_a_time_and_is_free_when_that_one_dies(
    board: Board, bundle: Path, tmp_path: Path
) -> None:
    python, note = hanging(tmp_path)
    board.set(python=python)
    first = subprocess.Popen(
        [*COMMAND, *board.arguments(bundle)],
        cwd=board.place.folder, env=board.place.environment(), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(note.exists)
    until(lambda: note.read_text().strip())
    other = Workplace(tmp_path / "other")
    second = Board(other, board.server, tmp_path / "other").set(wait_seconds=0)
    copy = tmp_path / "other" / bundle.name
    subprocess.run(["cp", "-r", bundle, copy], check=True)
    # Another folder on the same device is no way around: both would measure at once.
    refused(second.profile(copy), 4, "board is in use", "another exporter")
    first.kill()
    first.wait()
    result = second.set(wait_seconds=30).profile(copy)
    assert result.code == 0, result.err
    assert not alive(note)
