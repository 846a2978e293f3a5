"""A packed bundle is one file that holds the bundle to the byte; what it claims is held against its manifest."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Workplace, refused

from exporter.bundle import bundle_name, opened_bundle, read_manifest
from exporter.errors import ExporterError

Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture(scope="module")
def bundle(shared_place: Workplace) -> Path:
    """A measured bundle that no test changes."""
    shared_place.onnx()
    shared_place.quadrants()
    _, bundle = shared_place.built("model.onnx", "--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y")
    return bundle


@pytest.fixture(scope="module")
def packed(shared_place: Workplace, bundle: Path) -> Path:
    result = shared_place.run("pack", bundle, "--output", shared_place / "model.tar.zst", "--json")
    assert result.code == 0, result.err
    document = result.document
    file = Path(document["file"])
    assert document["packed_bytes"] == file.stat().st_size < document["bytes"]
    assert [one["name"] for one in document["variants"]] == [one.name for one in read_manifest(bundle).variants]
    assert sum(one["packed_bytes"] for one in document["variants"]) < file.stat().st_size
    return file


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def members(packed: Path) -> Members:
    with tarfile.open(fileobj=io.BytesIO(raw(packed))) as archive:
        return [(one, archive.extractfile(one).read()) for one in archive.getmembers()]  # type: ignore[union-attr]


def raw(packed: Path) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(packed.read_bytes())


def repacked(folder: Path, changed: Members, *, after: bytes = b"", form: int = tarfile.PAX_FORMAT) -> Path:
    """What an attacker would send: any tar archive in zstd."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for member, content in changed:
            archive.addfile(member, io.BytesIO(content))
    file = folder / "hostile.tar.zst"
    file.write_bytes(zstandard.ZstdCompressor().compress(stream.getvalue() + after))
    return file


def test_unpacking_gives_the_bundle_to_the_byte(place: Workplace, bundle: Path, packed: Path) -> None:
    result = place.run("unpack", packed, "--output", place / "there", "--json")
    assert result.code == 0, result.err
    folder = Path(result.document["bundle"])
    assert folder == place / "there" / bundle_name(read_manifest(bundle))
    assert contents(folder) == contents(bundle)
    assert place.run("verify", folder, "--no-run").code == 0
    assert [path.name for path in (place / "there").iterdir()] == [folder.name], "nothing else is left"


def test_tar_unpacks_it_where_there_is_no_exporter(bundle: Path, packed: Path, tmp_path: Path) -> None:
    archive = tmp_path / "model.tar"
    archive.write_bytes(raw(packed))
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path], check=True, capture_output=True)
    assert contents(tmp_path / bundle_name(read_manifest(bundle))) == contents(bundle)


def test_the_same_bundle_gives_the_same_file(place: Workplace, bundle: Path, packed: Path) -> None:
    copied = Path(shutil.copytree(bundle, place / "other name", copy_function=shutil.copyfile))
    result = place.run("pack", copied)
    assert result.code == 0, result.err
    file = place / (bundle_name(read_manifest(bundle)) + ".tar.zst")
    assert file.read_bytes() == packed.read_bytes()


def test_a_packed_bundle_is_verified_shown_and_compared_as_it_is(
    place: Workplace, bundle: Path, packed: Path
) -> None:
    verified = place.run("verify", packed)
    assert verified.code == 0, verified.err
    assert "self-test in this environment" in verified.out
    shown, folder = (place.run("show", one, "--json").document for one in (packed, bundle))
    assert shown | {"bundle": ""} == folder | {"bundle": ""}
    assert shown["bundle"] == str(packed)
    compared = place.run("compare", packed, bundle, "--gate", "size=+0%")
    assert compared.code == 0, compared.err
    assert place.run("compare", bundle, packed).code == 0


@pytest.mark.parametrize("command", [("profile",), ("analyze",), ("pack",)])
def test_what_needs_a_folder_says_how_to_get_one(place: Workplace, packed: Path, command: tuple[str, ...]) -> None:
    refused(place.run(*command, packed), 3, f"edge-exporter unpack {packed}")


def test_reports_say_so_too(place: Workplace, packed: Path) -> None:
    folder = place / "bundles"
    folder.mkdir()
    shutil.copyfile(packed, folder / packed.name)
    refused(place.run("report", folder), 3, "edge-exporter unpack", packed.name)
    refused(place.run("report", packed), 3, f"edge-exporter unpack {packed}")


def test_nothing_that_is_there_is_overwritten(place: Workplace, bundle: Path, packed: Path) -> None:
    mine = place.write("mine", "mine")
    refused(place.run("pack", bundle, "--output", mine), 3, "already", "--force")
    assert mine.read_text() == "mine"
    assert place.run("pack", bundle, "--output", mine, "--force").code == 0
    assert mine.read_bytes() == packed.read_bytes()
    assert place.run("unpack", packed, "--output", place.folder).code == 0
    refused(place.run("unpack", packed, "--output", place.folder), 3, "already", "--output")
    refused(place.run("pack", bundle, "--output", bundle / "x"), 3, "inside the bundle")
    refused(place.run("pack", place / "none"), 3, "no such bundle")
    refused(place.run("unpack", place / "none"), 3, "no such packed bundle")
    refused(place.run("unpack", bundle), 3, "no packed bundle")


def test_a_damaged_bundle_is_not_packed(place: Workplace, bundle: Path) -> None:
    copied = Path(shutil.copytree(bundle, place / "copied"))
    (copied / "README.md").write_text("other")
    refused(place.run("pack", copied), 6, "README.md")
    assert sorted(path.name for path in place.folder.iterdir()) == ["copied"]


def _renamed(name: str) -> Callable[[Members], None]:
    def change(found: Members) -> None:
        found[1][0].name = name

    return change


def _linked(kind: bytes) -> Callable[[Members], None]:
    def change(found: Members) -> None:
        member = tarfile.TarInfo(f"{found[0][0].name.partition('/')[0]}/run.py")
        member.type, member.linkname = kind, "/etc/passwd"
        found.insert(1, (member, b""))

    return change


def _added(name: str, size: int = 3) -> Callable[[Members], None]:
    def change(found: Members) -> None:
        member = tarfile.TarInfo(f"{found[0][0].name.partition('/')[0]}/{name}")
        member.size = size
        found.append((member, bytes(size)))

    return change


def _larger(found: Members) -> None:
    member, content = found[2]
    member.size += 1
    found[2] = (member, content + b"x")


def _other_folder(found: Members) -> None:
    for member, _ in found:
        member.name = "other/" + member.name.partition("/")[2]


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        (_renamed("../escaped"), "outside"),
        (_renamed("/tmp/escaped"), "outside"),
        (_renamed("x" * 300), "no plain file"),
        (_linked(tarfile.SYMTYPE), "no plain file"),
        (_linked(tarfile.LNKTYPE), "no plain file"),
        (_linked(tarfile.FIFOTYPE), "no plain file"),
        (_linked(tarfile.DIRTYPE), "no plain file"),
        (_added("evil.py"), "does not list"),
        (_added("profiles/a/../../../x.json"), "outside"),
        (_added("profiles/x.json"), "x.json"),
        (_added("manifest.json"), "twice"),
        (_added("run.py"), "twice"),
        (_larger, "were written"),
        (_other_folder, "its manifest says"),
        (lambda found: found.pop(), "missing"),
        (lambda found: found.pop(2), "missing"),
        (lambda found: found.pop(0), "no packed bundle"),
        (lambda found: found.clear(), "no packed bundle"),
    ],
)
def test_hostile_archives_are_refused(
    place: Workplace, packed: Path, change: Callable[[Members], None], mentions: str
) -> None:
    found = members(packed)
    change(found)
    file = repacked(place.folder, found)
    refused(place.run("verify", file, "--no-run"), 6, mentions, hint=False)
    refused(place.run("unpack", file, "--output", place / "out"), 6, mentions, hint=False)
    assert not list((place / "out").iterdir())
    assert sorted(path.name for path in place.folder.iterdir()) == ["hostile.tar.zst", "out"]


def test_headers_that_claim_too_much_are_refused(place: Workplace, packed: Path) -> None:
    found = members(packed)
    name = found[0][0].name
    huge = tarfile.TarInfo(name)
    huge.size = 1 << 40
    file = place / "huge.tar.zst"
    file.write_bytes(zstandard.ZstdCompressor().compress(huge.tobuf(tarfile.GNU_FORMAT)))
    refused(place.run("verify", file), 6, "too large", hint=False)
    header = tarfile.TarInfo(name)
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    file.write_bytes(zstandard.ZstdCompressor().compress(header.tobuf(tarfile.GNU_FORMAT)))
    refused(place.run("verify", file), 6, "no plain file", hint=False)
    # A frame that asks for 2 GiB of memory, as its header's window descriptor says.
    file.write_bytes(b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(20))
    refused(place.run("verify", file), 6, "damaged")
    file.write_bytes(repacked(place.folder, found, after=b"x" * 10, form=tarfile.USTAR_FORMAT).read_bytes())
    refused(place.run("verify", file), 6, "follows the end")
    file.write_bytes(repacked(place.folder, found, after=bytes(3 << 20), form=tarfile.USTAR_FORMAT).read_bytes())
    refused(place.run("verify", file), 6, "follows the end")
    file.write_bytes(packed.read_bytes() + zstandard.ZstdCompressor().compress(b"x" * 10))
    refused(place.run("verify", file), 6, "follows the end")


def test_many_empty_files_are_refused_before_they_are_written(place: Workplace, packed: Path) -> None:
    found = members(packed)
    for index in range(1_001):
        _added(f"profiles/{index}.json", 0)(found)
    refused(place.run("verify", repacked(place.folder, found), "--no-run"), 6, "too many", hint=False)


def test_names_in_an_archive_do_not_speak_to_the_terminal(place: Workplace, packed: Path) -> None:
    for kind in (tarfile.REGTYPE, tarfile.SYMTYPE):
        found = members(packed)
        _added("\x1b[2Jgone\x07\nerror: all is well")(found)
        found[-1][0].type = kind
        file = repacked(place.folder, found, form=tarfile.USTAR_FORMAT)
        message = refused(place.run("unpack", file, "--output", place / "out"), 6, "gone", hint=False)
        assert "\x1b" not in message
        assert "\nerror: all is well" not in message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_found(packed: Path, bundle: Path, data: st.DataObject) -> None:
    content = bytearray(packed.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1), label="at")
    if data.draw(st.booleans(), label="cut"):
        content = content[:at]
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "x.tar.zst")
        file.write_bytes(content)
        try:
            with opened_bundle(file) as folder:
                # Bits that say nothing may differ; what is read must be the bundle.
                assert folder == file or contents(folder) == contents(bundle)
        except ExporterError as error:
            assert error.exit_code == 6  # noqa: PT017
