"""Jobs in forks of a process that has imported what they need: apart from each other, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import heard_meanwhile

from targets import _warm
from targets._warm import WarmProcess

pytestmark = pytest.mark.skipif(not _warm.FORKS, reason="such processes are not forked here")


@pytest.fixture
def warm() -> Iterator[WarmProcess]:
    process = WarmProcess()
    yield process
    process.close()


def ignore(stage: str) -> None:
    """What is told here matters to nobody."""


class Jobs:
    """Modules that are run as jobs, one named like its file."""

    def __init__(self, folder: Path, warm: WarmProcess) -> None:
        self.folder = folder
        self.warm = warm

    def write(self, name: str, code: str) -> str:
        (self.folder / f"{name}.py").write_text(f"import os, sys, time\n{code}\n")
        return name

    def run(
        self,
        code: str,
        *imports: str,
        tell: Callable[[str], None] = ignore,
        seconds: float = 60,
        name: str = "job",
        **environment: str,
    ) -> int:
        self.write(name, "telling = int(sys.argv[2])\n" + code)
        variables = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", **environment}
        return self.warm.run(
            name, ["word"], imports=imports, folder=self.folder, environment=variables, seconds=seconds, tell=tell
        )


@pytest.fixture
def jobs(tmp_path: Path, warm: WarmProcess) -> Jobs:
    return Jobs(tmp_path, warm)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(*pids: int) -> bool:
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_what_jobs_need_is_imported_once_and_each_is_a_process_of_its_own(jobs: Jobs, tmp_path: Path) -> None:
    jobs.write("heavy", f"open({str(tmp_path / 'imported')!r}, 'a').write(f'{{os.getpid()}} ')")
    code = (
        "import heavy\nheavy.seen = getattr(heavy, 'seen', 0) + 1\n"
        "os.write(telling, b'%d %d\\n' % (os.getpid(), heavy.seen))"
    )
    heard: list[str] = []
    for _ in range(3):
        assert jobs.run(code, "heavy", tell=heard.append) == 0
    (server,) = (tmp_path / "imported").read_text().split()
    pids, seen = zip(*(line.split() for line in heard), strict=True)
    assert len({server, *pids}) == 4
    assert seen == ("1", "1", "1"), "one job sees nothing of another"


def test_what_it_does_is_heard_while_it_does_it(jobs: Jobs, tmp_path: Path) -> None:
    found = heard_meanwhile(tmp_path, lambda code, tell: jobs.run(code, tell=tell))
    assert found == (0, [("convert", False), ("quantize", True)])


def test_a_job_has_its_own_words_folder_variables_and_output(
    jobs: Jobs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "print(__name__, sys.argv[1], os.getcwd(), os.environ.get('A'), os.environ.get('B'))"
    for variables in ({"A": "1"}, {"B": "2"}):
        assert jobs.run(code, **variables) == 0
        found = [variables.get(name) for name in "AB"]
        assert capfd.readouterr().out.split() == ["__main__", "word", str(tmp_path), *map(str, found)]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "beside.py").touch()
    assert jobs.run("import beside") == 1
    assert jobs.run("import beside", PYTHONPATH=f"{tmp_path}:{tmp_path / 'elsewhere'}") == 0
    capfd.readouterr()
    assert jobs.run("print('no', file=sys.stderr); raise ValueError('mine')") == 1
    assert "ValueError: mine" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "ending"), [("sys.exit(3)", 3), ("sys.exit()", 0), ("os.kill(os.getpid(), 11)", -11), ("os.abort()", -6)]
)
def test_its_ending_is_told_and_the_next_job_runs(jobs: Jobs, code: str, ending: int) -> None:
    assert jobs.run(code) == ending
    assert jobs.run("pass") == 0


def test_a_library_that_cannot_be_imported_is_the_jobs_to_tell(jobs: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    jobs.write("broken", "raise OSError('no such symbol')")
    assert jobs.run("import broken", "broken") == 1
    assert "OSError: no such symbol" in capfd.readouterr().err
    jobs.write("crashing", "os.abort()")
    assert jobs.run("import crashing", "crashing") == -6
    assert jobs.run("pass") == 0


def test_one_that_hangs_is_ended(jobs: Jobs) -> None:
    heard: list[int] = []
    code = "os.write(telling, f'{os.getpid()}\\n{os.getppid()}\\n'.encode()); time.sleep(60)"
    with pytest.raises(TimeoutError):
        jobs.run(code, tell=lambda line: heard.append(int(line)), seconds=3)
    assert len(heard) == 2
    assert gone(*heard)
    assert jobs.run("pass") == 0


def test_an_interrupted_wait_leaves_no_process(jobs: Jobs) -> None:
    heard: list[int] = []

    def interrupted(stage: str) -> None:
        heard.extend(map(int, stage.split()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run("os.write(telling, f'{os.getpid()} {os.getppid()}\\n'.encode()); time.sleep(60)", tell=interrupted)
    assert len(heard) == 2
    assert gone(*heard)
    assert jobs.run("pass") == 0


def test_all_end_with_the_process_that_asked_however_it_ends(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import os, time\nopen('pids', 'w').write(f'{os.getpid()} {os.getppid()}')\n"
        "os.rename('pids', 'running')\ntime.sleep(60)\n"
    )
    asking = """import os, pathlib, sys
from targets._warm import WarmProcess
here = pathlib.Path(sys.argv[1])
WarmProcess().run("job", [], imports=[], folder=here, environment=os.environ, seconds=60, tell=print)
"""
    command = [sys.executable, "-c", asking, str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "running").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert gone(*map(int, (tmp_path / "running").read_text().split()))


def test_where_nothing_is_forked_or_a_job_runs_already_it_is_a_process_like_any_other(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents: list[int] = []
    code = "os.write(telling, f'{os.getppid()}\\n'.encode())"

    def inside(stage: str) -> None:
        jobs.run(code, name="inner", tell=lambda line: parents.append(int(line)))

    assert jobs.run("os.write(telling, b'go\\n')", tell=inside) == 0
    monkeypatch.setattr(_warm, "FORKS", False)
    assert jobs.run(code, tell=lambda line: parents.append(int(line))) == 0
    assert parents == [os.getpid(), os.getpid()]
