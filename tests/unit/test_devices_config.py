"""devices.toml and addresses: strict, every fault at once, and nothing that ssh or adb could read as an option."""

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.devices import named_device, read_devices
from exporter.devices.config import DevicePlan, address_problem, ssh_destination
from exporter.errors import InputError

GOOD = """\
schema = 1

[devices.pi]
address = "ssh://pi@raspberrypi.local:2222"
wheels = "wheels"
threads = [1, 4]
affinity = [0, 1]
notes = "fan"

[devices.phone]
address = "adb:R58M123"
threads = 2
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "devices.toml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        read_devices(written(folder, text))
    assert caught.value.where == str(folder / "devices.toml")
    return str(caught.value)


def test_devices_are_read_with_paths_relative_to_their_file(tmp_path: Path) -> None:
    devices = read_devices(written(tmp_path, GOOD))
    assert list(devices.named) == ["pi", "phone"]
    assert devices.named["pi"].wheels == tmp_path / "wheels"
    assert named_device("pi", devices).threads == (1, 4)
    assert named_device("phone", devices).threads == (2,)


def test_the_working_folder_comes_before_the_users_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = tmp_path / "config" / "edge-exporter"
    user.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    assert read_devices(None).file is None
    written(user, GOOD.replace("devices.pi", "devices.mine"))
    assert list(read_devices(None).named) == ["mine", "phone"]
    written(tmp_path, GOOD)
    assert list(read_devices(None).named) == ["pi", "phone"]


def test_all_faults_are_named_at_once_with_the_closest_key(tmp_path: Path) -> None:
    text = 'schema = 2\n[device.x]\n[devices.pi]\nadress = "ssh://pi@a"\n[devices.b]\naddress = "telnet://b"\n'
    message = refused(tmp_path, text)
    for words in (
        "schema is 2",
        "device: unknown section or key; did you mean 'devices'?",
        "devices.pi.adress: unknown key; did you mean 'address'?",
        "devices.pi.address is missing",
        "devices.b.address: 'telnet://b' is no address",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("ssh://pi@host", "benchmark_binary = 'b'"),
        ("adb:1", "wheels = 'w'"),
        ("adb:1", "install_seconds = 1"),
        ("emulated:pi5", "python = 'p'"),
        ("emulated:pi5", "threads = 2"),
    ],
)
def test_a_key_that_would_do_nothing_is_an_error(tmp_path: Path, address: str, key: str) -> None:
    text = f"schema = 1\n[devices.x]\naddress = '{address}'\n{key}\n"
    assert f"devices.x.{key.partition(' ')[0]}: does nothing" in refused(tmp_path, text)


@pytest.mark.parametrize("text", ["threads = 0", "threads = []", "threads = [0]", "affinity = [-1]", "keep = 'yes'"])
def test_values_are_checked(tmp_path: Path, text: str) -> None:
    refused(tmp_path, f"schema = 1\n[devices.x]\naddress = 'ssh://x'\n{text}\n")


@pytest.mark.parametrize("name", ["local", "-x", "a b", "ssh://x"])
def test_names_that_would_hide_something_are_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, f"schema = 1\n[devices.'{name}']\naddress = 'ssh://x'\n")


def test_an_unknown_device_lists_what_exists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'phone'") as caught:
        named_device("fone", read_devices(written(tmp_path, GOOD)))
    assert "local, pi, phone" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("address", "destination"),
    [
        ("ssh://host", ("host", None)),
        ("ssh://pi@10.0.0.7:22", ("pi@10.0.0.7", 22)),
        ("ssh://pi@host/", ("pi@host", None)),
        ("ssh://pi@[fe80::1%eth0]:2222", ("pi@fe80::1%eth0", 2222)),
    ],
)
def test_addresses_are_taken_apart(address: str, destination: tuple[str, int | None]) -> None:
    assert ssh_destination(address) == destination


@pytest.mark.parametrize(
    "address",
    [
        "ssh://", "ssh://-oProxyCommand=x", "ssh://-l@host", "ssh://a b", "ssh://host:0", "ssh://host:99999",
        "ssh://host/path", "ssh://u@v@host", "adb:a b", "adb:x;reboot", "emulated:", "pi",
    ],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(address: str) -> None:
    assert address_problem(address) is not None


@given(st.text(min_size=1))
def test_what_is_given_to_ssh_is_never_an_option(text: str) -> None:
    try:
        destination, _ = ssh_destination(f"ssh://{text}")
    except ValueError:
        return
    assert not destination.startswith("-")
    assert not any(part.startswith("-") for part in destination.split("@"))
    assert destination.split() == [destination]


def test_the_page_shows_a_file_that_is_read_and_every_key(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "devices.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```\n(schema = 1\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert list(read_devices(written(tmp_path, shown)).named) == ["pi", "phone"]
    keys = set(re.findall(r"^\| `(\w+)` \| (?:all|ssh|adb)", page, re.MULTILINE))
    assert keys == {field.name for field in msgspec.structs.fields(DevicePlan)}
