"""Bring a stack up on a machine. The package has a small Python environment of its own."""
