"""What is copied into a bundle. These files import nothing of the exporter."""
