"""Where a bundle runs: on this machine, in this environment or in a fresh one."""

from exporter.devices.isolated import isolated_python
from exporter.devices.local import cpu_features, profile_name, run_bench, run_self_test

__all__ = ["cpu_features", "isolated_python", "profile_name", "run_bench", "run_self_test"]
