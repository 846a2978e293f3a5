"""Calibration in several processes: each observes whole batches, and their states are merged in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import StageError
from exporter.quantize.observer import Observed
from exporter.quantize.streaming import Watcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Inputs = Mapping[str, NDArray[np.generic]]

States = list[tuple[Observed, Observed]]

_watcher: Watcher | None = None
"""The graph of a worker process, opened once."""


def observed_in_processes(
    model: Path, names: list[str], batches: Iterable[tuple[int, Inputs]], *, histogram: bool, step: int, jobs: int
) -> Iterator[States]:
    """States of each batch, in order.

    Args:
        model: float ONNX file.
        names: tensors to observe.
        batches: numbered; a few more than there are processes are in memory at a time.
        histogram: keep histograms.
        step: samples that run together.
        jobs: processes, which share the cores between them.

    Raises:
        StageError: a process was ended.
        ExporterError: whatever `batches` raises.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    # Not by fork: onnxruntime's threads would not be in the copy, and what they hold would stay locked.
    executor = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), _open, (model, names, histogram, threads)
    )
    waiting: deque[Future[States]] = deque()
    try:
        for index, batch in batches:
            waiting.append(executor.submit(_states, dict(batch), step, index % 2))
            if len(waiting) > jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise StageError(
            "a calibration process was ended from outside",
            where=model.name,
            why="most often the system does that when memory runs out",
            hint="fewer --jobs, or a smaller `[calibration] batch_size`",
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _open(model: Path, names: list[str], histogram: bool, threads: int) -> None:
    global _watcher
    # Ctrl-C goes to all processes of a terminal: the parent decides what becomes of the work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _watcher = Watcher(model, names, histogram=histogram, threads=threads)


def _end_with(sentinel: int) -> None:
    """Ends this process when its parent is gone, killed perhaps, and nobody will ask for results."""
    wait([sentinel])
    os._exit(1)


def _states(batch: Inputs, step: int, first: int) -> States:
    if _watcher is None:
        raise RuntimeError("the process was not opened")
    return _watcher.states(batch, step, first)
