"""Load time, first inference and peak memory of a variant, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from time import perf_counter_ns
from typing import Any

from .bundle import HERE, Bundle
from .engine import Engine
from .faults import BAD_INPUT, BROKEN, MISSING, Fault, brief
from .feeds import Samples
from .host import peak_rss_bytes


def footprint(engine: Engine, bundle: Bundle, name: str) -> dict[str, Any]:
    """The footprint of this process, which does nothing else."""
    samples = Samples(engine.numpy, bundle)
    feed = samples.inputs(samples.to_measure()[1][0])
    start = perf_counter_ns()
    session = engine.open(bundle, name)
    loaded = perf_counter_ns()
    session.run(feed)
    done = perf_counter_ns()
    return {"load_ns": loaded - start, "first_ns": done - loaded, "peak_rss_bytes": peak_rss_bytes()}


def footprint_apart(name: str, threads: int, runtime: str | None) -> dict[str, Any]:
    """The footprint of a fresh process, on the runtime that was asked for where one was."""
    command = [sys.executable, str(HERE / "run.py"), "--footprint", name, "--threads", str(threads), "--json"]
    command += ["--runtime", runtime] if runtime else []
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        facts = json.loads(child.stdout) if child.returncode == 0 else None
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        last = brief(child.stderr[-300:])
        code = child.returncode if child.returncode in (BAD_INPUT, MISSING) else BROKEN
        raise Fault(code, f"{name}: the process that loads it ended with {child.returncode}: {last}")
    return facts
