"""The built-in deployment targets, one module each."""
