"""Builds on disks without room, each in a forked process; prints what it found as JSON lines.

Usage: in a mount namespace of its own, full.py tmpfs store|output FOLDER COUNT ARGUMENT ... and
full.py readonly store|output FOLDER ARGUMENT ...; anywhere, full.py limit FOLDER ARGUMENT ...
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from killed import forked, moments, preload, state, tell

PAGE = 4096
ROOM = "size=256m"


def mount(folder: Path, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], check=True)


def tmpfs(where: str, place: str, count: str, *arguments: str) -> None:
    """Puts the store, or the output folder, on disks of `count` sizes, all smaller than what is needed."""
    folder = Path(place)
    store, output, log = folder / "store", folder / "output", folder / "log"
    limited = {"store": store, "output": output}[where]
    for path in (store, output):
        path.mkdir(exist_ok=True)
    os.environ["EDGE_EXPORTER_CACHE"] = str(store)
    run = preload()

    def action() -> int:
        return run([*arguments, "--output", str(output)])

    mount(limited, ROOM)
    code, _ = forked(action, log)
    # A profile holds raw samples, more or less of them each time: it needs one page at least.
    profiles = sum(-(-path.stat().st_size // PAGE) for path in limited.glob("*/profiles/*"))
    largest = shutil.disk_usage(limited).used // PAGE - (profiles or 1)
    tell(code=code, log=log.read_text(), **state(store, output))
    for pages in moments(largest, int(count)):
        subprocess.run(["umount", str(limited)], check=True)
        if where == "store":
            shutil.rmtree(output)
            output.mkdir()
        mount(limited, f"size={pages * PAGE}")
        log.unlink()
        code, _ = forked(action, log)
        words, after = log.read_text(), state(store, output)
        log.unlink()
        subprocess.run(["mount", "-o", f"remount,{ROOM}", str(limited)], check=True)
        next_code, _ = forked(action, log)
        then = state(store, output)
        tell(pages=pages, code=code, log=words, after=after, next_code=next_code, next_log=log.read_text(), then=then)


def readonly(where: str, place: str, *arguments: str) -> None:
    """Puts the store, or the output folder, on a disk that cannot be written."""
    folder = Path(place)
    store, output, log = folder / "store", folder / "output", folder / "log"
    limited = {"store": store, "output": output}[where]
    for path in (store, output):
        path.mkdir(exist_ok=True)
    os.environ["EDGE_EXPORTER_CACHE"] = str(store)
    from exporter.cli import run

    mount(limited, "ro")
    code, _ = forked(lambda: run([*arguments, "--output", str(output)]), log)
    tell(code=code, log=log.read_text(), **state(store, output))


def limit(place: str, *arguments: str) -> None:
    """Lets no process write files larger than some limits, all smaller than the largest one that is needed."""
    folder = Path(place)
    store, output, log = folder / "store", folder / "output", folder / "log"
    os.environ["EDGE_EXPORTER_CACHE"] = str(store)
    run = preload()

    def action() -> int:
        return run([*arguments, "--output", str(output)])

    def limited(size: int) -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return action()

    code, _ = forked(action, log)
    whole = state(store, output)
    tell(code=code, log=log.read_text(), **whole)
    sizes = sorted({path.stat().st_size for path in (store / "v1").rglob("*") if path.is_file()})
    sizes = [size - 1 for size in sizes if size > 2 * PAGE]  # What this prints must still fit.
    for size in {sizes[0], sizes[len(sizes) // 2], sizes[-1]}:
        for path in (store, output):
            shutil.rmtree(path, ignore_errors=True)
        log.unlink()
        code, _ = forked(lambda size=size: limited(size), log)  # type: ignore[misc]
        words, after = log.read_text(), state(store, output)
        log.unlink()
        next_code, _ = forked(action, log)
        then = state(store, output)
        tell(size=size, code=code, log=words, after=after, next_code=next_code, next_log=log.read_text(), then=then)


if __name__ == "__main__":
    {"tmpfs": tmpfs, "readonly": readonly, "limit": limit}[sys.argv[1]](*sys.argv[2:])
