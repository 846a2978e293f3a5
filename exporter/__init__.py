"""edge-exporter: trained torch models to measured, self-testing bundles for edge devices."""

import os

# onnxruntime's wheels keep a device id and a database in the user's cache folder, and report use over the network.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
