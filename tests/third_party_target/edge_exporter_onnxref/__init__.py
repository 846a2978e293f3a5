"""A deployment target that lives outside edge-exporter."""
