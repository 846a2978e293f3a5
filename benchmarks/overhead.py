"""What the exporter costs on top of the library calls that it makes: wall time and peak memory.

ResNet-18 at 224x224, 64 samples, no latency profile. `by_hand.py` makes the same library calls; both run in fresh
processes, in turn, and are compared as a ratio within each round.

Usage: python benchmarks/overhead.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SAMPLES = 64


def main() -> None:
    """Runs both in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        images = np.random.default_rng(0).standard_normal((SAMPLES, 3, 224, 224), np.float32)
        np.savez(data, x=images)
        results = [_round(Path(folder), data, index) for index in range(rounds)]
    by_hand, tool = zip(*results, strict=True)
    ratio = statistics.median(one[0] / other[0] for other, one in results)
    memory = statistics.median(one[1] - other[1] for other, one in results)
    print(f"{'':14}{'seconds (median)':>18}{'peak MB (median)':>18}")
    for name, runs in (("by hand", by_hand), ("edge-exporter", tool)):
        seconds, megabytes = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{name:14}{seconds:18.2f}{megabytes:18.0f}")
    print(f"wall time ratio {ratio:.3f}, peak memory {memory:+.0f} MB; {rounds} rounds, {os.cpu_count()} cores")


def _round(folder: Path, data: Path, index: int) -> tuple[tuple[float, float], tuple[float, float]]:
    place = folder / f"round{index}"
    place.mkdir()
    command = [sys.executable, str(HERE / "by_hand.py"), str(data), str(place)]
    by_hand = _measure(command, place)
    build = [
        sys.executable, "-m", "exporter", "build", f"{HERE / 'resnet18.py'}:resnet18", "--calib", str(data),
        "--no-profile", "--output", str(place / "bundles"), "--progress", "none",
    ]  # fmt: skip
    return by_hand, _measure(build, place)


def _measure(command: list[str], place: Path) -> tuple[float, float]:
    """Wall seconds, and the peak resident MB of the process itself."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "EDGE_EXPORTER_CACHE": str(place / "cache")}
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}: {' '.join(command)}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
