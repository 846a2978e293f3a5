"""The store: built once, found again, never wrong, and tidy."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exporter.disk import disk_is_full, writing_failed
from exporter.errors import DataError, OutputError, StageError
from exporter.store import ENTRY, Store, default_root, list_files, stage_key

KEY = stage_key("toy", 1, {"a": 1})
OTHER = stage_key("toy", 1, {"a": 2})
CONTENTS = {"model.bin": b"weights", "notes/a.txt": b"one", "notes/deep/b.txt": b""}

BUILDER = """
import sys, time
from pathlib import Path
from exporter.store import Store

root, key, log, seconds = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])

def build(folder):
    with log.open("a") as stream:
        stream.write("built\\n")
    time.sleep(seconds)
    (folder / "out").write_text("result")

stored = Store(root).get_or_build("toy", key, build)
print("cached" if stored.cached else "built", (stored.folder / "out").read_text())
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write_contents(folder: Path) -> None:
    for name, content in CONTENTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.path: (folder / entry.path).read_bytes() for entry in list_files(folder)}


class Counted:
    """A build that counts its runs."""

    def __init__(self, write: Callable[[Path], None] = write_contents) -> None:
        self.runs = 0
        self._write = write

    def __call__(self, folder: Path) -> None:
        self.runs += 1
        self._write(folder)


def leftovers(store: Store) -> list[Path]:
    return list((store.root / "tmp").glob("*"))


def aged(store: Store, key: str, seconds: float) -> None:
    used = time.time() - seconds
    os.utime(store.root / "v1" / "toy" / key / ENTRY, (used, used))


def fill(store: Store, key: str, size: int, age: float = 0.0) -> None:
    store.get_or_build("toy", key, lambda folder: (folder / "blob").write_bytes(b"x" * size) and None)
    aged(store, key, age)


def test_a_result_is_built_once_and_found_again(store: Store) -> None:
    build = Counted()
    first = store.get_or_build("toy", KEY, build)
    second = store.get_or_build("toy", KEY, build)
    assert (first.cached, second.cached, build.runs) == (False, True, 1)
    assert first.folder == second.folder == store.find("toy", KEY)
    assert contents(second.folder) == CONTENTS
    assert not leftovers(store)


def test_all_is_on_the_disk_before_it_is_seen_and_the_list_of_files_after_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    seen: list[list[str]] = []
    rename = Path.rename

    def sync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    def renamed(path: Path, target: Path) -> Path:
        seen.append([str(Path(one).relative_to(path)) for one in synced])
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", renamed)
    folder = store.get_or_build("toy", KEY, write_contents).folder
    (before,) = seen
    tree = {*CONTENTS, "notes", "notes/deep", "."}
    assert set(before[: len(tree)]) == tree
    assert before[len(tree) :] == [ENTRY, "."]
    assert synced[len(before) :] == [str(folder.parent)]


def test_another_store_object_on_the_same_folder_finds_it(store: Store) -> None:
    store.get_or_build("toy", KEY, write_contents)
    assert Store(store.root).get_or_build("toy", KEY, Counted()).cached


@pytest.mark.parametrize(
    ("stage", "version", "parts"),
    [
        ("other", 1, {"a": 1}),
        ("toy", 2, {"a": 1}),
        ("toy", 1, {"a": 2}),
        ("toy", 1, {"a": "1"}),
        ("toy", 1, {"a": 1, "b": None}),
        ("toy", 1, {"a": [1]}),
        ("toy", 1, {}),
    ],
)
def test_a_key_changes_with_stage_version_and_every_part(stage: str, version: int, parts: dict[str, object]) -> None:
    assert stage_key(stage, version, parts) != KEY


def test_a_key_does_not_depend_on_the_order_of_parts() -> None:
    assert stage_key("toy", 1, {"a": 1, "b": {"x": 1, "y": 2}}) == stage_key(
        "toy", 1, {"b": {"y": 2, "x": 1}, "a": 1}
    )


def test_a_key_is_a_whole_sha256() -> None:
    assert len(KEY) == 64
    assert set(KEY) <= set("0123456789abcdef")


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), DataError("no data")])
def test_a_failure_stores_nothing_and_the_next_run_builds(store: Store, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        write_contents(folder)
        raise error

    with pytest.raises(type(error)):
        store.get_or_build("toy", KEY, fail)
    assert store.find("toy", KEY) is None
    assert not store.usage()
    assert not leftovers(store)
    build = Counted()
    assert not store.get_or_build("toy", KEY, build).cached
    assert build.runs == 1


def test_a_stage_that_writes_the_stores_own_file_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=ENTRY):
        store.get_or_build("toy", KEY, lambda folder: (folder / ENTRY).write_text("{}") and None)
    assert store.find("toy", KEY) is None


def _flip(folder: Path) -> None:
    path = folder / "model.bin"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def _truncate_entry(folder: Path) -> None:
    path = folder / ENTRY
    path.write_bytes(path.read_bytes()[:-7])


def _other_key(folder: Path) -> None:
    path = folder / ENTRY
    path.write_text(path.read_text().replace(KEY, OTHER))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": _flip,
    "missing file": lambda folder: (folder / "notes/a.txt").unlink(),
    "added file": lambda folder: (folder / "notes/extra").write_bytes(b""),
    "renamed file": lambda folder: (folder / "model.bin").rename(folder / "model2.bin"),
    "truncated file": lambda folder: (folder / "model.bin").write_bytes(b""),
    "truncated entry": _truncate_entry,
    "empty entry": lambda folder: (folder / ENTRY).write_bytes(b""),
    "entry of another key": _other_key,
    "missing entry": lambda folder: (folder / ENTRY).unlink(),
    "empty folder": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_built_again(store: Store, damage: str) -> None:
    folder = store.get_or_build("toy", KEY, write_contents).folder
    DAMAGES[damage](folder)
    assert store.find("toy", KEY) is None
    build = Counted()
    again = store.get_or_build("toy", KEY, build)
    assert (again.cached, build.runs, contents(again.folder)) == (False, 1, CONTENTS)
    assert store.get_or_build("toy", KEY, build).cached
    assert not leftovers(store)


def test_looking_without_a_lock_removes_nothing(store: Store) -> None:
    folder = store.get_or_build("toy", KEY, write_contents).folder
    _flip(folder)
    assert store.find("toy", KEY) is None
    assert (folder / "notes/a.txt").exists(), "another process may be about to replace it"


def test_gc_by_age_removes_what_was_not_used_for_long_and_keeps_the_rest(store: Store) -> None:
    fill(store, KEY, 10, age=3000)
    fill(store, OTHER, 10, age=1000)
    removed = store.collect(older_than_seconds=2000)
    assert [entry.key for entry in removed] == [KEY]
    assert store.find("toy", KEY) is None
    assert store.find("toy", OTHER) is not None


def test_using_a_result_makes_it_young(store: Store) -> None:
    fill(store, KEY, 10, age=3000)
    assert store.get_or_build("toy", KEY, Counted()).cached
    assert store.collect(older_than_seconds=2000) == []


def test_gc_by_size_removes_the_oldest_until_the_rest_fits(store: Store) -> None:
    keys = [stage_key("toy", 1, {"n": number}) for number in range(4)]
    for number, key in enumerate(keys):
        fill(store, key, 1000, age=1000 - 100 * number)
    size = store.usage()[0].size
    removed = store.collect(max_bytes=2 * size)
    assert [entry.key for entry in removed] == keys[:2]
    assert sum(entry.size for entry in store.usage()) <= 2 * size
    assert store.collect(max_bytes=2 * size) == []


def test_clearing_removes_everything_even_entries_from_the_future(store: Store) -> None:
    fill(store, KEY, 10, age=-5000)
    fill(store, OTHER, 10)
    assert len(store.collect()) == 2
    assert store.usage() == []
    assert not leftovers(store)


def test_gc_leaves_an_entry_whose_key_another_process_works_on(store: Store) -> None:
    fill(store, KEY, 10)
    with store.exclusive(KEY):
        assert store.collect() == []
    assert [entry.key for entry in store.collect()] == [KEY]


def test_usage_is_the_size_and_age_of_each_entry_oldest_first(store: Store) -> None:
    fill(store, KEY, 1000, age=50)
    fill(store, OTHER, 5000, age=500)
    oldest, youngest = store.usage()
    assert (oldest.stage, oldest.key, youngest.key) == ("toy", OTHER, KEY)
    assert 5000 < oldest.size < 6000
    assert oldest.age_seconds == pytest.approx(500, abs=30)


def test_gc_sweeps_what_killed_runs_left_but_not_what_a_live_one_writes(store: Store) -> None:
    store.get_or_build("toy", stage_key("toy", 1, {}), write_contents)
    dead, live = store.root / "tmp" / f"{KEY[:40]}-dead", store.root / "tmp" / f"{OTHER[:40]}-live"
    for folder in (dead, live):
        folder.mkdir()
        (folder / "part").write_bytes(b"half")
    beside = store.root / "tmp" / f"{KEY[:40]}-dead-samples.npz"
    beside.write_bytes(b"half")
    halved = store.root / "v1" / "toy" / KEY
    halved.mkdir()
    (halved / "rest").write_bytes(b"of a result")
    with store.exclusive(OTHER):
        assert store.collect(older_than_seconds=1000) == []
        assert leftovers(store) == [live]
    assert not halved.exists()
    store.collect(older_than_seconds=1000)
    assert leftovers(store) == []
    assert len(store.usage()) == 1


def test_the_next_build_of_a_key_removes_what_a_killed_one_left(store: Store) -> None:
    left = store.root / "tmp" / f"{KEY[:40]}-0123"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    Path(f"{left}-samples.npz").write_bytes(b"x")
    store.get_or_build("toy", KEY, write_contents)
    assert leftovers(store) == []


NAMES = st.text("abcXYZ019._- äß漢", min_size=1, max_size=12).filter(lambda name: name not in (".", ".."))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tree=st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=200), max_size=6)
)
@example(tree={})
@example(tree={"entry": b"1", "sub/entry.json": b"{}", ".hidden/.x": b""})
def test_any_tree_of_files_survives_a_round_trip(tmp_path: Path, tree: dict[str, bytes]) -> None:
    kept: dict[str, bytes] = {}
    for name, content in tree.items():  # A name cannot be a file and a folder.
        taken = any(name.startswith(other + "/") or other.startswith(name + "/") for other in kept)
        if not taken and name != ENTRY:
            kept[name] = content

    def build(folder: Path) -> None:
        for name, content in kept.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    store = Store(tmp_path / "round-trip")
    key = stage_key("toy", 1, {name: content.hex() for name, content in kept.items()})
    store.get_or_build("toy", key, build)
    found = store.find("toy", key)
    assert found is not None
    assert contents(found) == kept


def start(store: Store, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(store.root), KEY, str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_several_processes_that_want_one_key_build_it_once(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(store, log, 0.5) for _ in range(5)]
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 5, ends
    assert log.read_text() == "built\n"
    assert sorted(out for out, _ in ends) == ["built result\n", *["cached result\n"] * 4]


def test_a_process_that_waits_takes_over_when_the_builder_is_killed(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    builder = start(store, log, 60)
    while not log.exists():
        time.sleep(0.02)
    waiting = start(store, log, 0)
    time.sleep(0.3)
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    out, error = waiting.communicate(timeout=60)
    assert (waiting.returncode, out) == (0, "built result\n"), error
    assert log.read_text() == "built\nbuilt\n"
    assert leftovers(store) == []


def test_gc_and_builds_at_once_never_give_a_wrong_result(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(store, log, 0.05) for _ in range(4)]
    while any(process.poll() is None for process in processes):
        store.collect(older_than_seconds=1000)
        store.usage()
    ends = [process.communicate() for process in processes]
    assert all(out.endswith(" result\n") for out, _ in ends), ends
    assert log.read_text() == "built\n"


def test_the_root_is_the_environments_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGE_EXPORTER_CACHE", str(tmp_path / "here"))
    assert default_root() == tmp_path / "here"
    monkeypatch.setenv("EDGE_EXPORTER_CACHE", "relative")
    assert default_root().is_absolute()
    monkeypatch.delenv("EDGE_EXPORTER_CACHE")
    assert default_root().name == "edge-exporter"


def test_a_file_in_place_of_the_store_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    with pytest.raises(OutputError, match="cannot write") as caught:
        Store(tmp_path / "store").get_or_build("toy", KEY, write_contents)
    assert caught.value.exit_code == 3
    assert "EDGE_EXPORTER_CACHE" in (caught.value.hint or "")


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path / "model.bin"))


def wrapped_by_a_library(path: Path) -> None:
    try:
        full(path)
    except OSError as error:
        raise RuntimeError("serializer failed") from error


def hidden_while_closing(path: Path) -> None:
    try:
        full(path)
    finally:
        raise ValueError("there is an open writing handle")


def native_words(path: Path) -> None:
    raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : open file failed with error: No space left on device")


def collected_by_shutil(path: Path) -> None:
    raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])


@pytest.mark.parametrize(
    "build", [full, wrapped_by_a_library, hidden_while_closing, native_words, collected_by_shutil]
)
def test_a_full_disk_is_named_whatever_a_library_makes_of_it(store: Store, build: Callable[[Path], None]) -> None:
    with pytest.raises(StageError, match="no space left on the disk") as caught:
        store.get_or_build("toy", KEY, build)
    assert caught.value.exit_code == 5
    assert "cache gc" in (caught.value.hint or "")
    assert "No space left on device" in str(caught.value.why)
    assert store.find("toy", KEY) is None
    assert leftovers(store) == []


def test_a_silent_failure_on_a_disk_without_space_is_put_down_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9 - 4096, 4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert disk_is_full(RuntimeError("failed"), tmp_path)
    assert disk_is_full(StageError("quantize failed"), tmp_path)
    assert not disk_is_full(DataError("an input has NaN"), tmp_path), "its cause is known"


def test_a_failure_with_space_left_is_not_put_down_to_the_disk(tmp_path: Path) -> None:
    assert not disk_is_full(RuntimeError("failed"), tmp_path)
    refused = OSError(errno.EACCES, "Permission denied", str(tmp_path / "x"))
    error = writing_failed(refused, "stage toy", tmp_path)
    assert (type(error), error.where, error.why) == (OutputError, str(tmp_path / "x"), "Permission denied")


def test_an_error_of_a_file_elsewhere_is_no_writing_error(store: Store) -> None:
    elsewhere = PermissionError(errno.EACCES, "Permission denied", "/somewhere/else")
    neighbour = PermissionError(errno.EACCES, "Permission denied", f"{store.root}-2/x")
    lost = FileNotFoundError(errno.ENOENT, "No such file", str(store.root / "tmp" / "x"))
    inside = PermissionError(errno.EACCES, "Permission denied", str(store.root / "tmp" / "x"))
    assert [store.is_writing_error(error) for error in (elsewhere, neighbour, lost, inside)] == [False] * 3 + [True]


def test_an_entry_lists_its_files_in_a_file_of_its_own(store: Store) -> None:
    folder = store.get_or_build("toy", KEY, write_contents).folder
    entry = json.loads((folder / ENTRY).read_text())
    assert {file["path"] for file in entry["files"]} == set(CONTENTS)
    assert (entry["stage"], entry["key"]) == ("toy", KEY)
