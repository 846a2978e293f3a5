"""Runs an action in forked processes and kills each of them at another moment; prints what it found as JSON lines.

A moment is the n-th time that Python opens, makes, renames or removes something below the watched folders. The action
is imported once and forked, so that a moment costs milliseconds. Usage: killed.py toy|build FOLDER [ARGUMENT ...].
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from exporter.store import Store, stage_key

EVENTS = ("open", "os.", "shutil.", "glob.", "pathlib.")


def arm(moment: int, watched: Sequence[Path]) -> Callable[[], int]:
    """Kills this process at a moment; gives a function that says how many moments there were."""
    roots = tuple(str(path) for path in watched)
    count, counting = 0, Lock()

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if not event.startswith(EVENTS):
            return
        if any(isinstance(item, (str, os.PathLike)) and os.fspath(item).startswith(roots) for item in arguments):
            with counting:  # Several threads sync files.
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: count


def forked(action: Callable[[], int], log: Path, moment: int = 0, watched: Sequence[Path] = ()) -> tuple[int, int]:
    """Runs an action in a process of its own: (exit code, minus the signal; moments, where it came to its end)."""
    tally = log.with_suffix(".count")
    tally.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            counted = arm(moment, watched) if watched else (lambda: 0)
            code = action()
            tally.write_text(str(counted()))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(tally.read_text()) if tally.exists() else 0


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


# A toy stage


KEY = stage_key("toy", 1, {})
RESULT = {"a": b"first", "sub/b": b"second", "sub/deeper/c": b""}


def write_result(folder: Path) -> None:
    for name, content in RESULT.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def found_in(folder: Path | None) -> dict[str, str] | None:
    if folder is None:
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "entry.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes().decode() for path in files}


def build_toy(root: Path) -> int:
    Store(root).get_or_build("toy", KEY, write_result)
    return 0


def toy(folder: Path, scenario: str) -> None:
    """Kills a build, a build over a damaged entry, or a clean-up, at every moment."""
    root, prepared = folder / "store", folder / "prepared"
    prepared.mkdir()
    if scenario != "build":
        build_toy(prepared)
    if scenario == "rebuild":
        (prepared / "v1" / "toy" / KEY / "a").write_bytes(b"damage")
    action = (lambda: len(Store(root).collect()) * 0) if scenario == "clear" else (lambda: build_toy(root))
    moment = 0
    while True:
        moment += 1
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(prepared, root)
        code, _ = forked(action, folder / "log", moment, [root])
        kept = found_in(Store(root).find("toy", KEY))
        forked(lambda: build_toy(root), folder / "log")
        tell(
            moment=moment,
            code=code,
            kept=kept,
            then=found_in(Store(root).find("toy", KEY)),
            left=[path.name for path in (root / "tmp").glob("*")],
            entries=[path.name for path in (root / "v1").glob("*/*")],
        )
        if code == 0:
            return


# A build


def state(store: Path, output: Path) -> dict[str, Any]:
    """What a user, and the next run, would find."""
    from exporter.bundle import check_bundle
    from exporter.errors import BundleError

    visible: dict[str, str] = {}
    for path in output.iterdir() if output.exists() else ():
        if not path.name.startswith("."):
            try:
                visible[path.name] = check_bundle(path).digest
            except BundleError as error:
                visible[path.name] = error.what
    entries = {}
    for entry in (store / "v1").glob("*/*"):
        folder = Store(store).find(entry.parent.name, entry.name)
        name = f"{entry.parent.name}/{entry.name}"
        entries[name] = "damaged" if folder is None else json.loads((folder / "entry.json").read_text())["files"]
    return {
        "visible": visible,
        "hidden": [path.name for path in output.iterdir() if path.name.startswith(".")] if output.exists() else [],
        "entries": entries,
        "temporary": [path.name for path in (store / "tmp").glob("*")],
    }


def moments(total: int, wanted: int) -> Iterator[int]:
    """About `wanted` moments, evenly spread over all, the first and the last among them."""
    wanted = min(wanted, total)
    seen = {1 + round(index * (total - 1) / max(1, wanted - 1)) for index in range(wanted)}
    return iter(sorted(seen))


def preload() -> Callable[[Sequence[str]], int]:
    """Imports what a build imports, so that forked processes need not; gives the command line."""
    import onnx  # noqa: F401
    import onnxruntime.quantization
    import onnxruntime.tools.symbolic_shape_infer  # noqa: F401

    import exporter.commands
    import exporter.onnx_export
    import exporter.pipeline.build
    import exporter.quantize  # noqa: F401
    from exporter.cli import run

    return run


def build(folder: Path, warm: str, wanted: str, *arguments: str) -> None:
    """Kills a build at about `wanted` moments: with an empty store, or with a full one and nothing published."""
    run = preload()
    store, output, log = folder / "store", folder / "output", folder / "log"
    os.environ["EDGE_EXPORTER_CACHE"] = str(store)
    watched = [output] if warm == "warm" else [store]

    def action() -> int:
        return run([*arguments, "--output", str(output)])

    code, _ = forked(action, log)
    tell(moment=0, code=code, log=log.read_text(), **state(store, output))
    full = folder / "full"
    store.rename(full)

    def reset() -> None:
        for path in (store, output):
            shutil.rmtree(path, ignore_errors=True)
        if warm == "warm":
            shutil.copytree(full, store)

    reset()
    code, total = forked(action, log, -1, watched)
    tell(moment=-1, code=code, total=total, **state(store, output))
    for moment in moments(total, int(wanted)):
        reset()
        code, _ = forked(action, log, moment, watched)
        after = state(store, output)
        log.unlink()
        next_code, _ = forked(action, log)
        tell(
            moment=moment, code=code, after=after, next_code=next_code, log=log.read_text(), then=state(store, output)
        )


if __name__ == "__main__":
    # Syncing guards against losing power; a killed process loses nothing that it has handed to the kernel.
    os.fsync = lambda descriptor: None
    scenario, place, *rest = sys.argv[1:]
    {"toy": toy, "build": build}[scenario](Path(place), *rest)
