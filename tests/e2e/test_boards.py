"""ARM boards over ssh as a user has them: aarch64 Python, runtime and bundle, and a label that says: emulated."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from boards import into_root, machine
from sshd import SSHD, Board, Server, only_profile, serving
from support import Workplace, refused

from exporter.bundle import read_manifest
from exporter.devices.arm64 import TOOLS, userland
from exporter.errors import MissingError
from exporter.store import Store

LACKING = [name for name in (*TOOLS, "proot", "qemu-system-aarch64") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(SSHD is None, reason="sshd is missing: install openssh-server"),
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}"),
]
PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def bundle(shared_place: Workplace) -> Path:
    shared_place.onnx()
    shared_place.quadrants()
    _, made = shared_place.built("model.onnx", "--calib", "calib.npz", "--target", "arm")
    return made


@pytest.fixture(scope="module")
def root(kept: Store, bundle: Path) -> Path:
    try:
        return userland(kept, read_manifest(bundle).runtime)
    except MissingError as error:
        pytest.skip(f"no arm64 packages here: {error}")


@pytest.fixture(scope="module")
def rooted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose every login ends up in an arm64 root."""
    folder = tmp_path_factory.mktemp("root")
    with serving(folder / "sshd", into_root(root, folder)) as running:
        yield running


@pytest.fixture
def board(shared_place: Workplace, rooted: Server, tmp_path: Path) -> Board:
    return Board(shared_place, rooted, tmp_path).set(
        python=PYTHON, folder="/device/edge exporter", connect_seconds=30
    )


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """The bundle for one test to write profiles into."""
    return Path(shutil.copytree(bundle, tmp_path / bundle.name))


def test_a_login_into_an_arm64_root_measures_the_bundle_and_labels_it_emulated(board: Board, copied: Path) -> None:
    checked = board.check("--json").document
    assert checked["host"]["machine"] == "aarch64"
    assert "asimddp" in checked["host"]["features"]
    assert checked["provenance"] == "emulated"
    result = board.profile(copied)
    assert result.code == 0, result.err
    profile = only_profile(copied)
    assert (profile.host.machine, profile.provenance, profile.self_test) == ("aarch64", "emulated", "passed")
    assert [one.variant for one in profile.variants] == ["fp32", "int8", "int8-dotprod"]
    assert any("the processor is emulated" in flag and "kernel" in flag for flag in profile.flags)
    assert "emulated on board: " in result.out
    assert board.place.run("verify", copied, "--no-run").code == 0


def test_no_default_follows_an_emulated_board_and_its_profile_is_kept_apart(board: Board, copied: Path) -> None:
    before = read_manifest(copied)
    # A user who knows better than what the device shows is believed, in both directions.
    assert board.set(emulated=False).check("--json").document["provenance"] == "native"
    board.set(emulated=None)
    message = refused(board.profile(copied, "--set-default"), 3, "board is emulated", "chooses no default")
    assert "leave out --set-default" in message
    assert read_manifest(copied) == before
    assert all(path.name.startswith("emulated-board-") for path in (copied / "profiles").iterdir())
    assert only_profile(copied).provenance == "emulated"


def test_a_whole_machine_with_a_kernel_of_its_own_goes_from_build_to_a_labelled_profile(
    shared_place: Workplace, copied: Path, root: Path, tmp_path: Path
) -> None:
    try:
        with machine(tmp_path / "machine", root) as running:
            board = Board(shared_place, running, tmp_path)
            board.set(python=PYTHON, folder="/tmp/edge-exporter", connect_seconds=60)
            result = board.profile(copied)
    except MissingError as error:
        pytest.skip(f"no arm64 kernel here: {error}")
    assert result.code == 0, result.err
    profile = only_profile(copied)
    assert (profile.host.machine, profile.provenance, profile.self_test) == ("aarch64", "emulated", "passed")
    assert "asimddp" in profile.host.features, "of the kernel's own /proc/cpuinfo"
    assert any("QEMU" in flag for flag in profile.flags)
    assert profile.device == "board"
