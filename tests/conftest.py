"""What all tests share: one thread, a store of their own, and a workplace that command lines run in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Before numpy and torch are imported: their thread pools are sized once.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import pytest
from support import Workplace

from exporter.store import Store

DEVICE_TESTS = ("test_adb", "test_adb_benchmark", "test_boards", "test_ssh")
"""Modules that use this machine as a device, which serves one exporter at a time."""


LONGEST_FIRST = ("e2e", "docs", "conformance", "bundle", "unit")
"""Folders, so that no process is left with a long module when the others have ended."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules are handed out in this order."""
    items.sort(key=lambda item: (item.path.stem not in DEVICE_TESTS, LONGEST_FIRST.index(item.path.parent.name)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each module is run by one process, since its tests share what they build; those of devices all by the same."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return "device" if Path(module).stem in DEVICE_TESTS else module

    # Those with the most tests first is not those that take longest first: a single test may take minutes.
    config.option.loadscopereorder = False
    return ByModule(config, log)


def worker_of(config: pytest.Config) -> str | None:
    """Which of several processes this is; not asked of the environment, which a pytest run by a test inherits."""
    given: dict[str, str] = getattr(config, "workerinput", {})
    return given.get("workerid")


@pytest.fixture(scope="module", autouse=True)
def one_process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two processes that share a module would both build what its tests share, and nothing else would tell."""
    worker = worker_of(request.config)
    if worker is not None:
        note = tmp_path_factory.getbasetemp().parent / f"{request.path.parent.name}-{request.path.stem}"
        first = note.read_text() if note.exists() else worker
        note.write_text(worker)
        assert first == worker, f"tests of this module ran in {first} as well"


@pytest.fixture(scope="module", autouse=True)
def store_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the user's store; each module has one of its own."""
    folder = tmp_path_factory.mktemp("store")
    before = os.environ.get("EDGE_EXPORTER_CACHE")
    os.environ["EDGE_EXPORTER_CACHE"] = str(folder)
    yield folder
    if before is None:
        os.environ.pop("EDGE_EXPORTER_CACHE", None)
    else:
        os.environ["EDGE_EXPORTER_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Syncing guards against losing power, which ends a test as well, and takes a third of a small build's time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def operators_parsed_once() -> None:
    """torch's exporter parses the sources of all operators again for each model: half the time of a small one."""
    for name, module in list(sys.modules.items()):
        if name.startswith("onnxscript._framework_apis.") and hasattr(module, "get_torchlib_ops"):
            parse = module.get_torchlib_ops
            module.get_torchlib_ops = parse if hasattr(parse, "cache_info") else cache(parse)


@pytest.fixture(scope="session")
def kept(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store for what takes long to make and is the same for all: environments and userlands, with all processes."""
    top = tmp_path_factory.getbasetemp()
    return Store((top if worker_of(pytestconfig) is None else top.parent) / "kept")


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A folder and a store for one test."""
    return Workplace(tmp_path)


@pytest.fixture(scope="module")
def shared_place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A folder and a store for a whole module, for tests that only read what was made there."""
    return Workplace(tmp_path_factory.mktemp("shared"))
