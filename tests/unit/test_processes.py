"""Processes that tell what they do: heard at once, ended in time, and never left behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import heard_meanwhile

from targets._processes import run_telling


def run(tmp_path: Path, code: str, tell: Callable[[str], None], seconds: float = 60) -> int:
    (tmp_path / "job.py").write_text(f"import os, sys, time\ntelling = int(sys.argv[1])\n{code}\n")
    command = [sys.executable, "-I", "-S", str(tmp_path / "job.py")]
    return run_telling(command, folder=tmp_path, environment=os.environ, seconds=seconds, tell=tell)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_it_does_is_heard_while_it_does_it(tmp_path: Path) -> None:
    found = heard_meanwhile(tmp_path, lambda code, tell: run(tmp_path, code, tell))
    assert found == (0, [("convert", False), ("quantize", True)])


@pytest.mark.parametrize(("code", "ending"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 11)", -11)])
def test_its_ending_is_told(tmp_path: Path, code: str, ending: int) -> None:
    assert run(tmp_path, code, lambda stage: None) == ending


def test_one_that_hangs_is_ended(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        run(tmp_path, "time.sleep(60)", lambda stage: None, seconds=0.3)
    assert time.monotonic() - begun < 30


def test_an_interrupted_wait_leaves_no_process(tmp_path: Path) -> None:
    heard: list[int] = []

    def interrupted(stage: str) -> None:
        heard.append(int(stage))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "os.write(telling, f'{os.getpid()}\\n'.encode()); time.sleep(60)", interrupted)
    assert not alive(heard[0])
