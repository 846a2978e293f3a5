"""The built-in deployment targets, one module each, and the runner that bundles of any target can carry."""

from __future__ import annotations

from pathlib import Path

from targets.runner import RUNNER_FILES

_RUNNER = Path(__file__).parent / "runner"


def runner_files(runtime: Path) -> dict[str, Path]:
    """What `Payload.files` needs: the runner's modules, and the one module that knows the runtime.

    Args:
        runtime: a module for Python 3.9 or newer that imports neither `exporter` nor `targets` and has

            - `NAME`: the distribution that the runtime comes in,
            - `version()`: its installed version; raises `RuntimeMissing`,
            - `provider()`: what executes the model inside the runtime,
            - `open_session(model_path, threads, affinity)`: a session with `run(feed)`, from arrays by input name
              to arrays by output name, and with `inputs()` and `outputs()`, lists of (name, dtype, shape) with a
              text for a dynamic axis; raises `RuntimeMissing`, or the runtime's own errors; where a delegate may
              compute some operators, a session also has `delegation()`: its name as `delegate`, the number of
              `operators` that it computes, and `of` how many,
            - `RuntimeMissing`: an exception with `command`, the command that brings the runtime.

    Returns:
        Files by their name in the bundle: `run.py`, what it imports, and `runtime.py`.
    """
    return {**{name: _RUNNER / name for name in RUNNER_FILES}, "runtime.py": runtime}
