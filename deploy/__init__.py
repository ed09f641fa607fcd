"""Bring a stack up on a machine; runs in a small Python environment of its own."""
