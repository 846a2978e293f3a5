"""edge-exporter: trained torch models to measured, self-testing bundles for edge devices."""
