"""What is copied into a bundle. These files import nothing of the exporter."""

RUNNER_FILES = (
    "run.py",
    "commands.py",
    "faults.py",
    "bundle.py",
    "choice.py",
    "engine.py",
    "feeds.py",
    "selftest.py",
    "inference.py",
    "profiling.py",
    "footprint.py",
    "bench.py",
    "stats.py",
    "host.py",
)
"""The files that travel in every bundle, beside the one `runtime.py` that knows the bundle's runtime."""
